"""Disentangled attention (DeBERTa): content-to-position and position-to-content scores, by bucketed distance.

B batch, T query tokens, S key tokens, H heads, G key/value heads, D head dim, M model dim, N rows of the table.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.base import AttentionContext, Bias, Dims, LayerView, PositionScheme
from x_positional.schemes.distance import distance_bound
from x_positional.schemes.initial import small_normal
from x_positional.schemes.pairs import PairBias
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.terms import Rebuilt
from x_positional.schemes.values import MAX_ROWS

Terms = Literal["both", "c2p", "p2c"]


def log_ratio(num_buckets: int, max_distance: int) -> float:
    """ln((max_distance - 1) / (num_buckets / 2)) in float32: the range of the logarithmic buckets. Computed on the host."""
    return torch.tensor((max_distance - 1) / (num_buckets // 2), dtype=torch.float32, device="cpu").log().item()


def log_buckets(distance: Tensor, num_buckets: int, growth: float) -> Tensor:
    """int64 distances (query - key) -> signed buckets (He et al. 2021, arXiv:2111.09543, published code).

    Distances up to num_buckets / 2 have their own bucket; the rest are logarithmic, with max_distance - 1 in bucket
    num_buckets - 1. Computed in float32, as in training.

    Args:
        distance: [...].
        num_buckets: the buckets per side.
        growth: `log_ratio(num_buckets, max_distance)`.
    """
    exact = num_buckets // 2
    far = distance.abs().clamp(min=exact)
    ratio = torch.log(far.float() / exact) / growth
    logarithmic = torch.ceil(ratio * (exact - 1)).long() + exact
    return torch.where(far <= exact, distance, logarithmic * distance.sign())


@dataclass(frozen=True)
class Buckets(Rebuilt):
    """int64 distances (query - key) -> rows of the table."""

    num_buckets: int | None
    """Per side; None is one per distance."""
    growth: float
    """`log_ratio`."""
    span: int
    """N: the table has two rows for each."""

    def __call__(self, distance: Tensor) -> Tensor:
        if self.num_buckets is not None:
            distance = log_buckets(distance, self.num_buckets, self.growth)
        return (distance + self.span).clamp(0, 2 * self.span - 1)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.num_buckets, self.growth, self.span


class DebertaBias(PositionScheme):
    """bias = scale * (q_i . W_k r + k_j . W_q r), r the row of i - j in a table [2N, M] that all layers share, W_q and W_k
    the projections of the layer (He et al. 2020, arXiv:2006.03654, section 3.1, equation 4).

    Args:
        dim: M.
        num_buckets: buckets per side; None is one row per distance up to max_distance.
        max_distance: all distances beyond it share the last bucket.
        terms: "c2p" for the first product, "p2c" for the second, or "both".
        norm_eps: of a LayerNorm over the table; None for no norm.
    """

    continuous = False
    uses_positions = True

    def __init__(
        self,
        dim: int,
        num_buckets: int | None = 256,
        max_distance: int = 512,
        terms: Terms = "both",
        norm_eps: float | None = None,
    ):
        super().__init__()
        self.num_buckets, self.max_distance, self.terms = num_buckets, max_distance, terms
        growth = 0.0 if num_buckets is None else log_ratio(num_buckets, max_distance)
        self.rows = Buckets(num_buckets, growth, num_buckets or max_distance)
        self.table = nn.Parameter(small_normal(2 * self.rows.span, dim))
        self.norm = None if norm_eps is None else nn.LayerNorm(dim, norm_eps)

    def layer_bias(self, view: LayerView, ctx: AttentionContext) -> Bias:
        vectors = self.table if self.norm is None else self.norm(self.table)
        vectors, heads, groups = vectors.to(view.q.dtype), view.q.shape[1], view.k.shape[1]
        c2p = p2c = None
        if self.terms != "p2c":
            keys = view.to_k(vectors).repeat_interleave(heads // groups, dim=0)
            c2p = torch.einsum("bhtd,hnd->bhtn", view.q, keys) * view.scale
        if self.terms != "c2p":
            queries = torch.unflatten(view.to_q(vectors), 0, (groups, -1))
            p2c = torch.einsum("bgsd,grnd->bgrsn", view.k, queries).flatten(1, 2) * view.scale
        return PairBias.of(ctx, c2p, p2c, self._rows_of(ctx))

    def _rows_of(self, ctx: AttentionContext) -> Callable[[Tensor], Tensor]:
        """`rows` for the distances of this pass: from a table of them, where that is smaller than all pairs."""
        bound = None if torch.compiler.is_compiling() else distance_bound(ctx)
        if bound is None or 2 * bound > ctx.mask_batch * ctx.T * ctx.S:
            return self.rows
        table = self.rows(torch.arange(1 - bound, bound, device=ctx.device))
        return lambda distance: table[distance + (bound - 1)]


class Deberta(SchemeConfig):
    """`position="deberta"`. Published models have attn.scale = (head_dim * (1 + number of terms))^-0.5."""

    kind: Literal["deberta"] = "deberta"
    num_buckets: int | None = Field(default=256, gt=3, le=MAX_ROWS)
    """Buckets per side; None is one per distance."""
    max_distance: int = Field(default=512, gt=2, le=MAX_ROWS)
    """All distances beyond it share the last bucket."""
    terms: Terms = "both"
    """"c2p" (content to position), "p2c" (position to content) or "both"."""
    norm_eps: float | None = Field(default=None, gt=0)
    """The eps of a LayerNorm over the table; None for no norm."""
    summary: ClassVar[str] = "scores between content and relative position, through the projections of each layer"
    paper: ClassVar[str] = "He et al. 2020, arXiv:2006.03654"

    def build(self, dims: Dims) -> DebertaBias:
        return DebertaBias(dims.dim, self.num_buckets, self.max_distance, self.terms, self.norm_eps)

    def problems(self, dims: Dims) -> list[str]:
        if self.num_buckets is None:
            return []
        exact = self.num_buckets // 2
        if self.max_distance - 1 <= exact:
            return [
                f"deberta: max_distance={self.max_distance} must exceed by 2 the {exact} distances that have their "
                f"own bucket (num_buckets={self.num_buckets}). Raise max_distance, or lower num_buckets."
            ]
        default = type(self).model_fields["max_distance"].default
        if dims.causal and self.num_buckets - exact <= 2 and self.max_distance != default:
            return [
                f"deberta: max_distance={self.max_distance} is ignored with num_buckets={self.num_buckets}: in a decoder all "
                f"distances beyond {exact} share a single bucket. Raise num_buckets, or leave max_distance out."
            ]
        return []
