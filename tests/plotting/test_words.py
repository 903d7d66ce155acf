"""Numbers and counts in prose."""

import math

import pytest

from x_positional.errors import counted
from x_positional.plotting.words import number


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (3.53e4, "35,300"),
        (35_349, "35,300"),
        (12_345_678, "12,300,000"),
        (999.9, "1,000"),
        (1.849, "1.85"),
        (2.0, "2"),
        (-0.08203, "-0.082"),
        (0.000419, "0.000419"),
        (4.2e-9, "4.2 × 10⁻⁹"),
        (0.0, "0"),
        (-1e-300, "-1 × 10⁻³⁰⁰"),
        (math.inf, "∞"),
        (-math.inf, "-∞"),
        (math.nan, "not a number"),
    ],
)
def test_numbers_are_readable(value: float, text: str):
    assert number(value) == text


def test_zeros_at_the_end_are_kept_for_numbers_below_each_other():
    assert number(2.59, 4, zeros=True) == "2.590"
    assert number(1234.0, 3, zeros=True) == "1,230"


def test_counts_are_singular_and_plural():
    assert counted(1, "key head") == "1 key head"
    assert counted(2, "key head") == "2 key heads"
    assert counted(2000, "entry", "entries") == "2,000 entries"
