"""Keys and values as 8-bit integers: a cache of a quarter of the bytes of float32.

Each head of each token has a scale s = max |x| / 127, so that |x - s q| <= s / 2 for every entry. A score q k then moves by at most
s / 2 times the sum of |q|, and an output by at most half a step of the values.

B batch, T tokens, G key/value heads, D head dim.
"""

import torch
from torch import Tensor

STEPS = 127
"""The largest integer. -128 is left out, so that x and -x are equally precise."""


def to_integers(x: Tensor) -> tuple[Tensor, Tensor]:
    """[B G T D] -> int8 [B G T D] and scales [B G T 1], in float32 or wider. NaN and infinity stay so in the scale."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = wide.abs().amax(-1, keepdim=True) / STEPS
    scale = torch.where(scale == 0, 1.0, scale)
    return (wide / scale).round().clamp(-STEPS, STEPS).to(torch.int8), scale


def to_floats(integers: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """What the integers stand for, in `dtype`."""
    return (integers * scale).to(dtype)
