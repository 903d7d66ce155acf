"""Schemes with deliberately wrong kernels, gradients, caches or batches: mistakes from public code, or false declarations.

B batch, T query tokens, S key tokens, H heads, D head dim, M model dim.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.support.broken_bases import (
    PlainAlibi,
    PlainCope,
    PlainForgetting,
    PlainLearned,
    PlainRelative,
    PlainRope,
    PlainSinusoidal,
    pairs,
)
from x_positional.schemes import (
    RopeEmbedding,
    T5Bias,
)
from x_positional.schemes.base import AttentionContext, Bias, Capabilities, Dims
from x_positional.schemes.rotary.rotation import Rotation


class QuietCope(PlainCope):
    """Declares a kernel that never calls its hook."""

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), kernel="bias")


class GridStatistic(PlainAlibi):
    """Its bias is not pointwise: it depends on the mean distance of the whole grid."""

    def bias(self, ctx: AttentionContext) -> Bias:
        q, k = pairs(ctx)

        def fn(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            far = (q[b, i] - k[b, j]).abs().float()
            return -far / (1 + far.mean()) + 0.0 * h

        return Bias(fn, ctx.batch, ctx.heads)


class DetachedT5(T5Bias):
    """No gradient reaches its table."""

    def __init__(self, dims: Dims):
        super().__init__(dims.heads, dims.causal)

    def of_distance(self, distance: Tensor) -> Tensor:
        return super().of_distance(distance).detach()


class ZeroedTable(PlainLearned):
    """Subtracts its table again, so its gradient is zero."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().embed(x, positions) - self.table[positions.clamp(min=0)] * self.scale


class CancelledGain(PlainLearned):
    """Multiplies its rows by a gain and then normalizes them, so the gradient of the gain is zero, but for rounding."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.gain = nn.Parameter(torch.ones(()))

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + F.normalize(self.gain.abs() * self.table[positions.clamp(min=0)], dim=-1)


class _HalfBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad / 2


class _Averaged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return grad / len(grad)


class AveragedGradient(PlainSinusoidal):
    """A hand-written backward that averages over the rows of its batch, so that micro-batches do not add up to one batch."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return _Averaged.apply(super().embed(x, positions))  # pyright: ignore[reportReturnType]


