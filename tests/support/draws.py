"""How often the random parts of the tests draw: a sample by default, everything under `make test-all`."""

import os

ALL_DRAWS = "X_POSITIONAL_ALL_DRAWS"
"""The environment variable that `make test-all` sets to 1."""


def draws(few: int, every: int) -> int:
    """`few`, or `every` where all draws are asked for."""
    return every if os.environ.get(ALL_DRAWS) == "1" else few
