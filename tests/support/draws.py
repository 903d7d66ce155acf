"""How often the random parts of the tests draw: a sample by default, everything under `make test-all`."""

import os
from typing import TypeVar

T = TypeVar("T")
ALL_DRAWS = "X_POSITIONAL_ALL_DRAWS"
"""The environment variable that `make test-all` sets to 1."""


def draws(few: T, every: T) -> T:
    """`few`, or `every` where all draws are asked for."""
    return every if os.environ.get(ALL_DRAWS) == "1" else few