class HalfGradient(PlainSinusoidal):
    """A hand-written backward that is off by a factor of two."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.gain = nn.Parameter(torch.ones(dims.embed_dim))

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.waves(positions).to(x.dtype) * _HalfBack.apply(self.gain)


class GrowingBase(PlainRope):
    """Dynamic NTK: the base follows the longest position so far, so keys cached earlier are stale."""

    def tables(self, positions: Tensor) -> Rotation:
        length = int(positions.max()) + 1
        return RopeEmbedding(self.width, theta=10_000.0 * (1 + length / 8)).tables(positions)


class StaleCacheKey(GrowingBase):
    """The same with kv_cacheable=False, but a cache key that claims the same rotation for all lengths."""

    kv_cacheable = False

    def cache_key(self, length: int) -> None:
        return None


class NeedlesslyUneven(PlainRope):
    """Declares that a longer text changes its prefix; it does not."""

    prefix_consistent = False


class NeedlesslyUncacheable(PlainRope):
    """Refuses a cache that would be right."""

    kv_cacheable = False


class UncachedGates(PlainForgetting):
    """Computes its gates from the new tokens only."""

    def key_state(self, x: Tensor) -> Tensor:
        self.log_f = F.logsigmoid(self.gate(x)).transpose(1, 2)
        return self.log_f[..., None]

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: Any) -> Bias:
        c = self.log_f.cumsum(-1)
        last = c.shape[-1] - 1
        return Bias(lambda b, h, i, j: c[b, h, i] - c[b, h, j.clamp(max=last)], ctx.batch, ctx.heads)


class StashedGates(PlainForgetting):
    """Keeps the gates of earlier tokens in an attribute instead of the cache."""

    def key_state(self, x: Tensor) -> Tensor:
        self.new = F.logsigmoid(self.gate(x)).transpose(1, 2)
        return self.new[..., None]

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: Any) -> Bias:
        self.seen = torch.cat([self.seen, self.new], -1) if ctx.S > ctx.T else self.new
        return super().content_bias(q, ctx, self.seen[:, :, -ctx.S :, None], query_state)


class UnorderedGates(StashedGates):
    """Keeps gates in an attribute that follows the number of rows, but not their order."""

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: Any) -> Bias:
        if ctx.S > ctx.T:
            self.seen = self.seen.repeat_interleave(len(self.new) // len(self.seen), 0)
        return super().content_bias(q, ctx, state, query_state)


class NeighboursState(PlainRelative):
    """Takes the query state of each token from the next one."""

    def query_state(self, x: Tensor) -> Tensor:
        return super().query_state(x.roll(-1, 1))


class LateState(PlainRelative):
    """After a cache, takes the query state of each token from the one before."""

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: Any) -> Bias:
        before, self.last = getattr(self, "last", query_state), query_state[:, :, -1:]
        if ctx.S > ctx.T and len(before) == len(query_state):
            query_state = torch.cat([before, query_state[:, :, :-1]], 2)
        return super().content_bias(q, ctx, state, query_state)


class FirstKeysState(PlainRelative):
    """Reads the state of queries from cached states of keys, from the first key on."""

    def key_state(self, x: Tensor) -> Tensor:
        return super().query_state(x)

    def _own(self, state: Tensor, ctx: AttentionContext) -> Tensor:
        return state[:, :, : ctx.T]

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: Any) -> Bias:
        return super().content_bias(q, ctx, state, query_state if state is None else self._own(state, ctx))


class LastSlotsState(FirstKeysState):
    """Reads it from the last slots, which are not those of the queries in a ring."""

    def _own(self, state: Tensor, ctx: AttentionContext) -> Tensor:
        return state[:, :, ctx.S - ctx.T :]


class FixedTable(PlainAlibi):
    """Its table, kept in the memo of the cache, has 64 distances; farther ones use the last."""

    def bias(self, ctx: AttentionContext) -> Bias:
        memo = {} if ctx.memo is None else ctx.memo
        far = 64 if ctx.memo is not None else ctx.span
        table = memo.setdefault(id(self), self.of_distance(torch.arange(far, device=ctx.device)))
        q, k = pairs(ctx)
        return Bias(lambda b, h, i, j: table[h, (q[b, i] - k[b, j]).clamp(0, far - 1)], ctx.batch, ctx.heads)


class SlotOrderCope(PlainCope):
    """Counts keys in the order of slots, which is wrong in a ring buffer."""

    def transform_scores(self, scores: Tensor, visible: Tensor | None, q: Tensor, ctx: AttentionContext) -> Tensor:
        return super().transform_scores(scores, visible, q, replace(ctx, ordered=True))


class LeakyCope(PlainCope):
    """Counts masked keys: later ones, padding, other documents."""

    def transform_scores(self, scores: Tensor, visible: Tensor | None, q: Tensor, ctx: AttentionContext) -> Tensor:
        return super().transform_scores(scores, None, q, ctx)


class LeftOnly(PlainAlibi):
    """Hides later keys, although it declares causal_only=False."""

    def bias(self, ctx: AttentionContext) -> Bias:
        (q, k), plain = pairs(ctx), super().bias(ctx)
        return Bias(lambda b, h, i, j: plain.fn(b, h, i, j) - 1e4 * (k[b, j] > q[b, i]).float(), ctx.batch, ctx.heads)


class NarrowSums(PlainForgetting):
    """Sums in float32, so earlier documents change the rounding within a document."""

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: Any) -> Bias:
        c = torch.zeros(1).to(q) + state[..., 0].cumsum(-1)  # type: ignore[index]
        return Bias(lambda b, h, i, j: c[b, h, i + ctx.S - ctx.T] - c[b, h, j], ctx.batch, ctx.heads)


class BatchMean(PlainAlibi):
    """Scales its bias by a statistic of the batch."""

    def bias(self, ctx: AttentionContext) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: Any) -> Bias:
        far, bias = q.abs().mean(), super().bias(ctx)
        return Bias(lambda b, h, i, j: bias.fn(b, h, i, j) * far, ctx.batch, ctx.heads)


class SlotAlibi(PlainAlibi):
    """Measures distance between slots, not positions."""

    def bias(self, ctx: AttentionContext) -> Bias:
        slopes = torch.tensor(self.left, device=ctx.device)
        return Bias(lambda b, h, i, j: -slopes[h] * (i + ctx.S - ctx.T - j).abs(), 1, ctx.heads)


class NoisyBias(PlainAlibi):
    """Draws a new bias whenever it is read."""

    def bias(self, ctx: AttentionContext) -> Bias:
        fn = super().bias(ctx).fn
        return Bias(lambda b, h, i, j: fn(b, h, i, j) * torch.rand(1, device=ctx.device), ctx.batch, ctx.heads)


class ColumnSinusoidal(PlainSinusoidal):
    """Uses the column of a token as its position."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().embed(x, torch.arange(x.shape[1], device=x.device)[None])
