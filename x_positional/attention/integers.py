"""Rows of numbers as 8-bit integers with one scale a row: of matrices, and of cached keys and values.

A row x is stored as integers q in [-127, 127] and a scale s: q = round(x / s) and s = max |x| / 127, so that |x - s q| <= s / 2
for every entry.

N rows of K entries.
"""

import torch
from torch import Tensor

from x_positional.schemes.precision import wide_dtype

STEPS = 127
"""The largest integer. -128 is left out, so that x and -x are equally precise."""


def quantize_rows(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [... N K] -> int8 [... N K] and their scales [... N], in the dtype of the rows."""
    if weight.is_meta:
        return torch.empty_like(weight, dtype=torch.int8), weight.new_empty(weight.shape[:-1])
    largest, wide = weight.detach().abs().amax(-1), wide_dtype(weight.dtype)
    scale = largest / STEPS
    # a scale that was rounded down, as subnormal numbers are, may leave the largest entry further away than half a step
    short = scale.to(wide) * (STEPS + 0.5) < largest.to(wide)
    scale = torch.where(short, torch.nextafter(scale, torch.full_like(scale, torch.inf)), scale)
    scale = torch.where(scale == 0, 1.0, scale)  # NaN and infinity stay so
    steps = weight.detach().to(wide) / scale.to(wide)[..., None]
    return steps.round_().clamp_(-STEPS, STEPS).to(torch.int8), scale


def dequantize_rows(weight: Tensor, scale: Tensor) -> Tensor:
    """int8 [... N K] and scales [... N] -> the rows they stand for, in the dtype of the scales."""
    return weight.to(scale.dtype) * scale[..., None]
