"""Base of every bias that depends on distance alone: a table [H, distances], never [H, T, S].

B batch, T query tokens, S key tokens, H heads, N distances. A distance is query position minus key position.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional.schemes.base import AttentionContext, Bias, PositionScheme, Span
from x_positional.schemes.terms import ScoreBlock, ScoreTerm, widened


@dataclass(frozen=True)
class ToeplitzBias(Bias):
    """The bias of consecutive queries and keys, from a table of distances."""

    table: Tensor
    """[H N], the bias at distances low, low + 1, ..."""
    low: int
    """The smallest distance in the table."""

    def dense(self, ctx: AttentionContext, rows: Span, keys: Span) -> Tensor:
        """[1 H rows keys]. Every row is a window of the reversed table, so nothing is gathered and the mask costs nothing."""
        if torch.compiler.is_compiling() or ctx.window.chunk is not None or ctx.window.keep_first:
            # unfold would recompile for each length; chunks and kept tokens do not depend on distance alone
            return super().dense(ctx, rows, keys)
        table = self._hide(self.table, ctx)
        last = (
            table.shape[-1] - 1 - (ctx.q_start - ctx.kv_start - self.low)
        )  # index of row 0, key 0 in the reversed table
        reversed_table = table.flip(-1)[:, last - rows.stop + 1 + keys.start : last - rows.start + keys.stop]
        return reversed_table.unfold(-1, keys.stop - keys.start, 1).flip(-2)[None]

    def _hide(self, table: Tensor, ctx: AttentionContext) -> Tensor:
        if ctx.visible is None:
            return table
        distance = torch.arange(self.low, self.low + table.shape[-1], device=table.device)
        hidden = distance < 0 if ctx.causal else torch.zeros_like(distance, dtype=torch.bool)
        if ctx.window.size is not None:
            hidden = hidden | (distance.abs() >= ctx.window.size)
        return table.masked_fill(hidden, float("-inf"))

    def term(self, ctx: AttentionContext, blocks: Sequence[tuple[Span, Span]]) -> ScoreTerm:
        return band_term(self.table, self.low, ctx.q_start - ctx.kv_start, blocks)


@dataclass(frozen=True)
class LookupBias(Bias):
    """The bias of any whole positions, from a table of distances."""

    table: Tensor
    """[H N], the bias at distances low, low + 1, ..."""
    low: int
    """The smallest distance in the table."""

    def term(self, ctx: AttentionContext, blocks: Sequence[tuple[Span, Span]]) -> ScoreTerm:
        offset = ctx.S - ctx.T  # without padding the last query is the last key
        band = band_term(self.table, self.low, offset, blocks)
        return LookupTerm(widened(self.table), self.low, ctx, band, offset)


def band_term(table: Tensor, low: int, offset: int, blocks: Sequence[tuple[Span, Span]]) -> "BandTerm":
    """Every block is a range of the same band: distances depend on where a key is relative to the block's first query.

    Args:
        table: [H N], the bias at distances low, low + 1, ...
        low: the smallest distance in the table.
        offset: the distance of the first query and the first key.
        blocks: queries, and the keys visible to them.
    """
    queries = max(rows.stop - rows.start for rows, _ in blocks)
    first = min(keys.start - rows.start for rows, keys in blocks)
    width = max(keys.stop - rows.start for rows, keys in blocks) - first
    nearest = offset - first - (width - 1) - low  # of the first query, the last key; in the table
    before, after = max(0, -nearest), max(0, nearest + width + queries - 1 - table.shape[-1])
    table = F.pad(widened(table), (before, after))[:, nearest + before :]  # what is padded, no query and key have
    return BandTerm(_Band.apply(table, queries, width), first)


class _Band(torch.autograd.Function):
    """[H distances] -> [H R keys], where key c of query r has distance r - c + keys - 1, counted from the first."""

    generate_vmap_rule = True

    @staticmethod
    def forward(table: Tensor, queries: int, width: int) -> Tensor:  # type: ignore[override]
        rows = table[:, : queries + width - 1].flip(-1).unfold(-1, width, 1)
        return rows.contiguous().flip(-2)  # which would keep the order of the overlapping strides, and put queries last

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.distances = inputs[0].shape[-1]

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (grad,) = grads
        heads, queries, width = grad.shape
        # a row of R + keys numbers, read as one of R + keys - 1, begins one place further each time
        skewed = F.pad(grad.flip(-2), (0, queries)).flatten(1)[:, : queries * (queries + width - 1)]
        sums = skewed.view(heads, queries, -1).sum(1).flip(-1)
        return F.pad(sums, (0, ctx.distances - sums.shape[-1])), None, None


class BandTerm(ScoreTerm):
    """A bias of distance.

    Args:
        band: [H R keys], the bias of the first R queries and all keys that any block has, relative to its first query.
        first: the first key of the band, relative to the first query.
    """

    def __init__(self, band: Tensor, first: int):
        self.inputs, self.first = (band,), first

    def _of_block(self, band: Tensor, block: ScoreBlock) -> Tensor:
        start = block.queries.start + self.first
        queries = block.queries.stop - block.queries.start
        return band[block.heads.cut, :queries, block.keys.start - start : block.keys.stop - start]

    def add(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> None:
        scores += self._of_block(inputs[0], block)

    def differentiate(self, grad: Tensor, kept: None, sums: Sequence[Tensor | None], block: ScoreBlock) -> None:
        if sums[0] is not None:
            self._of_block(sums[0], block).add_(grad)

    def by_distance(self, inputs: Sequence[Tensor]) -> tuple[Tensor, int]:
        (band,) = inputs
        return torch.cat([band[:, 1:, 0].flip(-1), band[:, 0]], -1), self.first - band.shape[1] + 1

    def recorded(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        return scores + self._of_block(inputs[0], block)


class LookupTerm(ScoreTerm):
    """A bias of distance where rows are padded or packed: a range of the band in blocks where distances are those of the slots,
    as within a document, otherwise a lookup for each pair.

    Args:
        table: [H N], the bias at distances low, low + 1, ...
        low: the smallest distance in the table.
        ctx: where queries and keys are.
        band: the bias where the distance of query i and key j is i - j + offset.
        offset: see `band`.
    """

    def __init__(self, table: Tensor, low: int, ctx: AttentionContext, band: BandTerm, offset: int):
        self.inputs = (*band.inputs, table)
        self.low, self.high, self.band = low, low + table.shape[-1] - 1, band
        self.ctx, self.offset = ctx, offset
        self.known: dict[tuple[int, ...], bool] = {}

    def _distances(self, block: ScoreBlock) -> Tensor:
        """[R W]."""
        q, k = self.ctx.q_positions, self.ctx.kv_positions
        return q[block.row % len(q), block.queries.cut, None] - k[block.row % len(k), block.keys.cut]

    def _follows_slots(self, block: ScoreBlock) -> bool:
        """Whether the distances of all visible keys of a block are those in the band."""
        place = block.row % self.ctx.mask_batch, *block.queries, *block.keys
        if place not in self.known:
            i = torch.arange(block.queries.start + self.offset, block.queries.stop + self.offset)
            others = self._distances(block) != i[:, None] - torch.arange(*block.keys)
            self.known[place] = not (others & self.ctx.visible_in_row(block.row, block.queries, block.keys)).any()
        return self.known[place]

    def _index(self, block: ScoreBlock) -> Tensor:
        """[R * W], the place of each pair in the table. Distances outside of it belong to hidden keys."""
        return self._distances(block).clamp_(self.low, self.high).sub_(self.low).flatten()

    def add(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor | None:
        if self._follows_slots(block):
            return self.band.add(scores, inputs[:1], block)
        index = self._index(block)
        scores += inputs[1][block.heads.cut].index_select(1, index).view_as(scores)
        return index

    def differentiate(
        self, grad: Tensor, kept: Tensor | None, sums: Sequence[Tensor | None], block: ScoreBlock
    ) -> None:
        if kept is None:
            self.band.differentiate(grad, None, sums[:1], block)
        elif sums[1] is not None:
            sums[1][block.heads.cut].index_add_(1, kept, grad.flatten(1))

    def recorded(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        if self._follows_slots(block):
            return self.band.recorded(scores, inputs[:1], block)
        return scores + inputs[1][block.heads.cut].index_select(1, self._index(block)).view_as(scores)


def distance_bound(ctx: AttentionContext) -> int | None:
    """An upper bound of |distance|, exclusive; None if it is unknown without a host sync, or positions are floats."""
    if ctx.q_positions.is_floating_point() or ctx.kv_positions.is_floating_point():
        return None
    if not ctx.custom_positions:
        return ctx.span + 1
    if torch.compiler.is_compiling():
        return None
    spread = torch.cat([ctx.q_positions.reshape(-1), ctx.kv_positions.reshape(-1)])
    return int(spread.max() - spread.min()) + 1


class DistanceScheme(PositionScheme):
    """A bias that is a function of distance: override `of_distance`. Caches, padding and packing cannot change it.

    Args:
        heads: H.
    """

    def __init__(self, heads: int):
        super().__init__()
        self.heads = heads

    def of_distance(self, distance: Tensor) -> Tensor:
        """[...] (int64, or float if the scheme is continuous) -> [H ...], in logits."""
        raise TypeError(f"{type(self).__name__} defines no of_distance(distance)")

    def bias(self, ctx: AttentionContext) -> Bias:
        if ctx.regular:
            low = ctx.q_start - (ctx.kv_start + ctx.S - 1)
            table, low = self._table(ctx, low, ctx.q_start + ctx.T - 1 - ctx.kv_start)
            offset = ctx.q_start - ctx.kv_start - low
            return ToeplitzBias(lambda b, h, i, j: table[h, i - j + offset], 1, self.heads, table, low)
        bound = distance_bound(ctx)
        shortest = 0 if ctx.causal and not ctx.custom_positions else 1 - (bound or 0)  # shorter ones are masked
        if bound is None or bound - shortest > ctx.mask_batch * ctx.T * ctx.S + 64:
            return self._of_pairs(ctx)
        table, low = self._table(ctx, shortest, bound - 1)
        q, k = self._columns(ctx)
        high = low + table.shape[-1] - 1
        return LookupBias(
            lambda b, h, i, j: table[h, (q[b, i] - k[b, j]).clamp(low, high) - low],
            ctx.mask_batch,
            self.heads,
            table,
            low,
        )

    def _table(self, ctx: AttentionContext, low: int, high: int) -> tuple[Tensor, int]:
        """The table for distances low..high and the distance it starts at; taken from the cache's memo if it covers them."""
        if ctx.memo is None or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self.of_distance(torch.arange(low, high + 1, device=ctx.device)), low
        known = ctx.memo.get(id(self))
        if known is None or known[1] > low or known[1] + known[0].shape[-1] - 1 < high:
            ahead = max(64, high) * 2  # for decoding: twice the length, so that it is rarely recomputed
            known = (self.of_distance(torch.arange(low, ahead + 1, device=ctx.device)), low)
            ctx.memo[id(self)] = known
        return known

    def _columns(self, ctx: AttentionContext) -> tuple[Tensor, Tensor]:
        return ctx.q_positions.expand(ctx.batch, -1), ctx.kv_positions.expand(ctx.batch, -1)

    def _of_pairs(self, ctx: AttentionContext) -> Bias:
        q, k = ctx.q_positions[: ctx.mask_batch], ctx.kv_positions[: ctx.mask_batch]
        pairs = self.of_distance(q[:, :, None] - k[:, None, :]).expand(-1, ctx.batch, -1, -1)
        return Bias(lambda b, h, i, j: pairs[h, b, i, j], ctx.mask_batch, self.heads)
