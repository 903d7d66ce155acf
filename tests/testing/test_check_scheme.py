"""check_scheme for its users: arguments, errors, the report, and the page generated from it."""

import runpy
from pathlib import Path
from typing import Literal

import pytest
import torch

from tests.support.broken_attention import NeedlesslyUncacheable
from tests.support.broken_positions import FalselyAbsolute
from x_positional.errors import ContractError
from x_positional.schemes import AlibiBias, Rope, RopeEmbedding
from x_positional.schemes.base import Dims, PositionScheme
from x_positional.schemes.registry import REGISTRY, SchemeConfig
from x_positional.testing import CHECKS, Sizes, check_scheme
from x_positional.testing.cases import CHAINS, VARIANTS, cases
from x_positional.testing.expect import CEILING
from x_positional.testing.subject import Subject

ROOT = Path(__file__).parents[2]
QUICK = ("hooks_run", "shift", "no_buffers")


class Slopes(AlibiBias):
    """A user's scheme, whose class takes Dims."""

    def __init__(self, dims: Dims):
        super().__init__(dims.heads, [0.5**h for h in range(dims.heads)])


@pytest.mark.parametrize(
    "scheme",
    [
        "rope",
        {"kind": "rope", "theta": 500.0},
        Rope(dim=8),
        Slopes,
        lambda dims: RopeEmbedding(dims.head_dim // 2),
        ["rope", Slopes],
        [Slopes, {"kind": "sinusoidal"}],
    ],
    ids=["name", "fields", "config", "class", "function", "chain", "chain of others"],
)
def test_a_scheme_is_a_name_fields_a_config_a_class_a_function_or_a_list(scheme: object):
    report = check_scheme(scheme, only=QUICK)
    assert report.ok
    assert [result.check for result in report.results] == list(QUICK)
    assert report.capabilities.uses_positions


def test_one_failure_raises_with_the_name_of_the_check_and_the_measurement():
    with pytest.raises(ContractError, match="shift: absolute=True is declared, but no shift changes"):
        check_scheme(FalselyAbsolute, only=QUICK)


def test_all_failures_are_in_one_error_and_in_the_report():
    with pytest.raises(ContractError) as caught:
        check_scheme([FalselyAbsolute, NeedlesslyUncacheable], only=["shift", "cached_equals_full", "no_buffers"])
    assert [result.check for result in caught.value.report.failures] == ["shift", "cached_equals_full"]
    assert "shift:" in str(caught.value)
    assert "cached_equals_full:" in str(caught.value)


def test_strict_false_returns_a_readable_report():
    report = check_scheme(FalselyAbsolute, only=(*QUICK, "axes"), strict=False)
    assert not report.ok
    text = str(report)
    assert "fail  shift" in text
    assert "pass  no_buffers" in text
    assert "n/a   axes" in text
    assert "absolute=True" in text.splitlines()[0]
    assert text.splitlines()[-1] == "2 passed, 1 failed, 1 not applicable"


def test_the_report_holds_the_largest_difference():
    result = check_scheme("rope", only="shift")["shift"]
    assert result.difference is not None
    assert 0 < result.difference <= Subject("rope", Sizes(), torch.device("cpu")).rounding()


def test_only_and_skip_select_checks():
    report = check_scheme("none", only=QUICK, skip=["shift"])
    assert [result.check for result in report.results] == ["hooks_run", "no_buffers"]
    with pytest.raises(ValueError, match="no check named shfit; there are: hooks_run"):
        check_scheme("none", only="shfit")
    with pytest.raises(ValueError, match="no check named paking"):
        check_scheme("none", skip=["paking"])


def test_an_instance_is_refused():
    with pytest.raises(TypeError, match="got an instance of AlibiBias, but builds the scheme many times"):
        check_scheme(AlibiBias(6, [0.5] * 6))  # type: ignore[arg-type]


def test_a_scheme_that_fits_no_model_is_refused_with_the_reason():
    with pytest.raises(ValueError, match=r"no model can be built with this scheme.*must be an even number"):
        check_scheme(Rope(dim=7))
    with pytest.raises(ValueError, match="did you mean 'rope'"):
        check_scheme("ropes")


def test_sizes_are_used():
    seen: list[Dims] = []

    def make(dims: Dims) -> PositionScheme:
        seen.append(dims)
        return Slopes(dims)

    check_scheme(make, only="shift", sizes=Sizes(dim=18, heads=2, kv_heads=1, head_dim=10, max_seq_len=40))
    assert {(d.dim, d.heads, d.kv_heads, d.head_dim, d.max_seq_len) for d in seen} == {(18, 2, 1, 10, 40)}
    assert {d.causal for d in seen} == {True, False}


def test_the_random_state_is_unchanged():
    torch.manual_seed(3)
    want = torch.rand(2)
    torch.manual_seed(3)
    check_scheme("cope", only="cached_equals_full")
    assert torch.equal(torch.rand(2), want)


def test_a_crash_of_the_scheme_is_a_failure_and_not_an_error():
    class Crashes(Slopes):
        def of_distance(self, distance: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("out of order")

    report = check_scheme(Crashes, only=QUICK, strict=False)
    assert report["shift"].verdict == "fail"
    assert report["shift"].detail == "RuntimeError: out of order"
    assert report["no_buffers"].verdict == "pass"


def test_a_newly_registered_scheme_is_a_case_at_once(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("x_positional.testing.cases.REGISTRY", dict(REGISTRY))
    before = set(cases())

    class Novel(SchemeConfig):
        kind: Literal["novel"] = "novel"

        def build(self, dims: Dims) -> PositionScheme:
            return Slopes(dims)

    added = REGISTRY.pop("novel")
    monkeypatch.setitem(cases.__globals__["REGISTRY"], "novel", added)
    assert set(cases()) - before == {"novel"}


def page_tables() -> dict[str, list[list[str]]]:
    """Heading -> the rows of every table under it, as cells."""
    found: dict[str, list[list[str]]] = {}
    title = ""
    for line in (ROOT / "docs/conformance.md").read_text(encoding="utf-8").splitlines():
        if line.startswith("## "):
            title = line[3:]
        elif line.startswith("| "):
            found.setdefault(title, []).append([cell.strip() for cell in line.strip("|").split("|")])
    return found


def test_the_page_covers_the_registry_the_chains_and_the_variants_and_nothing_fails():
    tables = page_tables()
    expected = {
        "Every registered scheme": set(REGISTRY) - {"custom"},
        "Several at once": {" + ".join(map(str, chain)) for chain in CHAINS},
        "Variants": set(VARIANTS),
    }
    for title, names in expected.items():
        heads = [row for row in tables[title] if row[0] == "scheme"]
        rows = [row for row in tables[title] if row[0] != "scheme"]
        assert [check for head in heads for check in head[1:]] == [f"`{check}`" for check in CHECKS]
        assert {row[0] for row in rows} == names, "run: python docs/generate/conformance.py"
        assert len(rows) == len(heads) * len(names)
        measured = [cell for row in rows for cell in row[1:]]
        assert all(cell in ("ok", "-", "0") or float(cell) <= CEILING for cell in measured)


def test_the_page_describes_every_check():
    generator = runpy.run_path(str(ROOT / "docs/generate/conformance.py"))
    rows = {row[0]: row[1] for row in page_tables()["The checks"][1:]}
    assert rows == {f"`{check}`": generator["sentence"](check) for check in CHECKS}, (
        "run: python docs/generate/conformance.py"
    )
