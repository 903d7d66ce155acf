"""Position schemes that are wrong on purpose: each is the mistake of some public code, or a lie about what it can do.

B batch, T query tokens, S key tokens, H heads, D head dim, M model dim.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from x_positional.scheme import AttentionContext, Bias, Capabilities, Dims, PositionScheme
from x_positional.schemes import (
    AlibiBias,
    CoPE,
    Forgetting,
    LearnedAbsolute,
    NoPE,
    RotaryEmbedding,
    Sinusoidal,
    T5Bias,
    alibi_slopes,
    t5_buckets,
)
from x_positional.schemes.frequencies import Frequencies
from x_positional.schemes.rotary import Rotation


class _Rope(RotaryEmbedding):
    def __init__(self, dims: Dims):
        super().__init__(dims.head_dim)


class _Alibi(AlibiBias):
    def __init__(self, dims: Dims):
        super().__init__(dims.heads, alibi_slopes(dims.heads))


class _Cope(CoPE):
    def __init__(self, dims: Dims):
        super().__init__(dims.head_dim)


class _Forgetting(Forgetting):
    def __init__(self, dims: Dims):
        super().__init__(dims.dim, dims.heads)


class _Sinusoidal(Sinusoidal):
    def __init__(self, dims: Dims):
        super().__init__(dims.embed_dim)


class _Learned(LearnedAbsolute):
    def __init__(self, dims: Dims):
        super().__init__(dims.max_seq_len or 64, dims.embed_dim)


def pairs(ctx: AttentionContext) -> tuple[Tensor, Tensor]:
    """Positions of queries and keys, [B T] and [B S]."""
    return ctx.q_positions.expand(ctx.batch, -1), ctx.kv_positions.expand(ctx.batch, -1)


class QuietCope(_Cope):
    """Declares a kernel that never calls its hook."""

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), kernel="bias")


class GridStatistic(_Alibi):
    """Its bias is not pointwise: it divides by the mean distance of the whole grid."""

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


class ZeroedTable(_Learned):
    """Its table is multiplied away."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().embed(x, positions) - self.table[positions.clamp(min=0)] * self.scale


class _HalfBack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad / 2


class HalfGradient(_Sinusoidal):
    """A hand-written backward that is off by a factor of two."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.gain = nn.Parameter(torch.ones(dims.embed_dim))

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.waves(positions).to(x.dtype) * _HalfBack.apply(self.gain)


class GrowingBase(_Rope):
    """Dynamic NTK: the base follows the longest position so far, so keys written before are stale."""

    def tables(self, positions: Tensor) -> Rotation:
        length = int(positions.max()) + 1
        return RotaryEmbedding(self.width, theta=10_000.0 * (1 + length / 8)).tables(positions)


class StaleRegime(GrowingBase):
    """The same, says that no cache is right, and then that all lengths turn alike."""

    kv_cacheable = False

    def regime(self, length: int) -> None:
        return None


class NeedlesslyUneven(_Rope):
    """Says that a longer text changes its prefix; it does not."""

    prefix_consistent = False


class NeedlesslyUncacheable(_Rope):
    """Refuses a cache that would be right."""

    kv_cacheable = False


class UncachedGates(_Forgetting):
    """Computes its gates from the new tokens alone."""

    def key_state(self, x: Tensor) -> Tensor:
        self.log_f = F.logsigmoid(self.gate(x)).transpose(1, 2)
        return self.log_f[..., None]

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None) -> Bias:
        c = self.log_f.cumsum(-1)
        last = c.shape[-1] - 1
        return Bias(lambda b, h, i, j: c[b, h, i] - c[b, h, j.clamp(max=last)], ctx.batch, ctx.heads)


class StashedGates(_Forgetting):
    """Keeps the gates of earlier tokens in itself, not in the cache."""

    def key_state(self, x: Tensor) -> Tensor:
        self.new = F.logsigmoid(self.gate(x)).transpose(1, 2)
        return self.new[..., None]

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None) -> Bias:
        self.seen = torch.cat([self.seen, self.new], -1) if ctx.S > ctx.T else self.new
        return super().content_bias(q, ctx, self.seen[:, :, -ctx.S :, None])


class FixedTable(_Alibi):
    """Its table in the cache's memory has 64 distances, and the farther ones take the last."""

    def bias(self, ctx: AttentionContext) -> Bias:
        memo = {} if ctx.memo is None else ctx.memo
        far = 64 if ctx.memo is not None else ctx.span
        table = memo.setdefault(id(self), self.of_distance(torch.arange(far, device=ctx.device)))
        q, k = pairs(ctx)
        return Bias(lambda b, h, i, j: table[h, (q[b, i] - k[b, j]).clamp(0, far - 1)], ctx.batch, ctx.heads)


