"""Attention by tiles of queries and keys on a CPU: the scores of one tile at a time, and again in the backward pass.

Biases and the softmax run in place on two buffers that fit a core's cache. The forward pass goes through the tiles of a block of
queries with a running maximum and sum (Dao et al. 2022, arXiv:2205.14135), or calls torch's kernel; the backward pass goes through
the blocks of queries that see a range of keys and recomputes probabilities from each row's logarithm of the sum. A transform of
whole rows takes tiles of all keys.
Under a causal mask or in a window only tiles that some query sees are computed.

B batch, T query tokens, S key tokens, H heads, D head dim, E value dim; a tile has G heads, R queries and W keys.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from x_positional.attention.backends.base import (
    Prepared,
    ScoreOps,
    SeededDropout,
    autocasts,
    blocks_of,
    inside_torch_func,
)
from x_positional.schemes.base import AttentionContext, Bias, Span
from x_positional.schemes.terms import ScoreBlock, ScoreTerm, SumTerm, widened

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Half precision is computed in float32."""
FEWEST = 64
"""Queries below which one call of torch's kernel, or one matrix of scores, is at least as fast."""
FEWEST_TRAINING, FEWEST_INFERENCE = 512, 2048
"""The same for a bias, where torch's kernel takes masks of all queries, which count in memory only for many."""
QUERIES, KEYS, KERNEL_QUERIES = 128, 512, 1024
"""Of a tile, and the most queries that torch's kernel gets at a time."""
SCORES_PER_THREAD, SCORES_OF_ROWS = 2**18, 2**21
"""Of a tile: as many heads at a time as make this many scores. The second is for a transform of whole rows."""


def applies(tensors: Sequence[Tensor], queries: int) -> bool:
    """Whether attention can run by blocks: plain tensors on a CPU, outside compilers and transforms."""
    if torch.compiler.is_compiling() or queries < FEWEST or forward_ad._current_level >= 0:
        return False
    plain = (type(t) in (Tensor, torch.nn.Parameter) and t.dtype in DTYPES and t.device.type == "cpu" for t in tensors)
    return all(plain) and not any(map(inside_torch_func, tensors))


def blocks_pay(queries: int) -> bool:
    """Whether attention with a bias runs by blocks of queries although torch's kernel could run it with masks."""
    return queries >= (FEWEST_TRAINING if torch.is_grad_enabled() else FEWEST_INFERENCE)


def shared_term(ctx: AttentionContext, bias: Bias | None, dtype: torch.dtype) -> ScoreTerm | None:
    """The bias of all layers of a kind, for blocks; None where it does not apply."""
    if bias is None or dtype not in DTYPES or ctx.device.type != "cpu" or not applies((), ctx.T):
        return None
    return bias.term(ctx, blocks_for(ctx))


def blocks_for(ctx: AttentionContext) -> list[tuple[Span, Span]]:
    """Blocks of queries, each with the range of keys visible to them."""
    return blocks_of(ctx, QUERIES)


class Tile(NamedTuple):
    """Some queries and a range of keys visible to them."""

    number: int
    """Of the block of queries."""
    queries: Span
    """R queries."""
    keys: Span
    """W keys."""
    earlier: int
    """How many of these keys, from the first on, are known to precede every query."""


