"""Relative logits: a projection of each query's input mixes learned profiles of bias by distance.

B batch, T query tokens, S key tokens, H heads, C channels of a head's mixture, M model dim, N distances.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.base import AttentionContext, Bias, Dims, PositionScheme
from x_positional.schemes.initial import small_normal
from x_positional.schemes.pairs import PairBias
from x_positional.schemes.precision import exact_dtype, widened
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.terms import Rebuilt
from x_positional.schemes.values import MAX_HEAD_DIM, MAX_LENGTH, MAX_ROWS


@dataclass(frozen=True)
class Within(Rebuilt):
    """int64 distances (query - key) -> their columns from the lowest one on; all others share the column after the last."""

    lowest: int
    """The distance of the first column."""
    count: int
    """How many distances have a column of their own."""

    def __call__(self, distance: Tensor) -> Tensor:
        column = distance - self.lowest
        return torch.where((column < 0) | (column >= self.count), self.count, column)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.lowest, self.count


class RelativeBias(PositionScheme):
    """bias = r_ih . P[:, i - j], r_i = W x_i: x_i the input of the layer at query i, r_ih [C] its part for head h, P [C N] learned
    profiles that all heads share. It is 0 from distance `extent` on (Inkling, Thinking Machines Lab 2026,
    thinkingmachines.ai/news/introducing-inkling; the formula is that of transformers, `models/inkling`: there is no paper). With
    `clip`, r is scaled by a learned factor per channel and shortened to that norm (Inkling 2, transformers, `models/inkling2`).

    Args:
        dim: M.
        heads: H.
        causal: without keys to the right, P has `extent` columns in place of 2 extent - 1. The published models are causal.
        width: C.
        extent: distances from it on have no bias.
        clip: the largest L2 norm of r; None does not limit it.
    """

    continuous = False
    uses_positions = True
    per_layer = True

    def __init__(
        self, dim: int, heads: int, causal: bool, width: int = 16, extent: int = 1024, clip: float | None = None
    ):
        super().__init__()
        self.causal_only = causal
        self.heads, self.extent, self.clip = heads, extent, clip
        self.to_states = nn.Linear(dim, heads * width, bias=False)
        self.state_scale = None if clip is None else nn.Parameter(torch.ones(heads, width))
        self.profiles = nn.Parameter(small_normal(width, extent if causal else 2 * extent - 1))

    def query_state(self, x: Tensor) -> Tensor:
        """[B T M] -> [B H T C]."""
        states = self.to_states(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if self.state_scale is None or self.clip is None:
            return states
        wide = widened(states) * widened(self.state_scale[:, None])
        norm = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        return (wide * (self.clip / (norm + 1e-6)).clamp(max=1.0)).to(states.dtype)

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: Tensor) -> Bias:
        reach = self._reach(ctx)
        columns = Within(0, reach) if self.causal_only else Within(1 - reach, 2 * reach - 1)
        first = 0 if self.causal_only else self.extent - reach
        profiles = F.pad(self.profiles[:, first : first + columns.count], (0, 1))  # the last column is that of no bias
        return PairBias.of(ctx, (query_state @ profiles.to(query_state.dtype)).to(q.dtype), None, columns)

    def _reach(self, ctx: AttentionContext) -> int:
        """Distances from it on have no bias, or do not occur."""
        if torch.compiler.is_compiling() or (ctx.custom_positions and not ctx.positions_below_span):
            return self.extent  # a comparison with the length would split a graph, one with positions needs a host sync
        return max(1, min(self.extent, ctx.span))


class LogScaledRelativeBias(RelativeBias):
    """The same, with queries and biases multiplied by 1 + scale * ln(max(1, (t + 1) / floor)), t the position of the query.

    Args:
        floor: positions below it are not scaled.
        scale: how much the factor grows.
        options: as in `RelativeBias`.
    """

    absolute = True

    def __init__(self, dim: int, heads: int, causal: bool, floor: int, scale: float = 0.1, **options: Any):
        super().__init__(dim, heads, causal, **options)
        self.floor, self.scale = floor, scale

    def tables(self, positions: Tensor) -> Tensor:
        """[B|1 T] -> [B|1 1 T 1] float32: the factor of each query."""
        seen = (positions.to(exact_dtype(positions.device)) + 1) / self.floor
        return (1 + self.scale * seen.clamp(min=1).log()).float()[:, None, :, None]

    def token_tables(self, tables: Tensor, i: int) -> Tensor:
        return tables.narrow(-2, i, 1)

    def rotate_q(self, q: Tensor, tables: Tensor) -> Tensor:
        return (q * tables).to(q.dtype)

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: Tensor) -> Bias:
        return super().content_bias(q, ctx, state, widened(query_state) * self.tables(ctx.q_positions))


class RelativeLogits(SchemeConfig):
    """`position="relative_logits"`. In Inkling windowed layers have the window as `extent`, and the others `log_floor`; its scores
    are scaled by 1 / head_dim after RMS norms of queries and keys."""

    kind: Literal["relative_logits"] = "relative_logits"
    width: int = Field(default=16, gt=0, le=MAX_HEAD_DIM)
    """Channels of the projection for each head, and learned profiles."""
    extent: int = Field(default=1024, gt=0, le=MAX_ROWS)
    """Distances from it on have no bias."""
    clip: float | None = Field(default=None, gt=0)
    """The largest L2 norm of the projection, after a learned scale: 8 in Inkling 2. None is Inkling, without either."""
    log_floor: int | None = Field(default=None, gt=0, le=MAX_LENGTH)
    """From this position on, queries and biases are scaled up with the logarithm of the position; None scales none."""
    log_scale: float = 0.1
    """How much: the factor is 1 + log_scale * ln((position + 1) / log_floor)."""
    summary: ClassVar[str] = "a projection of the query's input mixes learned biases by distance"
    paper: ClassVar[str] = "Inkling, Thinking Machines Lab 2026"

    def build(self, dims: Dims) -> RelativeBias:
        sizes = {"width": self.width, "extent": self.extent, "clip": self.clip}
        if self.log_floor is None:
            return RelativeBias(dims.dim, dims.heads, dims.causal, **sizes)
        return LogScaledRelativeBias(dims.dim, dims.heads, dims.causal, self.log_floor, self.log_scale, **sizes)

    def problems(self, dims: Dims) -> list[str]:
        if self.log_floor is not None or self.log_scale == type(self).model_fields["log_scale"].default:
            return []
        return [
            f"relative_logits: log_scale={self.log_scale} has no effect without log_floor. Set log_floor, or leave log_scale out."
        ]
