"""Positions with several axes, and the sizes of a model that takes them."""

import torch
from torch import Tensor

from x_positional.schemes.base import Dims

HEADS, HEAD_DIM, T = 3, 12, 9


def coordinates(axes: int, low: int = 0, high: int = 40, seed: int = 4) -> Tensor:
    """[2 T A] whole numbers in no order."""
    return torch.randint(low, high, (2, T, axes), generator=torch.Generator().manual_seed(seed))


def dims(head_dim: int = HEAD_DIM) -> Dims:
    return Dims(dim=24, heads=HEADS, kv_heads=HEADS, head_dim=head_dim, causal=False, embed_dim=24)