class SlotOrderCope(_Cope):
    """Counts in the order of slots: wrong in a ring."""

    def transform_scores(self, scores: Tensor, visible: Tensor | None, q: Tensor, ctx: AttentionContext) -> Tensor:
        return super().transform_scores(scores, visible, q, replace(ctx, ordered=True))


class LeakyCope(_Cope):
    """Counts keys that are hidden: later ones, padding, other documents."""

    def transform_scores(self, scores: Tensor, visible: Tensor | None, q: Tensor, ctx: AttentionContext) -> Tensor:
        return super().transform_scores(scores, None, q, ctx)


class NarrowSums(_Forgetting):
    """Sums in float32, so what came before a document changes the rounding within it."""

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None) -> Bias:
        c = torch.zeros(1).to(q) + state[..., 0].cumsum(-1)  # type: ignore[index]
        return Bias(lambda b, h, i, j: c[b, h, i + ctx.S - ctx.T] - c[b, h, j], ctx.batch, ctx.heads)


class BatchMean(_Alibi):
    """Scales its bias by a statistic of the batch."""

    def bias(self, ctx: AttentionContext) -> None:
        return None

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None) -> Bias:
        far, bias = q.abs().mean(), super().bias(ctx)
        return Bias(lambda b, h, i, j: bias.fn(b, h, i, j) * far, ctx.batch, ctx.heads)


class SlotAlibi(_Alibi):
    """Measures distance between slots, not positions."""

    def bias(self, ctx: AttentionContext) -> Bias:
        slopes = torch.tensor(self.left, device=ctx.device)
        return Bias(lambda b, h, i, j: -slopes[h] * (i + ctx.S - ctx.T - j).abs(), 1, ctx.heads)


class ColumnSinusoidal(_Sinusoidal):
    """Counts columns, and does not look at positions."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().embed(x, torch.arange(x.shape[1], device=x.device)[None])


class FalselyAbsolute(_Alibi):
    """Says that the place of a sequence matters; only distances do."""

    absolute = True


class FalselyRelative(_Sinusoidal):
    """Says that only distances matter."""

    absolute = False


class ClampedTable(_Learned):
    """Says that it has no limit; every position past its table takes the last row."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.limit = None

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().embed(x, positions.clamp(max=len(self.table) - 1))


class NeedlesslyLimited(_Rope):
    """Refuses positions that would work."""

    limit = 300


