"""Every registered scheme, useful chains and variants pass the contract suite, check by check.

By default chains and variants take every second check of those that do not depend on the formula of a scheme, each others; every
registered scheme takes all of them, but not all compile the decoding step.
"""

import functools
from typing import Any

import pytest
import torch

from tests.support.draws import draws
from x_positional.schemes.registry import REGISTRY
from x_positional.testing import CHECKS, check_scheme
from x_positional.testing.cases import CHAINS, VARIANTS, cases
from x_positional.testing.checks_backends import HOOKS
from x_positional.testing.expect import APART
from x_positional.testing.subject import Sizes, Subject
from x_positional.testing.suite import run_check

CASES = cases()
COMPILING = {"compiles", "compiles_decoding"}
QUICK = ("rope", "alibi", "cope")
"""One scheme of each kind of kernel: fused, with a bias, with rows of scores."""
COMPILED = {"rope + cope", "xpos + alibi + forgetting", "rope, dynamic NTK, fixed"}
OF_THE_FORMULA = {
    "backends_agree",
    "gradcheck",
    "cached_equals_full",
    "sliding_windows",
    "ragged_decoding",
    "shift",
    "limit",
    "custom_positions",
    "order",
}
"""Checks that every variant takes: its options change what they compare."""
STEPS_AS = {
    "sinusoidal": "absolute",
    "scaled_sinusoidal": "absolute",
    "mixed": "axial",
    "polar": "axial",
    "alibi": "t5",
    "kerple": "t5",
    "sandwich": "t5",
    "dynamic": "fire",
    "gated_t5": "relative_logits",
    "cable": "forgetting",
    "temperature": "ssmax",
    "log_n": "ssmax",
}
"""Schemes whose compiled decoding step runs the hooks of another one, which stands for them by default. `compiles` traces their
own code."""


@functools.cache
def subject(name: str) -> Subject:
    return Subject(CASES[name].scheme, CASES[name].sizes or Sizes(), torch.device("cpu"))


def pairs() -> list[Any]:
    """Compiling takes seconds, so only those chains and variants are compiled that exercise another path of the compiler."""
    chosen = [
        (case, check)
        for place, case in enumerate(CASES)
        for turn, check in enumerate(CHECKS)
        if draws(by_default(place, case, turn, check), check not in COMPILING or case in REGISTRY or case in COMPILED)
    ]
    return [pytest.param(*pair, marks=[pytest.mark.quick] if pair[0] in QUICK else []) for pair in chosen]


def by_default(place: int, case: str, turn: int, check: str) -> bool:
    if check in COMPILING:
        return case in COMPILED or (case in REGISTRY and not (check == "compiles_decoding" and case in STEPS_AS))
    return case in REGISTRY or check in OF_THE_FORMULA or (place + turn) % 2 == 0


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


def test_what_is_left_out_by_default_has_one_that_stands_for_it():
    chosen = {pair.values for pair in pairs()}
    assert {check for _, check in chosen} == set(CHECKS)
    for case in CASES:
        assert sum((case, check) in chosen for check in CHECKS) >= len(CHECKS) // 2
    for case, like in STEPS_AS.items():
        mine, theirs = ({hook for hook in HOOKS if subject(name).scheme().overrides(hook)} for name in (case, like))
        assert mine <= theirs, f"{case} has hooks that {like} does not: {mine - theirs}"
        assert (like, "compiles_decoding") in chosen


@pytest.mark.slow
def test_compiled_flex_on_cpu(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.undo()  # the patches of `fast_flex`
    assert check_scheme("forgetting", only="backends_agree").ok


@pytest.mark.cuda
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("case", CASES)
def test_contract_on_cuda(case: str):
    check_scheme(CASES[case].scheme, sizes=CASES[case].sizes, device="cuda")
