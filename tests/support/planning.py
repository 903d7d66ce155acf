"""The plan of one forward pass, for tests that look at its tables and contexts."""

import torch
from torch import Tensor

from x_positional.attention.plan import PassPlan
from x_positional.attention.planner import plan_pass
from x_positional.modules.stack import AttentionLayers


def plan_of(
    layers: AttentionLayers, length: int, dtype: torch.dtype = torch.float32, positions: Tensor | None = None
) -> PassPlan:
    """Of one row of `length` new tokens without a cache."""
    layout = layers.layout(1, length, torch.device("cpu"), positions=positions)
    return plan_pass(layers.kinds, layers.dims, layout, 1, dtype)
