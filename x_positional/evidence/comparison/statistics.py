"""Means, intervals and rank correlations, each interval by a named method."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from x_positional.errors import ArgumentError
from x_positional.evidence.evaluation.usable import mean_and_error

LEVEL = 0.95
T_METHOD = "Student's t over seeds, 95 %"
PAIRED_METHOD = "Student's t over the differences paired by seed, 95 %"
WINDOWS_METHOD = "Student's t over windows, 95 %"
PAIRED_WINDOWS_METHOD = "Student's t over the differences paired by window, 95 %"
RANK_METHOD = "Spearman's rank correlation; 95 % interval by Fisher's z with the variance of Bonett and Wright (2000)"


@dataclass(frozen=True)
class Interval:
    """A mean with its interval."""

    mean: float
    count: int
    """Values averaged."""
    half: float | None
    """Half the width of the interval; None for a single value."""

    @property
    def low(self) -> float | None:
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        return None if self.half is None else self.mean + self.half

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 is outside of the interval; False without one."""
        return self.half is not None and abs(self.mean) > self.half


@dataclass(frozen=True)
class Correlation:
    """A correlation with its interval."""

    value: float
    count: int
    """Pairs."""
    low: float | None
    """None for fewer than four pairs, or where the value is 1 or -1."""
    high: float | None


def t_interval(values: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of independent values, with the interval of Student's t. Raises ArgumentError for no values."""
    if not values:
        raise ArgumentError("no values, so there is no mean; give at least one")
    count, (mean, error) = len(values), mean_and_error(values)
    if error is None:
        return Interval(mean, count, None)
    return Interval(mean, count, t_quantile(0.5 + level / 2, count - 1) * error)


def paired_interval(values: Sequence[float], reference: Sequence[float], level: float = LEVEL) -> Interval:
    """The mean of values[i] - reference[i], with the interval of Student's t. Raises ArgumentError where lengths differ."""
    if len(values) != len(reference):
        raise ArgumentError(f"{len(values)} values and {len(reference)} references cannot be paired")
    return t_interval([a - b for a, b in zip(values, reference, strict=True)], level)


def t_quantile(probability: float, freedom: int) -> float:
    """The quantile of Student's t, by bisection of its distribution.

    Args:
        probability: Above 0.5 and below 1.
        freedom: Degrees of freedom, at least 1.
    """
    if not 0.5 < probability < 1.0 or freedom < 1:
        raise ArgumentError(f"no t quantile for probability={probability} and freedom={freedom}")
    low, high = 0.0, 1.0
    while t_distribution(high, freedom) < probability:
        low, high = high, 2 * high
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (middle, high) if t_distribution(middle, freedom) < probability else (low, middle)
    return high


def t_distribution(t: float, freedom: int) -> float:
    """P(T <= t) for whole degrees of freedom: a finite sum (Abramowitz and Stegun 1964, 26.7.3 and 26.7.4)."""
    angle = math.atan2(t, math.sqrt(freedom))
    sine, cosine = math.sin(angle), math.cos(angle)
    even = freedom % 2 == 0
    term = 1.0 if even else cosine
    total = 0.0 if freedom == 1 else term
    for k in range(2 if even else 3, freedom - 1, 2):
        term *= cosine * cosine * ((k - 1) / k)
        total += term
    within = sine * total if even else 2 / math.pi * (angle + sine * total)
    return 0.5 + within / 2


def spearman(one: Sequence[float], other: Sequence[float], level: float = LEVEL) -> Correlation:
    """Spearman's rank correlation, ties with their mean rank; the interval is `RANK_METHOD`.

    Raises:
        ArgumentError: The lengths differ, there are fewer than two pairs, or all values of one side are equal.
    """
    if len(one) != len(other) or len(one) < 2:
        raise ArgumentError(f"{len(one)} and {len(other)} values cannot be correlated; give at least two pairs")
    if len(set(one)) == 1 or len(set(other)) == 1:
        raise ArgumentError("all values of one side are equal, so they have no ranking")
    count, value = len(one), statistics.correlation(ranks(one), ranks(other))
    value = max(-1.0, min(1.0, value))
    if count < 4 or abs(value) > 1.0 - 1e-12:
        return Correlation(value, count, None, None)
    z = statistics.NormalDist().inv_cdf(0.5 + level / 2)
    half = z * math.sqrt((1 + value**2 / 2) / (count - 3))
    return Correlation(value, count, math.tanh(math.atanh(value) - half), math.tanh(math.atanh(value) + half))


def ranks(values: Sequence[float]) -> list[float]:
    """The rank of each value from 1, equal values with the mean of their ranks."""
    order = sorted(range(len(values)), key=lambda index: values[index])
    found = [0.0] * len(values)
    place = 0
    for _, group in groupby(order, key=lambda index: values[index]):
        tied = list(group)
        for index in tied:
            found[index] = place + (len(tied) + 1) / 2
        place += len(tied)
    return found