@dataclass(frozen=True)
class RowsPlan:
    """What the computation reads besides tensors with a gradient."""

    ctx: AttentionContext
    blocks: list[tuple[Span, Span]]
    scale: float
    terms: SumTerm
    dropout: SeededDropout | None = None
    """Of the probabilities."""
    known: dict[tuple[int, ...], list["Hidden"]] = field(default_factory=dict)
    """Results of `hidden` where they depend on the place of the keys relative to the queries alone."""
    counts: dict[tuple[int, ...], int] = field(default_factory=dict)
    """How many pairs of a query and a key are visible, by row of the batch, where the host does not know the mask."""

    @property
    def width(self) -> int:
        """Keys in a tile, at most."""
        return self.ctx.S if self.terms.whole_rows else KEYS

    def tiles(self, index: int) -> list[Tile]:
        """The tiles of a block of queries. Their edges are multiples of `width`."""
        (queries, keys), width = self.blocks[index], self.width
        starts = range(keys.start // width * width, keys.stop, width)
        spans = [Span(max(start, keys.start), min(start + width, keys.stop)) for start in starts]
        return [Tile(index, queries, span, self.ctx.earlier_than(queries, span)) for span in spans]

    def by_keys(self) -> list[tuple[Span, list[Tile]]]:
        """Ranges of `width` keys, each with its tiles."""
        width = self.width
        found = [(Span(start, min(start + width, self.ctx.S)), list[Tile]()) for start in range(0, self.ctx.S, width)]
        for index in range(len(self.blocks)):
            for tile in self.tiles(index):
                found[tile.keys.start // width][1].append(tile)
        return found

    def parts(self, batch: int) -> list[tuple[int, Span]]:
        """Rows of the batch and ranges of heads that are computed one after the other."""
        heads = self.ctx.heads
        scores = SCORES_OF_ROWS if self.terms.whole_rows else SCORES_PER_THREAD * torch.get_num_threads()
        count = -(-heads // max(1, scores // self.largest))
        size = -(-heads // count)
        spans = [Span(start, min(start + size, heads)) for start in range(0, heads, size)]
        return [(row, span) for row in range(batch) for span in spans]

    @property
    def largest(self) -> int:
        """Scores of the largest tile, for one head."""
        return max((rows.stop - rows.start) * min(self.width, keys.stop - keys.start) for rows, keys in self.blocks)

    def hidden(self, row: int, queries: Span, keys: Span) -> list["Hidden"]:
        """Where some of these keys are hidden in a row of the batch."""
        if not self.ctx.simple_mask:
            return self._hidden(row, queries, keys)
        place = keys.start - queries.start, keys.stop - queries.start, queries.stop - queries.start
        if place not in self.known:
            self.known[place] = self._hidden(row, queries, keys)
        return self.known[place]

    def _hidden(self, row: int, queries: Span, keys: Span) -> list["Hidden"]:
        found = []
        for span in self.ctx.edges_of(queries, keys):
            size = (queries.stop - queries.start) * (span.stop - span.start)
            if not self.ctx.simple_mask and self._count(row, queries, span) == size:
                continue
            seen = self.ctx.visible_in_row(row, queries, span)
            cut = slice(span.start - keys.start, span.stop - keys.start)
            mask = torch.zeros_like(seen, dtype=torch.float32).masked_fill_(~seen, float("-inf"))
            found.append(Hidden(cut, seen, mask))
        return found

    def _count(self, row: int, queries: Span, keys: Span) -> int:
        """How many pairs of these queries and keys are visible."""
        place = row % self.ctx.mask_batch, *queries, *keys
        if place not in self.counts:
            self.counts[place] = int(self.ctx.visible_in_row(row, queries, keys).sum())
        return self.counts[place]

    def seen(self, row: int, tiles: Sequence[Tile]) -> Sequence[Tile]:
        """The tiles in which some key is visible in a row of the batch; at least one."""
        if self.ctx.simple_mask:
            return tiles
        return [tile for tile in tiles if self._count(row, tile.queries, tile.keys)] or tiles[:1]

    def kept(self, row: int, heads: Span, tile: Tile) -> Tensor | None:
        """[G R W] bool, which probabilities of a tile dropout keeps. Of its place alone: the same in every pass."""
        if self.dropout is None:
            return None
        rows, width = tile.queries.stop - tile.queries.start, tile.keys.stop - tile.keys.start
        ctx, own = self.ctx, range(row * self.ctx.heads + heads.start, row * self.ctx.heads + heads.stop)
        places = [(head * ctx.T + tile.queries.start) * ctx.S + tile.keys.start for head in own]
        return self.dropout.kept(places, rows * width).view(len(places), rows, width)

    def each_block(self, batch: int) -> Iterator[ScoreBlock]:
        """Every block of every row of the batch, with all heads and keys."""
        every_head = Span(0, self.ctx.heads)
        for queries, keys in self.blocks:
            for row in range(batch):
                yield ScoreBlock(row, every_head, queries, keys, self.ctx.earlier_than(queries, keys))


class Hidden(NamedTuple):
    """Where some of a tile's keys are hidden from some of its queries."""

    keys: slice
    """A range of the tile's keys."""
    visible: Tensor
    """[R keys] bool."""
    mask: Tensor
    """[R keys], -inf where hidden, 0 elsewhere."""


@dataclass
class Scores:
    """Computes the scores of tiles of one row of the batch, in a buffer that every tile uses again."""

    plan: RowsPlan
    row: int
    inputs: Sequence[Tensor]
    """Of the terms."""
    buffer: Tensor

    def block(self, tile: Tile, heads: Span) -> ScoreBlock:
        """Some heads of a tile, for terms."""
        return ScoreBlock(self.row, heads, tile.queries, tile.keys, tile.earlier)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """a [G R D] times b [G W D], as [G R W] in the buffer."""
        shape = a.shape[0], a.shape[1], b.shape[1]
        return torch.bmm(a, b.mT, out=self.buffer[: shape[0] * shape[1] * shape[2]].view(shape))

    def of(self, tile: Tile, heads: Span, q: Tensor, k: Tensor) -> tuple[Tensor, list[Hidden], Any]:
        """[G R W], where keys are hidden, and what the terms keep. q: [G R D], scaled; k: [G W D]."""
        scores, hidden = self.product(q, k), self.plan.hidden(self.row, tile.queries, tile.keys)
        for cut, _, mask in hidden:
            scores[..., cut] += mask
        return scores, hidden, self.plan.terms.add(scores, self.inputs, self.block(tile, heads))


def _least(dtype: torch.dtype) -> float:
    """The logarithm of probabilities that are as good as 0."""
    return 3 * math.log(torch.finfo(dtype).eps)


def _exp_(scores: Tensor, hidden: list[Hidden], terms: SumTerm) -> Tensor:
    """exp in place of what is at most about 0, and 0 for hidden keys.

    A processor handles numbers below the smallest normal one a hundred times slower, also inside `exp`. So the results, and their
    products with gradients, stay above: what is below the cube of the dtype's precision is as good as that.
    """
    if terms.parts or hidden:
        scores.clamp_(min=_least(scores.dtype))
    scores.exp_()
    for cut, visible, _ in hidden:
        scores[..., cut] *= visible
    return scores


def no_autocast() -> AbstractContextManager[object]:
    """Disables autocast, under which products of float32 would be rounded."""
    return torch.autocast("cpu", enabled=False) if autocasts("cpu") else nullcontext()


class RowsAttention(torch.autograd.Function):
    """[B H T D], [B H S D], [B H S E], inputs of the terms -> [B H T E]."""

    @staticmethod
    def forward(ctx: Any, plan: RowsPlan, q: Tensor, k: Tensor, v: Tensor, *inputs: Tensor) -> Tensor:
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)  # as heads are joined
        logsumexp = q.new_empty(*q.shape[:3], 1)
        ctx.plan, ctx.bias = plan, DistanceBias.of(plan, (q, k, v), inputs)
        if ctx.bias is None:
            _attend_by_tiles(plan, (q, k, v), inputs, out, logsumexp)
        else:
            _attend_by_kernel(plan, (q, k, v), ctx.bias, out, logsumexp)
        ctx.save_for_backward(q, k, v, out, logsumexp, *inputs)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan, (grad,), (q, k, v, out, logsumexp, *inputs) = ctx.plan, grads, ctx.saved_tensors
        with no_autocast():
            if torch.is_grad_enabled():  # create_graph=True
                return None, *_recorded_gradients(plan, (q, k, v, *inputs), grad)
            return None, *_gradients(plan, ctx.bias, (q, k, v, out, logsumexp), inputs, grad)


def _buffer(plan: RowsPlan, like: Tensor) -> Tensor:
    """As many numbers as the largest tile has scores."""
    return like.new_empty(plan.largest * max(heads.stop - heads.start for _, heads in plan.parts(1)))


@dataclass(frozen=True)
class DistanceBias:
    """The bias of query i and key j as a table of j - i."""

    table: Tensor
    """[H N], at j - i = low, low + 1, ...; -inf where the key is hidden."""
    low: int
    own: int
    """j - i of a query and its own key."""
    window: int
    """How many keys a query sees at most, with its own."""
    margin: Tensor | None
    """[H 1] by how much a bias must be below another one, so that its key does not count beside the other one's; None where no two
    biases differ that much."""

    @classmethod
    def of(cls, plan: RowsPlan, tensors: Sequence[Tensor], inputs: Sequence[Tensor]) -> "DistanceBias | None":
        """None where the bias depends on more than distance, or torch's kernel does not apply."""
        (q, k, v), ctx, found = tensors, plan.ctx, plan.terms.by_distance(inputs)
        own = ctx.q_start - ctx.kv_start
        if plan.dropout is not None or found is None or not ctx.simple_mask:
            return None
        if q.shape[-1] != v.shape[-1] or own < 0 or own + ctx.T > ctx.S:
            return None
        table, low = found[0].contiguous(), found[1]  # `rows` makes views of it
        spread = table.amax(-1) - table.amin(-1)
        least, margin = -_least(q.dtype), None
        if float(spread.max()) > least:
            lengths = [torch.linalg.vector_norm(t, dim=-1).amax(2) for t in (q, k)]
            margin = (lengths[0] * lengths[1]).amax(0)[:, None].mul_(2 * abs(plan.scale)).add_(least)
        if ctx.visible is not None:
            distance = own - torch.arange(low, low + table.shape[-1], device=table.device)
            hidden = distance < 0 if ctx.causal else torch.zeros_like(distance, dtype=torch.bool)
            if ctx.window.size is not None:
                hidden |= distance.abs() >= ctx.window.size
            table = table.masked_fill(hidden, float("-inf"))
        return cls(table, low, own, ctx.S if ctx.window.size is None else ctx.window.size, margin)

    def of_block(self, queries: Span, keys: Span) -> tuple[Tensor, list[int]]:
        """The table for some queries, -inf also where a key does not count, and the first key that counts in each head."""
        if self.margin is None:
            return self.table, [keys.start] * len(self.table)
        nearest = self.own - self.low
        farthest = nearest - min(self.own + queries.start, self.window - 1)  # that every query sees
        highest = self.table[:, farthest : nearest + 1].amax(-1, keepdim=True)
        table = self.table.masked_fill(self.table < highest - self.margin, float("-inf"))
        first = (table > float("-inf")).to(torch.uint8).argmax(-1) + (self.low + queries.start)
        return table, [max(keys.start, key) for key in first.tolist()]

    def rows(self, table: Tensor, queries: Span, keys: Span) -> Tensor:
        """[G R W], a view of a table [G N] for queries in reverse order: rows and columns both advance by one number."""
        rows, width = queries.stop - queries.start, keys.stop - keys.start
        start = keys.start - queries.stop + 1 - self.low  # of the last query and the first key
        before, after = max(0, -start), max(0, start + rows + width - 1 - table.shape[-1])
        if before or after:
            table = F.pad(table, (before, after), value=float("-inf"))
        place = table.storage_offset() + start + before
        return table.as_strided((len(table), rows, width), (table.stride(0), 1, 1), place)


def _attend_by_kernel(
    plan: RowsPlan, tensors: Sequence[Tensor], bias: DistanceBias, out: Tensor, logsumexp: Tensor
) -> None:
    """Fills out [B H T E] and logsumexp [B H T 1]. torch's kernel reads a mask by its strides, so that it can be a view."""
    q, k, v = tensors
    backwards, kernel = q.flip(2), torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    size = min(KERNEL_QUERIES, max(KERNEL_QUERIES // 4, plan.ctx.T // (4 if bias.margin is None else 8)))
    for queries, seen in blocks_of(plan.ctx, size):
        whole, firsts = bias.of_block(queries, seen)
        for heads, first in _runs(firsts):
            keys = Span(first, seen.stop)
            mask = bias.rows(whole[heads.cut], queries, keys)[None]
            own = backwards[:, heads.cut, plan.ctx.T - queries.stop : plan.ctx.T - queries.start]
            k_own, v_own, at = (
                k[:, heads.cut, keys.cut],
                v[:, heads.cut, keys.cut],
                (slice(None), heads.cut, queries.cut),
            )
            found, sums = kernel(own, k_own, v_own, attn_mask=mask, scale=plan.scale)
            out[at], logsumexp[(*at, 0)] = found.flip(2), sums.flip(2)


def _runs(firsts: Sequence[int]) -> list[tuple[Span, int]]:
    """Neighbouring heads that begin at about the same key, with the first of their keys."""
    found: list[tuple[Span, int]] = []
    for _, run in groupby(range(len(firsts)), key=lambda head: firsts[head] // KEYS):
        heads = list(run)
        found.append((Span(heads[0], heads[-1] + 1), min(firsts[head] for head in heads)))
    return found


def _attend_by_tiles(
    plan: RowsPlan, tensors: Sequence[Tensor], inputs: Sequence[Tensor], out: Tensor, logsumexp: Tensor
) -> None:
    """Fills out [B H T E] and logsumexp [B H T 1]."""
    q, k, v = tensors
    scaled, buffer, tiles = q * plan.scale, _buffer(plan, q), [plan.tiles(index) for index in range(len(plan.blocks))]
    for row, heads in plan.parts(len(q)):
        scores, mine = Scores(plan, row, inputs, buffer), (row, heads.cut)
        keys, values = k[mine], v[mine]
        for (queries, _), own in zip(plan.blocks, tiles, strict=True):
            at = (*mine, queries.cut)
            out[at], logsumexp[at] = _attend(scores, heads, scaled[at], keys, values, plan.seen(row, own))


def _attend(part: Scores, heads: Span, q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[Tile]) -> tuple[Tensor, Tensor]:
    """[G R E] of some queries, and the logarithm [G R 1] of the sum of exp(score); q: [G R D], k: [G S D], v: [G S E]."""
    limits, rows = torch.finfo(q.dtype), (*q.shape[:2], 1)
    highest, sums, total = q.new_full(rows, limits.min), q.new_zeros(rows), q.new_zeros(*q.shape[:2], v.shape[2])
    for tile in tiles:
        scores, hidden, _ = part.of(tile, heads, q, k[:, tile.keys.cut])
        top = torch.maximum(highest, scores.amax(-1, keepdim=True))  # finite also where a query sees no key
        _exp_(scores.sub_(top), hidden, part.plan.terms)
        shrink = highest.sub_(top).exp_()
        sums.mul_(shrink).add_(scores.sum(-1, keepdim=True))
        kept = part.plan.kept(part.row, heads, tile)
        if kept is not None:
            scores.mul_(kept)
        total.mul_(shrink).baddbmm_(scores, v[:, tile.keys.cut])
        highest = top
    sums.clamp_(min=limits.tiny)
    total.div_(sums)
    if part.plan.dropout is not None:
        total.mul_(part.plan.dropout.factor)
    return total, sums.log_().add_(highest)


def _recorded_gradients(plan: RowsPlan, tensors: Sequence[Tensor], grad: Tensor) -> list[Tensor | None]:
    """The gradients of all tensors, recorded by autograd. Views keep derivatives partial where one was computed from another."""
    views = [t.view_as(t) for t in tensors]
    wanted = [t for t in views if t.requires_grad]
    found = iter(torch.autograd.grad(_recorded(plan, *views), wanted, grad, create_graph=True, allow_unused=True))
    return [next(found) if t.requires_grad else None for t in views]


def _recorded(plan: RowsPlan, q: Tensor, k: Tensor, v: Tensor, *inputs: Tensor) -> Tensor:
    """The same attention as a function that autograd records, except the scores of each block, which it recomputes."""

    def run(at: ScoreBlock, q: Tensor, k: Tensor, v: Tensor, *inputs: Tensor) -> Tensor:
        row, queries, keys = at.row, at.queries.cut, at.keys
        hidden = q.new_zeros(1, queries.stop - queries.start, keys.stop - keys.start, dtype=torch.bool)
        for cut, visible, _ in plan.hidden(row, at.queries, keys):
            hidden[..., cut] = ~visible
        scores = (q[row, :, queries] * plan.scale) @ k[row, :, keys.cut].mT
        scores = plan.terms.recorded(scores.masked_fill(hidden, torch.finfo(q.dtype).min), inputs, at)
        probabilities = scores.softmax(-1).masked_fill(hidden, 0)
        if plan.dropout is not None:
            tiles = plan.tiles([block for block, _ in plan.blocks].index(at.queries))
            kept = torch.cat([plan.kept(row, at.heads, tile) for tile in tiles], -1)  # type: ignore[arg-type,misc]
            probabilities = probabilities * kept * plan.dropout.factor
        return probabilities @ v[row, :, keys.cut]

    out = [checkpoint(run, at, q, k, v, *inputs, use_reentrant=False) for at in plan.each_block(len(q))]
    rows = [torch.cat(out[row :: len(q)], dim=1) for row in range(len(q))]
    return torch.stack(rows)


class BlockGradients(NamedTuple):
    """What the gradients of a block of queries and some heads need."""

    q: Tensor
    """[G R D], scaled."""
    grad: Tensor
    """[G R E], of the result."""
    logsumexp: Tensor
    """[G R 1]."""
    delta: Tensor
    """[G R 1], the sum of the result times its gradient."""
    dq: Tensor
    """[G R D], the gradient of the scaled queries, so far."""


def _gradients(
    plan: RowsPlan, bias: DistanceBias | None, tensors: Sequence[Tensor], inputs: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of q, k, v and inputs. tensors: q, k, v, the result, and the logarithms of the sums."""
    q, k, v, out, logsumexp = tensors
    scaled, delta = q * plan.scale, (grad * out).sum(-1, keepdim=True)
    grad = grad if plan.dropout is None else grad * plan.dropout.factor
    dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    sums = [torch.zeros_like(t, memory_format=torch.contiguous_format) if t.requires_grad else None for t in inputs]
    first, second, by_keys = _buffer(plan, q), _buffer(plan, q), plan.by_keys()
    firsts = None if bias is None or bias.margin is None else [bias.of_block(*spans)[1] for spans in plan.blocks]
    skewed = None if bias is None or not plan.terms.inputs[0].requires_grad else Skewed.of(q, k)
    for row, heads in plan.parts(len(q)):
        blocks = []
        for queries, _ in plan.blocks:
            at = row, heads.cut, queries.cut
            found = [t[at].contiguous() for t in (scaled, grad, logsumexp, delta)]  # their batched products are faster
            found = found if bias is None else [t.flip(1) for t in found]
            blocks.append(BlockGradients._make([*found, torch.zeros_like(found[0])]))
        part = KeyGradients(Scores(plan, row, inputs, first), second, heads, blocks, bias, firsts, skewed, sums)
        for keys, tiles in by_keys:
            at = row, heads.cut, keys.cut
            dk[at], dv[at] = part.of_keys(k[at].contiguous(), v[at].contiguous(), keys, tiles)
        for (queries, _), block in zip(plan.blocks, blocks, strict=True):
            dq[row, heads.cut, queries.cut] = (block.dq if bias is None else block.dq.flip(1)).mul_(plan.scale)
    if skewed is not None:
        plan.terms.sum_distances(skewed.total, 1 - q.shape[2], Span(0, q.shape[1]), sums)
    return dq, dk, dv, *sums


@dataclass
class Skewed:
    """Sums products of two tiles by distance."""

    queries: int
    """T."""
    total: Tensor
    """[H T + S - 1], at key minus query = 1 - T, 2 - T, ..."""
    buffer: Tensor
    """[G QUERIES KEYS + QUERIES], with zeros from `filled` on."""
    filled: int = 0

    @classmethod
    def of(cls, q: Tensor, k: Tensor) -> "Skewed":
        """For tiles of these queries and keys."""
        heads, queries = q.shape[1:3]
        total, buffer = q.new_zeros(heads, queries + k.shape[2] - 1), q.new_zeros(heads, QUERIES, KEYS + QUERIES)
        return cls(queries, total, buffer)

    def product(self, a: Tensor, b: Tensor, tile: Tile, heads: Span) -> Tensor:
        """[G R W] a * b, with queries in reverse order; adds it to `total`."""
        count, rows, width = a.shape
        self.buffer[..., width : self.filled] = 0
        self.filled = width
        out = torch.mul(a, b, out=self.buffer[:count, :rows, :width])
        # each row is one place further from its keys: read with a stride of one less, it begins among the zeros of the row before
        shape, first = (count, rows, width + rows - 1), tile.keys.start - tile.queries.stop
        sums = out.as_strided(shape, (out.stride(0), out.stride(1) - 1, 1)).sum(1)
        start = first + self.queries
        self.total[heads.cut, start : start + shape[2]] += sums
        return out


@dataclass
class KeyGradients:
    """Computes gradients of one row of the batch and some heads, a range of keys at a time."""

    scores: Scores
    buffer: Tensor
    """For the gradients of the scores."""
    heads: Span
    blocks: Sequence[BlockGradients]
    """Of queries, in reverse order where there is a bias of distance; their `dq` grows."""
    bias: DistanceBias | None
    firsts: Sequence[Sequence[int]] | None
    """For each block, the first key that counts in each head of the model. None is all."""
    skewed: Skewed | None
    """For the gradient of a bias of distance; None where there is none, or it needs none."""
    sums: Sequence[Tensor | None]
    """The gradients of the inputs, which grow."""

    def of_keys(self, k: Tensor, v: Tensor, keys: Span, tiles: Sequence[Tile]) -> tuple[Tensor, Tensor]:
        """The gradients of some keys [G W D] and values [G W E]."""
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        for tile in self.scores.plan.seen(self.scores.row, tiles):
            heads, block, found = self.heads_of(tile), self.blocks[tile.number], (k, v, dk, dv)
            if heads.start == heads.stop:
                continue
            if heads != self.heads or tile.keys != keys:
                mine = slice(heads.start - self.heads.start, heads.stop - self.heads.start)
                cut = slice(tile.keys.start - keys.start, tile.keys.stop - keys.start)
                block, found = BlockGradients._make(t[mine] for t in block), tuple(t[mine, cut] for t in found)
            self.of_tile(tile, heads, block, *found)
        return dk, dv

    def of_tile(
        self, tile: Tile, heads: Span, block: BlockGradients, k: Tensor, v: Tensor, dk: Tensor, dv: Tensor
    ) -> None:
        """Adds the gradients of a tile to those of its queries, keys, values and inputs."""
        plan, (p, kept) = self.scores.plan, self.probabilities(tile, heads, block, k)
        of_scores, undropped = self.buffer[: p.numel()].view(p.shape), plan.kept(self.scores.row, heads, tile)
        dv.baddbmm_((p if undropped is None else torch.mul(p, undropped, out=of_scores)).mT, block.grad)
        torch.bmm(block.grad, v.mT, out=of_scores)
        if undropped is not None:
            of_scores.mul_(undropped)
        of_scores.sub_(block.delta)
        if self.skewed is not None:
            of_scores = self.skewed.product(of_scores, p, tile, heads)
        else:
            of_scores.mul_(p)
        if self.bias is None:
            plan.terms.differentiate(of_scores, kept, self.sums, self.scores.block(tile, heads))
        block.dq.baddbmm_(of_scores, k)
        dk.baddbmm_(of_scores.mT, block.q)

    def probabilities(self, tile: Tile, heads: Span, block: BlockGradients, k: Tensor) -> tuple[Tensor, Any]:
        """[G R W], and what the terms keep."""
        scores, plan = self.scores, self.scores.plan
        if self.bias is None:
            p, hidden, kept = scores.of(tile, heads, block.q, k)
            return _exp_(p.sub_(block.logsumexp), hidden, plan.terms), kept
        rows = self.bias.rows(self.bias.table[heads.cut], tile.queries, tile.keys)
        p = torch.sub(rows, block.logsumexp, out=scores.buffer[: rows.numel()].view(rows.shape)).baddbmm_(block.q, k.mT)
        hidden = [
            found._replace(visible=found.visible.flip(0)) for found in plan.hidden(scores.row, tile.queries, tile.keys)
        ]
        return _exp_(p, hidden, plan.terms), None

    def heads_of(self, tile: Tile) -> Span:
        """The heads in which some key of a tile counts, and those between them."""
        if self.firsts is None:
            return self.heads
        firsts = self.firsts[tile.number]
        found = [head for head in range(*self.heads) if firsts[head] < tile.keys.stop]
        return Span(found[0], found[-1] + 1) if found else Span(self.heads.start, self.heads.start)


def attend_by_rows(q: Tensor, k: Tensor, v: Tensor, prepared: Prepared, ops: ScoreOps) -> Tensor | None:
    """Attention by blocks, or None where they do not apply. Keys and values have the heads of the queries."""
    if not applies((q, k, v), q.shape[2]) or ops.softcap is not None or ops.sinks is not None:
        return None
    blocks = blocks_for(prepared.ctx)
    terms = _terms(prepared, ops, blocks)
    if terms is None or not applies(terms.inputs, q.shape[2]):
        return None
    plan = RowsPlan(prepared.ctx, blocks, ops.scale, terms, SeededDropout.drawn(ops.dropout) if ops.dropout else None)
    dtype = torch.get_autocast_dtype("cpu") if autocasts("cpu") and q.dtype != torch.float64 else q.dtype
    with no_autocast():
        out: Tensor = RowsAttention.apply(plan, *map(widened, (q, k, v, *plan.terms.inputs)))
    return out.to(dtype)


def _terms(prepared: Prepared, ops: ScoreOps, blocks: list[tuple[Span, Span]]) -> SumTerm | None:
    """What is added to the scores, in order; None where something has no form that blocks can use."""
    ctx = prepared.ctx
    found = [] if prepared.bias is None else [prepared.term]
    found += [] if ops.content is None else [ops.content.term(ctx, blocks)]
    if ops.transform is not None:
        make, q = ops.row_term, ops.unrotated_q
        found.append(None if make is None or q is None else make(q, ctx))
    terms = tuple(term for term in found if term is not None)
    return SumTerm(terms) if len(terms) == len(found) else None
