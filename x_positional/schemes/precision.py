"""The dtypes that intermediate results are computed in."""

import torch
from torch import Tensor


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """float32 or wider: for scores, probabilities and sums."""
    return torch.promote_types(dtype, torch.float32)


def widened(x: Tensor) -> Tensor:
    """In float32 or wider."""
    return x.to(wide_dtype(x.dtype))


def exact_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on devices without float64: for angles and long sums, whose rounding grows with the length."""
    return torch.float32 if device.type == "mps" else torch.float64
