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
from x_positional.schemes.terms import ScoreBlock, ScoreTerm


@dataclass(frozen=True)
class ToeplitzBias(Bias):
    """The bias of consecutive queries and keys, from a table of distances."""

    table: Tensor
    """[H N], the bias at distances low, low + 1, ..."""
    low: int
    """The smallest distance in the table."""

    def dense(self, ctx: AttentionContext, rows: Span, keys: Span) -> Tensor:
        """[1 H rows keys]. Every row is a window of the reversed table, so nothing is gathered and the mask costs nothing."""
        by_pair = ctx.window.chunk is not None or ctx.window.keep_first or ctx.custom_mask is not None
        if torch.compiler.is_compiling() or by_pair:
            # unfold would recompile for each length; chunks, kept tokens and given masks do not depend on distance alone
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
        return BandTerm(self.table, self.low, ctx.q_start - ctx.kv_start)


@dataclass(frozen=True)
class LookupBias(Bias):
    """The bias of any whole positions, from a table of distances."""

    table: Tensor
    """[H N], the bias at distances low, low + 1, ..."""
    low: int
    """The smallest distance in the table."""

    def term(self, ctx: AttentionContext, blocks: Sequence[tuple[Span, Span]]) -> ScoreTerm:
        return LookupTerm(self.table, self.low, ctx)


