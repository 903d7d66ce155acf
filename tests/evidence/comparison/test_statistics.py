"""Intervals and correlations against tabulated values and plain definitions."""

import math
import random
import statistics

import pytest

from x_positional.errors import ArgumentError
from x_positional.evidence.comparison.statistics import (
    paired_interval,
    ranks,
    spearman,
    t_distribution,
    t_interval,
    t_quantile,
)

TABLE = {  # two-sided 95 % and 99 %, NIST/SEMATECH e-Handbook, section 1.3.6.7.2
    1: (12.706, 63.657),
    2: (4.303, 9.925),
    3: (3.182, 5.841),
    4: (2.776, 4.604),
    5: (2.571, 4.032),
    9: (2.262, 3.250),
    30: (2.042, 2.750),
    100: (1.984, 2.626),
}


@pytest.mark.parametrize("freedom", TABLE)
def test_quantiles_are_those_of_the_table(freedom: int):
    both = t_quantile(0.975, freedom), t_quantile(0.995, freedom)
    assert both == pytest.approx(TABLE[freedom], abs=6e-4)


@pytest.mark.parametrize("freedom", [1, 2, 3, 6, 7])
def test_the_distribution_is_the_integral_of_the_density(freedom: int):
    gamma = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    cuts, end = 4000, 1.7
    points = [end * i / cuts for i in range(cuts + 1)]
    density = [gamma * (1 + t * t / freedom) ** (-(freedom + 1) / 2) for t in points]
    simpson = end / cuts / 3 * sum(d * (1 if i in (0, cuts) else 4 if i % 2 else 2) for i, d in enumerate(density))
    assert t_distribution(end, freedom) == pytest.approx(0.5 + simpson, abs=1e-12)
    assert t_distribution(-end, freedom) == pytest.approx(0.5 - simpson, abs=1e-12)


def test_an_interval_by_hand():
    found = t_interval([1.0, 2.0, 4.0])
    half = 4.302653 * math.sqrt(((4 / 3) ** 2 + (1 / 3) ** 2 + (5 / 3) ** 2) / 2 / 3)
    assert (found.mean, found.half) == pytest.approx((7 / 3, half), rel=1e-6)
    assert found.low == pytest.approx(7 / 3 - half, rel=1e-6)
    assert not found.excludes_zero


def test_pairing_removes_what_the_seeds_share():
    values, reference = [10.1, 20.2, 30.0], [10.0, 20.0, 29.9]
    assert paired_interval(values, reference).excludes_zero is False
    assert paired_interval([v + 1 for v in values], reference).excludes_zero is True
    assert (t_interval(values).half or 0.0) > 20.0


def test_one_value_has_no_interval():
    found = t_interval([3.0])
    assert (found.half, found.low, found.high, found.excludes_zero) == (None, None, None, False)


def test_the_interval_holds_the_mean_as_often_as_it_claims():
    draw, hits = random.Random(0), 0
    for _ in range(2000):
        found = t_interval([draw.gauss(0.0, 1.0) for _ in range(3)])
        hits += not found.excludes_zero
    assert hits / 2000 == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 2000))


def test_ranks_share_ties():
    assert ranks([3.0, 1.0, 3.0, 2.0]) == [3.5, 1.0, 3.5, 2.0]


def test_spearman_is_one_minus_the_squared_differences():
    draw = random.Random(1)
    one, other = [draw.random() for _ in range(9)], [draw.random() for _ in range(9)]
    squares = sum((a - b) ** 2 for a, b in zip(ranks(one), ranks(other), strict=True))
    found = spearman(one, other)
    assert found.value == pytest.approx(1 - 6 * squares / (9 * 80))
    half = statistics.NormalDist().inv_cdf(0.975) * math.sqrt((1 + found.value**2 / 2) / 6)
    assert found.low == pytest.approx(math.tanh(math.atanh(found.value) - half))
    assert spearman(one, [math.exp(x) for x in one]).value == pytest.approx(1.0)
    assert spearman(one, [-x for x in one]).low is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: t_interval([]), "no values"),
        (lambda: t_quantile(0.4, 3), "no t quantile"),
        (lambda: paired_interval([1.0], []), "cannot be paired"),
        (lambda: spearman([1.0], [1.0]), "at least two pairs"),
        (lambda: spearman([1.0, 1.0], [1.0, 2.0]), "no ranking"),
    ],
)
def test_what_has_no_answer_is_refused(call, message: str):
    with pytest.raises(ArgumentError, match=message):
        call()
