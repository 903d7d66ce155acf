"""Forget gates: a decay per token that depends on its content.

T tokens, H heads, M model dim.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.base import Dims
from x_positional.schemes.gates import GatedScheme
from x_positional.schemes.precision import widened
from x_positional.schemes.registry import SchemeConfig


class ForgettingBias(GatedScheme):
    """bias = sum_{t=n+1..m} log f_t, f_t = sigmoid(w_h . x_t + b_h) (Lin et al. 2025, arXiv:2503.02130).

    Args:
        dim: M.
        heads: H.
        bias_init: the initial b_h; 5 forgets little at the start.
    """

    def __init__(self, dim: int, heads: int, bias_init: float = 5.0):
        super().__init__()
        self.gate = nn.Linear(dim, heads)
        nn.init.constant_(self.gate.bias, bias_init)

    def log_gates(self, x: Tensor) -> Tensor:
        return F.logsigmoid(widened(self.gate(x)))


class Forgetting(SchemeConfig):
    """`position="forgetting"`."""

    kind: Literal["forgetting"] = "forgetting"
    bias_init: float = Field(default=5.0)
    """The initial bias of the gates; 5 forgets little at the start."""
    summary: ClassVar[str] = "a learned forget gate per token and head (data-dependent ALiBi)"
    paper: ClassVar[str] = "Lin et al. 2025, arXiv:2503.02130"

    def build(self, dims: Dims) -> ForgettingBias:
        return ForgettingBias(dims.dim, dims.heads, self.bias_init)