class BandTerm(ScoreTerm):
    """A bias of distance.

    Args:
        table: [H N], the bias at distances low, low + 1, ... Beyond either end keys are hidden.
        low: the smallest distance in the table.
        offset: the distance of the first query and the first key.
    """

    def __init__(self, table: Tensor, low: int, offset: int):
        self.inputs, self.low, self.offset = (table,), low, offset

    @property
    def arguments(self) -> tuple[Any, ...]:
        return *self.inputs, self.low, self.offset

    def by_distance(self, inputs: Sequence[Tensor]) -> tuple[Tensor, int]:
        (table,) = inputs
        return table.flip(-1), self.offset - self.low - table.shape[-1] + 1

    def sum_distances(self, grad: Tensor, low: int, heads: Span, sums: Sequence[Tensor | None]) -> None:
        (total,) = sums
        if total is not None:
            start = self.offset - low - grad.shape[-1] + 1 - self.low  # in the table, of the last column of grad
            size = total.shape[-1]
            first, last = max(0, start), min(size, start + grad.shape[-1])
            total[heads.cut, first:last] += grad.flip(-1)[:, first - start : last - start]

    def _of_block(self, table: Tensor, block: ScoreBlock) -> Tensor:
        """[G R W]. Each row is a window of the table by key minus query, one place before that of the row above."""
        by_key, low = self.by_distance((table[block.heads.cut],))
        start, stop = block.keys.start - block.queries.stop + 1 - low, block.keys.stop - block.queries.start - low
        before, after = max(0, -start), max(0, stop - by_key.shape[-1])
        window = F.pad(by_key, (before, after))[:, start + before : stop + before]
        return window.unfold(-1, block.keys.stop - block.keys.start, 1).flip(-2)

    def add(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> None:
        scores += self._of_block(inputs[0], block)

    def differentiate(self, grad: Tensor, kept: None, sums: Sequence[Tensor | None], block: ScoreBlock) -> None:
        if sums[0] is not None:
            heads, rows, width = grad.shape
            padded = F.pad(grad.flip(-2), (0, rows)).flatten(1)[:, : rows * (rows + width - 1)]
            # a row of W + R numbers, read as one of W + R - 1, begins one place further each time
            by_distance = padded.view(heads, rows, -1).sum(1)
            self.sum_distances(by_distance, block.keys.start - block.queries.stop + 1, block.heads, sums)

    def recorded(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        return scores + self._of_block(inputs[0], block)


class LookupTerm(ScoreTerm):
    """A bias of distance where rows are padded or packed: a window of the table in blocks where distances are those of the slots,
    as within a document, otherwise a lookup for each pair.

    Args:
        table: [H N], the bias at distances low, low + 1, ... Beyond either end keys are hidden.
        low: the smallest distance in the table.
        ctx: where queries and keys are.
    """

    def __init__(self, table: Tensor, low: int, ctx: AttentionContext):
        self.inputs, self.low, self.high, self.ctx = (table,), low, low + table.shape[-1] - 1, ctx
        self.offset = ctx.S - ctx.T  # without padding the last query is the last key
        self.by_slot = BandTerm(table, low, self.offset)
        self.known: dict[tuple[int, ...], bool] = {}

    @property
    def arguments(self) -> tuple[Any, ...]:
        return *self.inputs, self.low, self.ctx

    def _distances(self, block: ScoreBlock) -> Tensor:
        """[R W]."""
        q, k = self.ctx.q_positions, self.ctx.kv_positions
        return q[block.row % len(q), block.queries.cut, None] - k[block.row % len(k), block.keys.cut]

    def _follows_slots(self, block: ScoreBlock) -> bool:
        """Whether the distances of all visible keys of a block are i - j + offset, of slot i and j, and in the table. Those of
        the last padding before a row may be the first alone: its index is -1, and it sees later keys."""
        place = block.row % self.ctx.mask_batch, *block.queries, *block.keys
        if place not in self.known:
            i = torch.arange(block.queries.start + self.offset, block.queries.stop + self.offset)
            by_slot = i[:, None] - torch.arange(*block.keys)
            others = (self._distances(block) != by_slot) | (by_slot < self.low) | (by_slot > self.high)
            visible = self.ctx.visible_in_row(block.row, block.queries, block.keys)
            self.known[place] = not bool((others & visible).any())
        return self.known[place]

    def _index(self, block: ScoreBlock) -> Tensor:
        """[R * W], the place of each pair in the table."""
        return self._distances(block).clamp_(self.low, self.high).sub_(self.low).flatten()

    def add(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor | None:
        if self._follows_slots(block):
            return self.by_slot.add(scores, inputs, block)
        index = self._index(block)
        scores += inputs[0][block.heads.cut].index_select(1, index).view_as(scores)
        return index

    def differentiate(
        self, grad: Tensor, kept: Tensor | None, sums: Sequence[Tensor | None], block: ScoreBlock
    ) -> None:
        if kept is None:
            self.by_slot.differentiate(grad, None, sums, block)
        elif sums[0] is not None:
            sums[0][block.heads.cut].index_add_(1, kept, grad.flatten(1))

    def recorded(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        if self._follows_slots(block):
            return self.by_slot.recorded(scores, inputs, block)
        return scores + inputs[0][block.heads.cut].index_select(1, self._index(block)).view_as(scores)


def sum_skewed(rows: Tensor) -> Tensor:
    """[H R W + R] -> [H W + R - 1], the sum of the rows, each shifted by one place more than the row before.

    The last R numbers of a row must be 0: read with a stride of one less, a row begins among the zeros of the row before.
    """
    heads, count, length = rows.shape
    return rows.as_strided((heads, count, length - 1), (count * length, length - 1, 1)).sum(1)


def distance_bound(ctx: AttentionContext) -> int | None:
    """An upper bound of |distance|, exclusive; None if it is unknown without a host sync, or positions are floats."""
    if ctx.q_positions.is_floating_point() or ctx.kv_positions.is_floating_point():
        return None
    if not ctx.custom_positions:
        return ctx.span + 1
    if torch.compiler.is_compiling():
        return ctx.span + 1 if ctx.positions_below_span else None
    spread = torch.cat([ctx.q_positions.reshape(-1), ctx.kv_positions.reshape(-1)])
    return int(spread.max() - spread.min()) + 1


class DistanceScheme(PositionScheme):
    """A bias that is a function of distance: override `of_distance`. Caches, padding and packing cannot change it.

    Args:
        heads: H.
    """

    reach: int | None = None
    """The bias is constant from this distance on, to either side; None where it is not."""

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
        one_sided = ctx.causal and not ctx.custom_positions  # negative distances are masked
        bound = self._bound(ctx, one_sided)
        if bound is None:
            return self._of_pairs(ctx)
        table, low = self._table(ctx, 0 if one_sided else 1 - bound, bound - 1)
        q, k = self._columns(ctx)
        high = low + table.shape[-1] - 1
        return LookupBias(
            lambda b, h, i, j: table[h, (q[b, i] - k[b, j]).clamp(low, high) - low],
            ctx.mask_batch,
            self.heads,
            table,
            low,
        )

    def _bound(self, ctx: AttentionContext, one_sided: bool) -> int | None:
        """The distances of a table are below it; None where there is no table smaller than the biases of all pairs."""
        bound, pairs = distance_bound(ctx), ctx.mask_batch * ctx.T * ctx.S + 64
        if bound is not None and (bound if one_sided else 2 * bound - 1) <= pairs:
            return bound
        if self.reach is None or ctx.q_positions.is_floating_point() or ctx.kv_positions.is_floating_point():
            return None
        fits = (
            torch.compiler.is_compiling() or 2 * self.reach + 1 <= pairs
        )  # comparing would restrict a graph's lengths
        return self.reach + 1 if fits else None

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
