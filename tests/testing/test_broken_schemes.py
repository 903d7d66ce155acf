"""Every check of the contract suite can fail: schemes that are wrong on purpose are rejected, for the right reason."""

import pytest
import torch

from tests.support.broken_schemes import BROKEN, BrokenCase
from x_positional.testing import CHECKS, Sizes
from x_positional.testing.subject import Subject
from x_positional.testing.suite import run_check


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: f"{case.scheme.__name__}-{case.check}")
def test_a_broken_scheme_is_rejected(case: BrokenCase):
    outcome = run_check(case.check, Subject(case.scheme, Sizes(), torch.device("cpu")))
    assert outcome.verdict == "fail"
    assert case.says in outcome.detail


def test_every_check_rejects_something():
    assert {case.check for case in BROKEN} == set(CHECKS)
