"""AdamW with weight decay on linear maps only, and the learning rate schedule."""

import math

import torch
from torch import nn

from x_positional.modules.experts import Experts, Router
from x_positional.training.config import OptimizerConfig

LINEAR_WEIGHTS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("weight",),
    Router: ("weight",),
    Experts: ("up", "down"),
}
"""Linear maps, and the names of their weights."""


def decayed_parameters(model: nn.Module) -> set[str]:
    """Names of the weights of linear maps, including the stacked weights of experts.

    Norm gains, biases, slopes, bias tables and embeddings (even if tied to the output) do not decay: pulling them
    towards zero changes the function without regularizing a map.
    """
    return {
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        for kind, names in LINEAR_WEIGHTS.items()
        if isinstance(module, kind)
        for name in names
    }


def make_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW over all trainable parameters, in two groups: with and without weight decay."""
    decayed = decayed_parameters(model)
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for name, p in trainable if name in decayed], "weight_decay": config.weight_decay},
        {"params": [p for name, p in trainable if name not in decayed], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=config.lr, betas=config.betas, eps=config.eps, fused=True
    )


def learning_rate(config: OptimizerConfig, step: int, steps: int) -> float:
    """Learning rate of step `step` (0-based) of `steps`: linear warm-up, then cosine decay to the last step."""
    if step < config.warmup_steps:
        return config.lr * (step + 1) / config.warmup_steps
    span = max(1, steps - 1 - config.warmup_steps)
    done = min(1.0, (step - config.warmup_steps) / span)
    floor = config.final_lr_fraction
    return config.lr * (floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * done)))
