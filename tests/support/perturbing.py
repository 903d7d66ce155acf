"""Parameters moved off their start."""

import torch
from torch import nn


def perturb(model: nn.Module, seed: int = 0) -> None:
    """Add 0.1 * randn to every parameter, so that no norm, bias or table has a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
