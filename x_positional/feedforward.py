"""The feedforward layer: plain or gated, any of a few activations. [B T M] -> [B T M]."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ActivationKind = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu2"]


def _relu2(x: Tensor) -> Tensor:
    """relu(x)^2 (So et al. 2021, Primer, arXiv:2109.08668)."""
    return F.relu(x).square()


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x) (Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": F.gelu, "gelu_tanh": _gelu_tanh, "quick_gelu": _quick_gelu, "silu": F.silu, "relu": F.relu, "relu2": _relu2,
}  # fmt: skip


class FeedForward(nn.Module):
    """down(act(up(x))), or with glu down(up(x) * act(gate(x))) (Shazeer 2020, arXiv:2002.05202).

    inner: width between the two projections. gate_bias: bias of the gated projection alone; None follows `bias`.
    """

    def __init__(
        self, dim: int, inner: int, activation: ActivationKind = "gelu", glu: bool = False, bias: bool = True,
        gate_bias: bool | None = None, dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        self.glu, self.activation = glu, ACTIVATIONS[activation]
        up_bias = bias if gate_bias is None or not glu else gate_bias
        self.up = nn.Linear(dim, inner * 2 if glu else inner, bias=up_bias)
        self.down = nn.Linear(inner, dim, bias=bias)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(x)
        if self.glu:
            value, gate = x.chunk(2, dim=-1)
            x = value * self.activation(gate)
        else:
            x = self.activation(x)
        return self.down(self.dropout(x))
