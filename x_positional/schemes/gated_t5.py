"""A T5 bias behind gates: each query scales its biases by two gates of its input.

B batch, T query tokens, H heads, M model dim, N buckets.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.base import AttentionContext, Bias, Dims, PositionScheme
from x_positional.schemes.buckets import t5_bucket_problems, t5_buckets
from x_positional.schemes.initial import small_normal
from x_positional.schemes.pairs import PairBias
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.terms import Rebuilt
from x_positional.schemes.values import MAX_LENGTH, MAX_ROWS


@dataclass(frozen=True)
class Buckets(Rebuilt):
    """int64 distances (query - key) -> buckets."""

    num_buckets: int
    """How many."""
    max_distance: int
    """Where the last one begins."""
    causal: bool
    """Whether none is for keys to the right."""

    def __call__(self, distance: Tensor) -> Tensor:
        return t5_buckets(distance, self.num_buckets, self.max_distance, self.causal)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.num_buckets, self.max_distance, self.causal


class GatedT5Bias(PositionScheme):
    """bias = (2 - a + a b w_h) W[bucket(distance), h], a and b the sigmoids of U x_ih + c, x_ih the share of head h in the input
    of the layer at query i, floor(M / H) channels (XLM-E: Chi et al. 2021, arXiv:2106.16138; WavLM: Chen et al. 2021,
    arXiv:2110.13900, in the form of its published code).

    Args:
        dim: M, at least the number of heads.
        heads: H.
        causal: whether attention is causal; if not, half of the buckets are for keys to the right.
        num_buckets: N.
        max_distance: where the last bucket begins.
    """

    continuous = False
    uses_positions = True
    per_layer = True

    def __init__(self, dim: int, heads: int, causal: bool, num_buckets: int = 320, max_distance: int = 800):
        super().__init__()
        self.causal_only = causal
        self.heads, self.share = heads, dim // heads
        self.buckets = Buckets(num_buckets, max_distance, causal)
        self.table = nn.Parameter(small_normal(num_buckets, heads))
        self.to_gates = nn.Linear(self.share, 2)
        self.reset = nn.Parameter(torch.ones(heads))

    def query_state(self, x: Tensor) -> Tensor:
        """[B T M] -> [B H T 1], the factor of each query's biases."""
        shares = x[..., : self.heads * self.share].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        a, b = self.to_gates(shares).sigmoid().chunk(2, dim=-1)
        return a * (b * self.reset[:, None, None].to(b.dtype) - 1) + 2

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: Tensor) -> Bias:
        return PairBias.of(ctx, query_state * self.table.t()[:, None].to(query_state.dtype), None, self.buckets)


class GatedT5(SchemeConfig):
    """`position="gated_t5"`. In WavLM all layers share one table, and an encoder has the sizes below."""

    kind: Literal["gated_t5"] = "gated_t5"
    num_buckets: int = Field(default=320, gt=1, le=MAX_ROWS)
    """How many buckets; in an encoder half of them are for keys to the right."""
    max_distance: int = Field(default=800, gt=1, le=MAX_LENGTH)
    """All distances from here on share the last bucket."""
    summary: ClassVar[str] = "a T5 bias that each query scales by gates of its input"
    paper: ClassVar[str] = "Chi et al. 2021, arXiv:2106.16138"

    def build(self, dims: Dims) -> GatedT5Bias:
        return GatedT5Bias(dims.dim, dims.heads, dims.causal, self.num_buckets, self.max_distance)

    def problems(self, dims: Dims) -> list[str]:
        found = t5_bucket_problems(self.kind, self.num_buckets, self.max_distance, dims.causal)
        if dims.dim < dims.heads:
            found.append(
                f"gated_t5: the gates of a head read its share of the layer's input, but dim={dims.dim} is below "
                f"heads={dims.heads}. Raise dim."
            )
        return found