class OverstatedLimit(_Learned):
    """Allows more positions than its table has rows."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.limit = len(self.table) + 8


class IndexAlibi(_Alibi):
    """Takes the place of a token in its row for its position."""

    def bias(self, ctx: AttentionContext) -> Bias:
        plain = replace(ctx, q_positions=ctx.q_index, kv_positions=ctx.kv_index, custom_positions=False, ordered=False)
        return super().bias(plain)


class SecretReader(_Alibi):
    """Reads positions in a hook that says nothing of it."""

    def bias(self, ctx: AttentionContext) -> None:
        return None

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None) -> Bias:
        return super().bias(ctx)

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), uses_positions=False, kernel="bias")


class RoundedRope(_Rope):
    """Takes float positions and rounds them."""

    def tables(self, positions: Tensor) -> Rotation:
        return super().tables(positions.round())


class NeedlesslyWhole(_Rope):
    """Refuses float positions that would work."""

    continuous = False


class FirstAxisRope(_Rope):
    """Says that it takes two axes, and reads one."""

    max_axes = 2

    def tables(self, positions: Tensor) -> Rotation:
        return super().tables(positions[..., 0] if positions.ndim == 3 else positions)


class OneSidedT5(T5Bias):
    """Has buckets for the past alone, and says that it needs no causal mask."""

    def __init__(self, dims: Dims):
        super().__init__(dims.heads, dims.causal)
        self.causal_only = False

    def of_distance(self, distance: Tensor) -> Tensor:
        return self.table.t()[:, t5_buckets(distance, self.num_buckets, self.max_distance, causal=True)]


class FalselyOrdered(NoPE):
    """Says that it sees order without a causal mask."""

    causal_only = False

    def __init__(self, dims: Dims):
        super().__init__()


class NeedlesslyCausal(_Alibi):
    """Refuses encoders that would work."""

    causal_only = True


class HalfAngles(_Sinusoidal):
    """Multiplies positions in the dtype of the activations."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        exponent = torch.arange(0, self.dim, 2, device=x.device) / self.dim
        angle = positions[..., None].to(x.dtype) * (10_000.0**-exponent).to(x.dtype)
        return x + torch.cat([angle.sin(), angle.cos()], -1)[..., : self.dim]


class MatmulAngles(_Rope):
    """Multiplies positions with `@`, which autocast does in bfloat16."""

    def tables(self, positions: Tensor) -> Rotation:
        angle = positions[..., None].float() @ self.inv_freq(positions.device).float()[None]
        cos, sin = angle.cos(), angle.sin()
        q_cos, q_sin = self._lay_out(cos, cos), self._lay_out(-sin, sin)
        return Rotation(q_cos, q_sin, q_cos, q_sin)


class HalfGates(_Forgetting):
    """Sums its gates in the dtype of the activations."""

    def key_state(self, x: Tensor) -> Tensor:
        return F.logsigmoid(self.gate(x)).transpose(1, 2)[..., None]

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None) -> Bias:
        c = torch.zeros(1).to(q) + state[..., 0].to(q.dtype).cumsum(-1)  # type: ignore[index]
        return Bias(lambda b, h, i, j: c[b, h, i + ctx.S - ctx.T] - c[b, h, j], ctx.batch, ctx.heads)


class BufferedRope(_Rope):
    """Keeps its frequencies in a buffer, which .bfloat16() rounds."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.register_buffer("table", 10_000.0 ** -(torch.arange(0, dims.head_dim, 2) / dims.head_dim), persistent=False)

    def frequencies(self, device: torch.device, lengths: Tensor | None = None) -> Frequencies:
        return Frequencies(self.table)


class TensorRope(_Rope):
    """Keeps its frequencies in a plain tensor, which stays behind when the model moves."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.table = 10_000.0 ** -(torch.arange(0, dims.head_dim, 2) / dims.head_dim)

    def frequencies(self, device: torch.device, lengths: Tensor | None = None) -> Frequencies:
        return Frequencies(self.table)


class RandomSlopes(_Alibi):
    """Draws its slopes when it is made, and does not save them."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.left = [float(s) for s in torch.rand(dims.heads, device="cpu")]


class SlopeFunction(_Alibi):
    """Holds a function, which cannot be pickled."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.slope = lambda h: 2.0**-h


class SharedTable(_Learned):
    """Every copy of it has the same table."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedTable":
        return self


class LooksAtPositions(_Rope):
    """Decides on the host, by the values on the device."""

    def tables(self, positions: Tensor) -> Rotation:
        return super().tables(positions if int(positions.max()) > 5 else positions * 1)


class CountsCalls(_Rope):
    """Holds a number that differs in each call, so each is compiled anew."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.calls = 0

    def tables(self, positions: Tensor) -> Rotation:
        self.calls += 1
        shape = [1] * (self.calls % 7 + 1)
        return super().tables(positions.reshape(*shape, *positions.shape).reshape(positions.shape))


