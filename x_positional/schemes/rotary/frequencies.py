"""Inverse frequencies and angles, precise at any position, independent of the dtype of the model.

B batch, T tokens, F frequencies.
"""

from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from x_positional.schemes.precision import exact_dtype

Number: TypeAlias = float | Tensor
"""A number, or one per token: [B|1 T|1]."""


class Frequencies(NamedTuple):
    """The frequency of each pair, and the factor of cosines and sines."""

    inv_freq: Tensor
    """[F] radians per position; [B|1 T|1 F] if they differ between tokens."""
    attention_factor: Number = 1.0
    """What cosines and sines of queries and keys are multiplied by; a tensor is [B|1 T|1 1]."""


def inverse_frequencies(width: int, theta: Number, device: torch.device, count: int | None = None) -> Tensor:
    """[F] theta^(-2i/width), i = 0 .. ceil(width/2)-1 (or count-1). Su et al. 2021, arXiv:2104.09864, eq. 15.

    One theta per token, [B|1 T|1], gives [B|1 T|1 F].
    """
    pairs = (width + 1) // 2 if count is None else count
    exponent = torch.arange(pairs, device=device, dtype=exact_dtype(device)) * (2.0 / width)
    return (theta[..., None] if isinstance(theta, Tensor) else theta) ** -exponent


def angles(positions: Tensor, inv_freq: Tensor) -> Tensor:
    """[B|1 T], [F] or [B|1 T|1 F] -> [B|1 T F] radians, computed in float64: float32 is off by 4e-2 at position 2^20."""
    return positions[..., None].to(inv_freq.dtype) * inv_freq
