"""Schemes that deliberately mishandle positions, precision or module state: mistakes from public code, or false declarations.

B batch, T query tokens, S key tokens, H heads, D head dim, M model dim.
"""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.support.broken_bases import PlainAlibi, PlainForgetting, PlainLearned, PlainRope, PlainSinusoidal
from x_positional.schemes import (
    NoPosition,
    T5Bias,
    t5_buckets,
)
from x_positional.schemes.base import AttentionContext, Bias, Capabilities, Dims
from x_positional.schemes.rotary.frequencies import Frequencies
from x_positional.schemes.rotary.rotation import Rotation


class FalselyAbsolute(PlainAlibi):
    """Declares that absolute positions matter; only distances do."""

    absolute = True


class FalselyRelative(PlainSinusoidal):
    """Declares that only distances matter; absolute positions do too."""

    absolute = False


class ClampedTable(PlainLearned):
    """Declares no limit, but clamps every position past its table to the last row."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.limit = None

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return super().embed(x, positions.clamp(max=len(self.table) - 1))


class RunningOffset(PlainSinusoidal):
    """Continues after the positions of its last call, as if every call were the next chunk of one text."""

    after = 0

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        start, self.after = self.after, self.after + positions.shape[1]
        return super().embed(x, positions + start)


class NeedlesslyLimited(PlainRope):
    """Refuses positions that would work."""

    limit = 300


class OverstatedLimit(PlainLearned):
    """Allows more positions than its table has rows."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.limit = len(self.table) + 8


class IndexAlibi(PlainAlibi):
    """Uses the index of a token in its row as its position."""

    def bias(self, ctx: AttentionContext) -> Bias:
        plain = replace(ctx, q_positions=ctx.q_index, kv_positions=ctx.kv_index, custom_positions=False, ordered=False)
        return super().bias(plain)


class SecretReader(PlainAlibi):
    """Reads positions, but declares uses_positions=False."""

    def bias(self, ctx: AttentionContext) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        return None

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: Any) -> Bias:
        return super().bias(ctx)

    def capabilities(self) -> Capabilities:
        return replace(super().capabilities(), uses_positions=False, kernel="bias")


class RoundedRope(PlainRope):
    """Accepts float positions, but rounds them."""

    def tables(self, positions: Tensor) -> Rotation:
        return super().tables(positions.round())


class NeedlesslyWhole(PlainRope):
    """Refuses float positions that would work."""

    continuous = False


class FirstAxisRope(PlainRope):
    """Declares two axes, but reads one."""

    max_axes = 2

    def tables(self, positions: Tensor) -> Rotation:
        return super().tables(positions[..., 0] if positions.ndim == 3 else positions)


class TextOnTimeAxis(PlainRope):
    """Treats a position without axes as a position on the first axis only."""

    max_axes = 3

    def tables(self, positions: Tensor) -> Rotation:
        pairs = self.width // 2
        each = torch.nn.functional.pad(positions[..., None], (0, 2)) if positions.ndim == 2 else positions
        spread = each.repeat_interleave(pairs // 3, dim=-1)
        angle = spread * self.inv_freq(positions.device)
        both = self.channels(angle.cos()[:, None], angle.sin()[:, None])
        return Rotation(*both, *both)


class NumberedCells(PlainRope):
    """Numbers the cells of an image row by row, 40 to a row, in at most 61 rows."""

    max_axes = 2

    def tables(self, positions: Tensor) -> Rotation:
        if positions.ndim == 2:
            positions = positions[..., None].expand(-1, -1, 2)
        return super().tables(positions[..., 0].clamp(max=60) * 40 + positions[..., 1])


class OneSidedT5(T5Bias):
    """Has buckets for past keys only, but declares that it needs no causal mask."""

    def __init__(self, dims: Dims):
        super().__init__(dims.heads, dims.causal)
        self.causal_only = False  # pyright: ignore[reportAttributeAccessIssue]

    def of_distance(self, distance: Tensor) -> Tensor:
        return self.table.t()[:, t5_buckets(distance, self.num_buckets, self.max_distance, causal=True)]


class FalselyOrdered(NoPosition):
    """Declares that it sees order without a causal mask; it does not."""

    causal_only = False

    def __init__(self, dims: Dims):
        super().__init__()


class NeedlesslyCausal(PlainAlibi):
    """Refuses encoders, in which it would work."""

    causal_only = True


class NeedlesslyCounting(PlainAlibi):
    """Declares that it counts keys, and counts none."""

    causal_only = True
    counts_keys = True


class HalfAngles(PlainSinusoidal):
    """Computes angles in the dtype of the activations."""

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        exponent = torch.arange(0, self.dim, 2, device=x.device) / self.dim
        angle = positions[..., None].to(x.dtype) * (10_000.0**-exponent).to(x.dtype)
        return x + torch.cat([angle.sin(), angle.cos()], -1)[..., : self.dim]


class MatmulAngles(PlainRope):
    """Computes angles with `@`, which runs in bfloat16 under autocast."""

    def tables(self, positions: Tensor) -> Rotation:
        angle = positions[..., None].float() @ self.inv_freq(positions.device).float()[None]
        both = self.channels(angle.cos()[:, None], angle.sin()[:, None])
        return Rotation(*both, *both)


class HalfGates(PlainForgetting):
    """Sums its gates in the dtype of the activations."""

    def key_state(self, x: Tensor) -> Tensor:
        return F.logsigmoid(self.gate(x)).transpose(1, 2)[..., None]

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: Any) -> Bias:
        c = torch.zeros(1).to(q) + state[..., 0].to(q.dtype).cumsum(-1)  # type: ignore[index]
        return Bias(lambda b, h, i, j: c[b, h, i + ctx.S - ctx.T] - c[b, h, j], ctx.batch, ctx.heads)


class BufferedRope(PlainRope):
    """Keeps its frequencies in a buffer, which .bfloat16() rounds."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.register_buffer(
            "table", 10_000.0 ** -(torch.arange(0, dims.head_dim, 2) / dims.head_dim), persistent=False
        )

    def frequencies(self, device: torch.device, lengths: Tensor | None = None) -> Frequencies:
        return Frequencies(self.get_buffer("table"))


class TensorRope(PlainRope):
    """Keeps its frequencies in a plain tensor, which stays behind when the model changes device."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.table = 10_000.0 ** -(torch.arange(0, dims.head_dim, 2) / dims.head_dim)

    def frequencies(self, device: torch.device, lengths: Tensor | None = None) -> Frequencies:
        return Frequencies(self.table)


class RandomSlopes(PlainAlibi):
    """Draws random slopes when built, and does not save them."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.left = [float(s) for s in torch.rand(dims.heads, device="cpu")]


class SlopeFunction(PlainAlibi):
    """Holds a function, which cannot be pickled."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.slope = lambda h: 2.0**-h


class SharedTable(PlainLearned):
    """Its deep copies share its table."""

    def __deepcopy__(self, memo: dict[int, Any]) -> "SharedTable":
        return self


class LooksAtPositions(PlainRope):
    """Branches on the values of positions, which forces a device sync and breaks the graph."""

    def tables(self, positions: Tensor) -> Rotation:
        return super().tables(positions if int(positions.max()) > 5 else positions * 1)


class CountsCalls(PlainRope):
    """Holds a number that changes with each call, so every call recompiles."""

    def __init__(self, dims: Dims):
        super().__init__(dims)
        self.calls = 0

    def tables(self, positions: Tensor) -> Rotation:
        self.calls += 1
        shape = [1] * (self.calls % 7 + 1)
        return super().tables(positions.reshape(*shape, *positions.shape).reshape(positions.shape))
