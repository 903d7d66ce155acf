"""`x-positional eval --tasks`: names are checked before anything is measured."""

import pytest

from x_positional.cli.evidence.evaluate import EvalOptions, _tasks
from x_positional.errors import UserError


def test_names_are_read():
    assert _tasks(EvalOptions()) == ()
    assert _tasks(EvalOptions(tasks="copy,repeat")) == ("copy", "repeat")


def test_unknown_names_are_refused_together():
    with pytest.raises(UserError, match=r"unknown task 'copies'.*unknown task 'sorted'"):
        _tasks(EvalOptions(tasks="copies,copy,sorted"))
