"""The feedforward layer: plain or gated, any of a few activations. [B T M] -> [B T M]."""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from x_positional.modules.dropout import Dropout
from x_positional.modules.plain import linear

FixedActivationKind = Literal["gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "relu2"]
ActivationKind = Literal[FixedActivationKind, "xielu"]


def _relu2(x: Tensor) -> Tensor:
    """relu(x)^2 (So et al. 2021, Primer, arXiv:2109.08668)."""
    return F.relu(x).square()


def _gelu_tanh(x: Tensor) -> Tensor:
    return F.gelu(x, approximate="tanh")


def _quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x) (Hendrycks & Gimpel 2016, arXiv:1606.08415, section 2)."""
    return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {
    "gelu": F.gelu,
    "gelu_tanh": _gelu_tanh,
    "quick_gelu": _quick_gelu,
    "silu": F.silu,
    "relu": F.relu,
    "relu2": _relu2,
}


class XIELU(nn.Module):
    """p x^2 + beta x above 0, n (exp(min(x, eps)) - 1 - x) + beta x below, with two learned slopes p = softplus(alpha_p) and
    n = beta + softplus(alpha_n) (Huang & Schlag 2024, arXiv:2411.13010).

    beta and eps have no gradient; checkpoints contain them.
    """

    def __init__(self, slope: float = 0.8, beta: float = 0.5, eps: float = -1e-6):
        super().__init__()
        self.alpha_p = nn.Parameter(torch.full((1,), slope).expm1().log())
        self.alpha_n = nn.Parameter(torch.full((1,), slope - beta).expm1().log())
        self.beta = nn.Parameter(torch.full((1,), beta), requires_grad=False)
        self.eps = nn.Parameter(torch.full((1,), eps), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        beta, eps = self.beta.to(x.dtype), self.eps.to(x.dtype)
        above, below = F.softplus(self.alpha_p).to(x.dtype), beta + F.softplus(self.alpha_n).to(x.dtype)
        return torch.where(x > 0, above * x * x, (torch.expm1(torch.minimum(x, eps)) - x) * below) + beta * x


LEARNED = {"xielu": XIELU}
"""Activations with parameters of their own, which one feedforward has."""


@dataclass(frozen=True, kw_only=True)
class GatedActivation:
    """Between the two projections: act(x), or with glu (value + shift) * act(gate), where values and gates are concatenated
    (Shazeer 2020, arXiv:2002.05202)."""

    activation: ActivationKind = "gelu"
    glu: bool = False
    beta: float = 1.0
    """silu becomes x * sigmoid(beta x) (Ramachandran et al. 2017, arXiv:1710.05941)."""
    clamp: float | None = None
    """Upper bound of gates; values are held between -clamp and clamp (gpt-oss)."""
    shift: float = 0.0
    """Added to the values (gpt-oss)."""

    def up_width(self, width: int) -> int:
        """Rows of the first projection, for `width` channels after the activation."""
        return 2 * width if self.glu else width

    def act(self, x: Tensor) -> Tensor:
        """[... F] -> [... F]."""
        swish = self.activation == "silu" and self.beta != 1.0
        return x * torch.sigmoid(self.beta * x) if swish else ACTIVATIONS[self.activation](x)

    def __call__(self, x: Tensor) -> Tensor:
        """[... F] or, with glu, [... 2F] -> [... F]."""
        if not self.glu:
            return self.act(x)
        value, gate = x.chunk(2, dim=-1)
        if self.clamp is not None:
            value, gate = value.clamp(-self.clamp, self.clamp), gate.clamp(max=self.clamp)
        return (value + self.shift if self.shift else value) * self.act(gate)


class FeedForward(nn.Module):
    """down(activation(up(x))).

    Args:
        dim: M.
        width: F, channels after the activation.
        activation: between the two projections.
        bias: of both projections.
        gate_bias: bias of a gated first projection alone; None follows `bias`.
        dropout: before the second projection.
    """

    def __init__(
        self,
        dim: int,
        width: int,
        activation: GatedActivation,
        bias: bool = True,
        gate_bias: bool | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.activation = activation
        learned = LEARNED.get(activation.activation)
        self.learned = None if learned is None else learned()
        up_bias = bias if gate_bias is None or not activation.glu else gate_bias
        self.up = nn.Linear(dim, activation.up_width(width), bias=up_bias)
        self.down = nn.Linear(width, dim, bias=bias)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        activation = self.activation if self.learned is None else self.learned
        return linear(self.down, self.dropout(activation(linear(self.up, x))))
