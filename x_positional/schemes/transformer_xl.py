"""Transformer-XL's relative attention: queries score the projected sinusoid of each distance.

B batch, T query tokens, S key tokens, H heads, D head dim, M model dim, N distances.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from x_positional.schemes.base import AttentionContext, Bias, Dims, LayerView, PositionScheme
from x_positional.schemes.distance import distance_bound
from x_positional.schemes.initial import small_normal
from x_positional.schemes.pairs import PairBias
from x_positional.schemes.precision import exact_dtype
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.terms import Rebuilt

BASE = 10_000.0


@dataclass(frozen=True)
class Shifted(Rebuilt):
    """int64 distances (query - key) -> their places from the lowest one on. Those of hidden keys may be outside."""

    lowest: int
    """Of the distances."""
    highest: int
    """Of the distances."""

    def __call__(self, distance: Tensor) -> Tensor:
        return distance.clamp(self.lowest, self.highest) - self.lowest

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.lowest, self.highest


class TransformerXLBias(PositionScheme):
    """score = scale * ((q_i + u) . k_j + (q_i + v) . W R_(i - j)), R the sinusoid of a distance, u and v [H D] and W learned in
    each layer (Dai et al. 2019, arXiv:1901.02860, section 3.3, terms a to d; W is its W_(k,R)).

    Args:
        dim: M.
        heads: H.
        head_dim: D.
    """

    uses_positions = True
    per_layer = True

    def __init__(self, dim: int, heads: int, head_dim: int):
        super().__init__()
        self.dim = dim
        self.u, self.v = (nn.Parameter(small_normal(heads, head_dim)) for _ in range(2))
        self.to_r = nn.Linear(dim, heads * head_dim, bias=False)

    def rotate_q(self, q: Tensor, tables: Any) -> Tensor:
        return q + self.u[:, None].to(q.dtype)

    def _sinusoids(self, positions: Tensor) -> Tensor:
        """[...] -> [... M], sines then cosines, in float64."""
        exact, half = exact_dtype(positions.device), (self.dim + 1) // 2
        frequencies = BASE ** (-2 * torch.arange(half, dtype=exact, device=positions.device) / self.dim)
        angles = positions.to(exact)[..., None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], dim=-1)[..., : self.dim]

    def layer_bias(self, view: LayerView, ctx: AttentionContext) -> Bias:
        queries = (view.q + self.v[:, None].to(view.q.dtype)) * view.scale
        bound = distance_bound(ctx)
        if bound is None:
            distances = ctx.q_positions[:, :, None] - ctx.kv_positions[:, None, :]
            keys = self._keys(distances, ctx.heads).to(queries.dtype).expand(ctx.batch, -1, -1, -1, -1)
            pairs = torch.einsum("bhtd,btshd->bhts", queries, keys)
            return Bias(lambda b, h, i, j: pairs[b, h, i, j], ctx.batch, ctx.heads)
        lowest = 0 if ctx.causal and not ctx.custom_positions else 1 - bound
        keys = self._known_keys(ctx, lowest, bound - 1).to(queries.dtype)
        return PairBias.of(ctx, torch.einsum("bhtd,nhd->bhtn", queries, keys), None, Shifted(lowest, bound - 1))

    def _keys(self, distances: Tensor, heads: int) -> Tensor:
        """[...] -> [... H D], W R."""
        return self.to_r(self._sinusoids(distances).to(self.u.dtype)).unflatten(-1, (heads, -1))

    def _known_keys(self, ctx: AttentionContext, lowest: int, highest: int) -> Tensor:
        """[N H D] of the distances lowest..highest; taken from the cache's memo if it covers them."""
        if ctx.memo is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._keys(torch.arange(lowest, highest + 1, device=ctx.device), ctx.heads)
        known = ctx.memo.get(id(self))
        if known is None or known[1] > lowest or known[1] + len(known[0]) - 1 < highest:
            ahead = max(64, highest) * 2  # for decoding, as in `DistanceScheme`
            known = (self._keys(torch.arange(lowest, ahead + 1, device=ctx.device), ctx.heads), lowest)
            ctx.memo[id(self)] = known
        return known[0][lowest - known[1] : highest + 1 - known[1]]


class TransformerXL(SchemeConfig):
    """`position="transformer_xl"`."""

    kind: Literal["transformer_xl"] = "transformer_xl"
    summary: ClassVar[str] = "queries score the projected sinusoid of each distance"
    paper: ClassVar[str] = "Dai et al. 2019, arXiv:1901.02860"

    def build(self, dims: Dims) -> TransformerXLBias:
        return TransformerXLBias(dims.dim, dims.heads, dims.head_dim)
