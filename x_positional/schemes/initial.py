"""Initial values of parameters. On the meta device, which has none, arithmetic is left out: it would import torch's compiler."""

from collections.abc import Sequence

import torch
from torch import Tensor


def small_normal(rows: int, columns: int) -> Tensor:
    """[rows, columns] from a normal distribution with a standard deviation of 0.02."""
    empty = torch.empty(rows, columns)
    return empty if empty.is_meta else torch.randn(rows, columns) * 0.02


def logarithms(numbers: Sequence[float]) -> Tensor:
    """Natural logarithms in the default dtype."""
    values = torch.tensor(numbers)
    return values if values.is_meta else values.log()


def log_uniform(count: int, lowest: float, highest: float) -> Tensor:
    """[count] natural logarithms of numbers that are uniform from 0 to `highest`, and at least `lowest`."""
    drawn = torch.rand(count)
    return drawn if drawn.is_meta else (drawn * highest).clamp(min=lowest).log()
