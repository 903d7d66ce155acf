"""How far apart two float32 results of the same values may be in the tests."""

import math

import torch
from torch import Tensor

from x_positional.testing.expect import SAFETY, UNIT

TERMS = 1024
"""Additions one after the other in a small model: two layers of eight sums (projections, scores, average over values,
feedforward) over at most 64 channels or tokens."""


def rounding(want: Tensor, terms: int = TERMS) -> float:
    """The largest difference that rounding explains between two float32 computations of `want`.

    Each of the two is off by about u sqrt(terms) times the largest value, with u = 2^-24 (see
    `x_positional.testing.expect.rounding_bound`), and the bound is 4 times that: 8e-6 of the largest value for a small model.
    The sums of a small value have terms as large as those of a large one, so all values share one bound.
    """
    return SAFETY * UNIT * math.sqrt(terms) * want.detach().abs().max().item()


def assert_same(got: Tensor, want: Tensor, terms: int = TERMS) -> None:
    """Equal but for the rounding of float32."""
    torch.testing.assert_close(got, want, atol=rounding(want, terms), rtol=0)
