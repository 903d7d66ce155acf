"""Every registered scheme, useful chains and variants pass the contract suite, check by check."""

import functools
from typing import Any

import pytest
import torch

from x_positional.schemes.registry import REGISTRY
from x_positional.testing import CHECKS, check_scheme
from x_positional.testing.cases import CHAINS, VARIANTS, cases
from x_positional.testing.expect import APART
from x_positional.testing.subject import Sizes, Subject
from x_positional.testing.suite import run_check

CASES = cases()
COMPILING = {"compiles", "compiles_decoding"}
QUICK = ("rope", "alibi", "cope")
"""One scheme of each kind of kernel: fused, with a bias, with rows of scores."""
COMPILED = {"rope + cope", "xpos + alibi + forgetting", "rope, dynamic NTK, fixed"}


@functools.cache
def subject(name: str) -> Subject:
    return Subject(CASES[name].scheme, CASES[name].sizes or Sizes(), torch.device("cpu"))


def pairs() -> list[Any]:
    """Compiling takes seconds, so only those chains and variants are compiled that exercise another path of the compiler."""
    compiled = set(REGISTRY) | COMPILED
    chosen = [(case, check) for case in CASES for check in CHECKS if check not in COMPILING or case in compiled]
    return [pytest.param(*pair, marks=[pytest.mark.quick] if pair[0] in QUICK else []) for pair in chosen]


@pytest.mark.parametrize(("case", "check"), pairs())
def test_contract(case: str, check: str):
    result = run_check(check, subject(case))
    assert result.verdict in ("pass", "n/a"), result.detail


@pytest.mark.parametrize("case", CASES)
def test_different_results_are_far_beyond_rounding(case: str):
    assert 10 * subject(case).rounding() <= APART


def test_every_registered_scheme_and_every_chain_is_a_case():
    assert set(REGISTRY) - {"custom"} <= set(CASES)
    assert set(CASES) >= COMPILED
    assert len(CASES) == len(REGISTRY) - 1 + len(CHAINS) + len(VARIANTS)


@pytest.mark.slow
def test_compiled_flex_on_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(
        torch.nn.attention.flex_attention, "_FLEX_ATTENTION_DISABLE_COMPILE_DEBUG", False, raising=False
    )
    assert check_scheme("forgetting", only="backends_agree").ok


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_contract_on_cuda(case: str):
    check_scheme(CASES[case].scheme, sizes=CASES[case].sizes, device="cuda")
