"""Shaw's relative keys: a learned vector per distance is added to the key.

B batch, T query tokens, S key tokens, H heads, D head dim.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.base import AttentionContext, Bias, Dims, LayerView, PositionScheme
from x_positional.schemes.initial import small_normal
from x_positional.schemes.pairs import PairBias
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.terms import Rebuilt
from x_positional.schemes.values import MAX_ROWS


@dataclass(frozen=True)
class Clipped(Rebuilt):
    """int64 distances (query - key) -> rows of the table; row 0 is the farthest to the left."""

    nearest: int
    """The smallest distance that has a row."""
    farthest: int
    """The largest one."""

    def __call__(self, distance: Tensor) -> Tensor:
        return self.farthest - distance.clamp(self.nearest, self.farthest)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.nearest, self.farthest


class ShawBias(PositionScheme):
    """score = scale * q_i . (k_j + a[clip(j - i)]), one row of a per distance up to max_distance to either side, shared by the
    heads of a layer (Shaw et al. 2018, arXiv:1803.02155, equation 4). Keys alone: the values' vectors, of equation 3, would need
    the probabilities that fused attention does not return.

    Args:
        head_dim: D.
        causal: without keys to the right, a has max_distance + 1 rows in place of 2 max_distance + 1.
        max_distance: distances beyond it share the last row.
    """

    continuous = False
    uses_positions = True
    per_layer = True

    def __init__(self, head_dim: int, causal: bool, max_distance: int = 64):
        super().__init__()
        self.causal_only = causal
        self.rows = Clipped(0 if causal else -max_distance, max_distance)
        self.table = nn.Parameter(small_normal(max_distance + 1 if causal else 2 * max_distance + 1, head_dim))

    def layer_bias(self, view: LayerView, ctx: AttentionContext) -> Bias:
        c2p = torch.einsum("bhtd,nd->bhtn", view.q, self.table.to(view.q.dtype)) * view.scale
        return PairBias.of(ctx, c2p, None, self.rows)


class Shaw(SchemeConfig):
    """`position="shaw"`."""

    kind: Literal["shaw"] = "shaw"
    max_distance: int = Field(default=64, gt=0, le=MAX_ROWS)
    """Distances beyond it share one vector. The paper has 16 for translation, wav2vec2-bert 64 to the left."""
    summary: ClassVar[str] = "a learned vector per distance, added to the key"
    paper: ClassVar[str] = "Shaw et al. 2018, arXiv:1803.02155"

    def build(self, dims: Dims) -> ShawBias:
        return ShawBias(dims.head_dim, dims.causal, self.max_distance)
