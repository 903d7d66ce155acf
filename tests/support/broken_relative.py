"""Schemes with deliberately wrong relative keys, normalisers and counts: mistakes that ports of these papers have.

B batch, T query tokens, S key tokens, H heads, D head dim, N rows of a table.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from x_positional.schemes import CableBias, FireBias, SandwichBias, ScalableSoftmax, ShawBias, TransformerXLBias
from x_positional.schemes.base import AttentionContext, Bias, Dims, LayerView
from x_positional.schemes.pairs import PairBias


class SlotShaw(ShawBias):
    """Looks its table up by the index of tokens, whatever positions are given."""

    def __init__(self, dims: Dims):
        super().__init__(dims.head_dim, dims.causal, 8)

    def layer_bias(self, view: LayerView, ctx: AttentionContext) -> Bias:
        bias = super().layer_bias(view, replace(ctx, q_positions=ctx.q_index, kv_positions=ctx.kv_index))
        return Bias(bias.fn, bias.batch, bias.heads)  # a PairBias reads the positions again


class OneSidedPairs(ShawBias):
    """Has a row for each distance to the left, and one for all keys to the right."""

    def __init__(self, dims: Dims):
        super().__init__(dims.head_dim, causal=True, max_distance=8)
        self.causal_only = dims.causal


class _NewKeysOnly(PairBias):
    """Counts distances from the last key of a chunk, as if no key were cached."""

    def dense(self, ctx: AttentionContext, rows: Any, keys: Any) -> Tensor:
        i = torch.arange(rows.start, rows.stop)[:, None]
        index = self.rows_of(i - torch.arange(keys.start, keys.stop)).expand(self.batch, self.heads, -1, -1)
        assert self.c2p is not None
        bias, visible = self.c2p[:, :, rows.cut].gather(-1, index), ctx.visible_rows(rows, keys)
        return bias if visible is None else bias.masked_fill(~visible, float("-inf"))


class ShiftedPairs(ShawBias):
    """The relative shift of a square matrix, applied to a cached pass."""

    def __init__(self, dims: Dims):
        super().__init__(dims.head_dim, dims.causal, 8)

    def layer_bias(self, view: LayerView, ctx: AttentionContext) -> Bias:
        c2p = torch.einsum("bhtd,nd->bhtn", view.q, self.table.to(view.q.dtype)) * view.scale
        right = PairBias.of(ctx, c2p, None, self.rows)
        return _NewKeysOnly(right.fn, right.batch, right.heads, right.c2p, right.p2c, right.rows_of)


class PlainXL(TransformerXLBias):
    def __init__(self, dims: Dims):
        super().__init__(dims.dim, dims.heads, dims.head_dim)


class DetachedXL(PlainXL):
    """Adds u to queries as a constant, so it is never trained."""

    def rotate_q(self, q: Tensor, tables: Any) -> Tensor:
        return q + self.u[:, None].detach().to(q.dtype)


class UnmovedXL(PlainXL):
    """Projects the sinusoid of the key's position in place of the distance."""

    def layer_bias(self, view: LayerView, ctx: AttentionContext) -> Bias:
        bias = super().layer_bias(view, replace(ctx, q_positions=torch.zeros_like(ctx.q_positions)))
        return Bias(bias.fn, bias.batch, bias.heads)  # a PairBias reads the positions again


class LongestFire(FireBias):
    """Divides by the longest position of the batch in place of the query's own."""

    def __init__(self, dims: Dims):
        super().__init__(dims.heads, width=5, scale=0.7, threshold=2.0)

    def bias(self, ctx: AttentionContext) -> Bias:
        self.initial_threshold = max(2.0, float(ctx.q_positions.max()))
        return super().bias(ctx)


class RelativeFire(FireBias):
    """Declared relative, although distances become fractions of the query's position."""

    absolute = False

    def __init__(self, dims: Dims):
        super().__init__(dims.heads, width=5, scale=0.7, threshold=6.0)


class WholeSandwich(SandwichBias):
    """Rounds distances down, which are fractions for given float positions."""

    def __init__(self, dims: Dims):
        super().__init__(dims.heads, dims.head_dim)

    def of_distance(self, distance: Tensor) -> Tensor:
        return super().of_distance(distance.floor() if distance.is_floating_point() else distance)


class ChunkSSMax(ScalableSoftmax):
    """Counts the keys of its own call."""

    def __init__(self, dims: Dims):
        super().__init__(dims.heads, 1.0)

    def tables(self, positions: Tensor) -> Tensor:
        return super().tables(torch.arange(positions.shape[1]).expand_as(positions))


class GrowingCable(CableBias):
    """Measures distances in the sum over all tokens so far, which later tokens change."""

    def __init__(self, dims: Dims):
        super().__init__(dims.dim, dims.heads)

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: Any) -> Bias:
        right = super().content_bias(q, ctx, state, query_state)
        assert state is not None
        total = state.abs().sum(2)[..., 0]  # [B H]
        return Bias(lambda b, h, i, j: right.fn(b, h, i, j) / (1 + total[b, h]), right.batch, right.heads)