@dataclass(frozen=True)
class BrokenCase:
    """A broken scheme, the check that must reject it, and a word of the reason that the check must give."""

    scheme: type[PositionScheme] | type[nn.Module]
    check: str
    says: str


BROKEN = [
    BrokenCase(QuietCope, "hooks_run", "transform_scores"),
    BrokenCase(GridStatistic, "backends_agree", "and eager"),
    BrokenCase(DetachedT5, "gradients_agree", "no gradient reaches"),
    BrokenCase(ZeroedTable, "gradients_agree", "is zero"),
    BrokenCase(HalfGradient, "gradcheck", "derivatives"),
    BrokenCase(GrowingBase, "cached_equals_full", "growing cache"),
    BrokenCase(UncachedGates, "cached_equals_full", "growing cache"),
    BrokenCase(NeedlesslyUncacheable, "cached_equals_full", "kv_cacheable=False is declared"),
    BrokenCase(StaleRegime, "cached_equals_full", "where the regime changes"),
    BrokenCase(FixedTable, "cache_grows", "141 tokens"),
    BrokenCase(SlotOrderCope, "sliding_windows", "window"),
    BrokenCase(StashedGates, "cache_reorders", "rows"),
    BrokenCase(GrowingBase, "prefix_consistent", "8 of 19"),
    BrokenCase(LeakyCope, "prefix_consistent", "other tokens after the first"),
    BrokenCase(NeedlesslyUneven, "prefix_consistent", "longer texts leave it as it is"),
    BrokenCase(BatchMean, "batch_independent", "alone"),
    BrokenCase(SlotAlibi, "padding", "padding between"),
    BrokenCase(ColumnSinusoidal, "padding", "padding left"),
    BrokenCase(SlotAlibi, "ragged_decoding", "padding"),
    BrokenCase(LeakyCope, "packing", "packed documents"),
    BrokenCase(NarrowSums, "packing", "changing the first document changed the others"),
    BrokenCase(FalselyAbsolute, "shift", "no shift changes"),
    BrokenCase(FalselyRelative, "shift", "absolute=False"),
    BrokenCase(ClampedTable, "limit", "and from 2881 on"),
    BrokenCase(NeedlesslyLimited, "limit", "past it work as well"),
    BrokenCase(OverstatedLimit, "limit", "IndexError"),
    BrokenCase(IndexAlibi, "custom_positions", "with gaps"),
    BrokenCase(SecretReader, "custom_positions", "uses_positions=False"),
    BrokenCase(RoundedRope, "float_positions", "fractional"),
    BrokenCase(NeedlesslyWhole, "float_positions", "continuous=False"),
    BrokenCase(FirstAxisRope, "axes", "axis 1 of 2"),
    BrokenCase(OneSidedT5, "order", "after the query"),
    BrokenCase(FalselyOrdered, "order", "before the query"),
    BrokenCase(NeedlesslyCausal, "order", "works without a causal mask"),
    BrokenCase(SlotAlibi, "cross_attention", "context moved"),
    BrokenCase(HalfAngles, "precision", "embed at positions from 250"),
    BrokenCase(MatmulAngles, "precision", "under autocast"),
    BrokenCase(HalfGates, "precision", "content_bias"),
    BrokenCase(BufferedRope, "precision", "rotate_q"),
    BrokenCase(BufferedRope, "no_buffers", "buffers: schemes.0.table"),
    BrokenCase(TensorRope, "no_buffers", "no parameters"),
    BrokenCase(TensorRope, "meta_init", ""),
    BrokenCase(RandomSlopes, "state_dict", "after load_state_dict"),
    BrokenCase(SlopeFunction, "copies", "pickle"),
    BrokenCase(SharedTable, "copies", "after its copy was changed"),
    BrokenCase(LooksAtPositions, "compiles", "data-dependent"),
    BrokenCase(CountsCalls, "compiles_decoding", "graphs were compiled"),
]
