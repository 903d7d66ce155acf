"""Every check of the contract suite can fail: deliberately broken schemes are rejected, with the right reason."""

import pytest
import torch

from tests.support.broken_schemes import BROKEN, BrokenCase
from x_positional.attention.cache import KVCache
from x_positional.testing import CHECKS, Sizes
from x_positional.testing.subject import Subject
from x_positional.testing.suite import run_check


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: f"{case.scheme.__name__}-{case.check}")
def test_a_broken_scheme_is_rejected(case: BrokenCase):
    result = run_check(case.check, Subject(case.scheme, Sizes(), torch.device("cpu")))
    assert result.verdict == "fail"
    assert case.message in result.detail
    if result.margin is not None:  # so that no rounding, on any machine, decides between right and wrong
        assert result.margin >= 10


def test_beams_of_a_cache_that_keeps_the_order_of_its_rows_are_rejected(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(KVCache, "follow_rows", lambda *_: None)
    result = run_check("beams", Subject("rope", Sizes(), torch.device("cpu")))
    assert result.verdict == "fail"
    assert "beam search found" in result.detail


def test_every_check_rejects_something():
    assert {case.check for case in BROKEN} == set(CHECKS)
