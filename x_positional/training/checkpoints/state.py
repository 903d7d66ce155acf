"""Optimizer state to named tensors and back, so that it can be kept in safetensors."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from x_positional.errors import UserError, listed

_PARTS = ("exp_avg", "exp_avg_sq", "step")


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """`parameter/part` -> tensor for the two moments and the step count of every trainable parameter."""
    tensors = {}
    for name, parameter in _trainable(model):
        state = optimizer.state[parameter]
        for part in _PARTS:
            tensors[f"{name}/{part}"] = state[part].detach().clone().contiguous().cpu()
    return tensors


def load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], source: Path
) -> None:
    """Put the tensors back; raises `UserError` when they belong to other parameters."""
    expected = {f"{name}/{part}" for name, _ in _trainable(model) for part in _PARTS}
    problems = [f"{name} is missing" for name in sorted(expected - tensors.keys())]
    problems += [f"{name} belongs to no parameter" for name in sorted(tensors.keys() - expected)]
    if problems:
        raise UserError(listed(f"the optimizer state of {source} does not fit this model:", problems[:8]))
    for name, parameter in _trainable(model):
        moments = {part: tensors[f"{name}/{part}"] for part in _PARTS}
        optimizer.state[parameter] = {
            part: value.to(parameter.device, copy=True) if part == "step" else value.to(parameter, copy=True)
            for part, value in moments.items()
        }


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
