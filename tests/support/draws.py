"""How often the random parts of the tests draw: a sample by default, everything under `make test-all`."""

import itertools
import os
from collections.abc import Sequence
from typing import Any, TypeVar

T = TypeVar("T")
ALL_DRAWS = "X_POSITIONAL_ALL_DRAWS"
"""The environment variable that `make test-all` sets to 1."""


def draws(few: T, every: T) -> T:
    """`few`, or `every` where all draws are asked for."""
    return every if os.environ.get(ALL_DRAWS) == "1" else few


def in_turns(*axes: Sequence[Any]) -> list[tuple[Any, ...]]:
    """The grid of these values with all draws. By default each combination of the other axes has one value of the last, in turns:
    so all pairs of values still occur, where each axis is long enough."""
    grid = itertools.product(*(enumerate(axis) for axis in axes))
    few = [point for point in grid if draws(sum(place for place, _ in point) % len(axes[-1]) == 0, True)]
    return [tuple(value for _, value in point) for point in few]
