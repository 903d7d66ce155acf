"""Inverse frequencies and angles, precise at any position and whatever dtype the model has.

B batch, T tokens, F frequencies.
"""

import torch
from torch import Tensor


def wide_dtype(device: torch.device) -> torch.dtype:
    """float64, except on devices that have none."""
    return torch.float32 if device.type == "mps" else torch.float64


def inverse_frequencies(width: int, theta: float, device: torch.device, count: int | None = None) -> Tensor:
    """[F] theta^(-2i/width), i = 0 .. ceil(width/2)-1 (or count-1). Su et al. 2021, arXiv:2104.09864, eq. 15."""
    pairs = (width + 1) // 2 if count is None else count
    exponent = torch.arange(pairs, device=device, dtype=wide_dtype(device)) * (2.0 / width)
    return theta**-exponent


def angles(positions: Tensor, inv_freq: Tensor) -> Tensor:
    """[B|1 T], [F] -> [B|1 T F] radians, multiplied in float64: float32 is off by 4e-2 at position 2^20."""
    return positions[..., None].to(inv_freq.dtype) * inv_freq
