"""CABLE: a bias of distance whose length per token depends on the token's content.

T tokens, H heads, M model dim.
"""

from typing import ClassVar, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from x_positional.schemes.base import Dims
from x_positional.schemes.gates import GatedScheme
from x_positional.schemes.initial import small_normal
from x_positional.schemes.precision import widened
from x_positional.schemes.registry import SchemeConfig


class CableBias(GatedScheme):
    """bias = p_m - p_n, p_t = -sum_{s<=t} softplus(w_h . x_s + b_h) (Veisi et al. 2025, arXiv:2503.08067, as the authors' code of
    March 2025 computes it). Version 3 of the paper has ReLU in place of softplus (equations 2 to 5, CABLE_NW) and multiplies the
    bias by softplus(v_h . x_m), a weight per query (equations 6 and 7, CABLE); this scheme has neither.

    -softplus(z) is log sigmoid(-z), so these are forget gates with the sign of w and b reversed. They differ in the initial
    values: here about ln 2 per token, in every head.

    Args:
        dim: M.
        heads: H.
    """

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.to_bias = nn.Linear(dim, heads)
        self.to_bias.register_parameter("weight", nn.Parameter(small_normal(heads, dim)))
        nn.init.zeros_(self.to_bias.bias)

    def log_gates(self, x: Tensor) -> Tensor:
        return -F.softplus(widened(self.to_bias(x)))


class Cable(SchemeConfig):
    """`position="cable"`."""

    kind: Literal["cable"] = "cable"
    summary: ClassVar[str] = "a context-aware ALiBi: each token adds its own learned distance"
    paper: ClassVar[str] = "Veisi et al. 2025, arXiv:2503.08067"

    def build(self, dims: Dims) -> CableBias:
        return CableBias(dims.dim, dims.heads)
