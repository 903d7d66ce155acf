"""Attention by blocks of queries on a CPU: the scores of one block at a time, and again in the backward pass.

Softmax, biases and whole-row transforms run in place on two buffers, whose size grows linearly with the number of keys. Under a
causal mask or in a window a block reads only the keys that some of its queries see.

B batch, T query tokens, S key tokens, H heads, D head dim, E value dim; a block has R queries and W keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from x_positional.attention.backends.base import Prepared, ScoreOps, blocks_of, inside_torch_func
from x_positional.schemes.base import AttentionContext, Bias, Span
from x_positional.schemes.context import grid
from x_positional.schemes.terms import ScoreBlock, ScoreTerm, SumTerm

DTYPES = (torch.float32, torch.float64)
FEWEST = 64
"""Queries below which one call of torch's kernel, or one matrix of scores, is at least as fast."""
FEWEST_TRAINING, FEWEST_INFERENCE = 512, 2048
"""The same for a bias, where torch's kernel takes masks of all queries, which count in memory only for many."""
MOST_QUERIES, FEWEST_QUERIES, SCORES = 128, 32, 2**21
"""Queries in a block: as many as make this many scores."""


def applies(tensors: Sequence[Tensor], queries: int) -> bool:
    """Whether attention can run by blocks: plain tensors on a CPU in a wide dtype, outside compilers and transforms."""
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
    return bias.term(ctx, Blocks.of(ctx).spans)


class SeenKeys(NamedTuple):
    """The keys that some queries see."""

    keys: Span
    """All of them, and perhaps others between them."""
    edges: list[Span]
    """Where a key may be hidden from some of these queries."""
    earlier: int
    """How many of the keys, from the first on, are known to precede every query."""


@dataclass(frozen=True)
class Blocks:
    """Blocks of queries, each with the keys visible to them."""

    spans: list[tuple[Span, Span]]
    """Queries, and the keys that they see in some row of the batch."""
    seen: list[list[SeenKeys]]
    """What each block sees, in each row of the batch; a single entry where all rows are the same."""

    @classmethod
    def of(cls, ctx: AttentionContext) -> "Blocks":
        """The blocks of a context. Where rows are padded or packed, this reads their masks."""
        spans = blocks_of(ctx, min(MOST_QUERIES, max(FEWEST_QUERIES, SCORES // (ctx.heads * ctx.S))))
        if ctx.simple_mask:
            return cls(spans, [[SeenKeys(k, ctx.edges_of(q, k), ctx.earlier_than(q, k))] for q, k in spans])
        seen = [seen_keys(ctx, queries, keys) for queries, keys in spans]
        spans = [(queries, _around([s.keys for s in rows])) for (queries, _), rows in zip(spans, seen, strict=True)]
        return cls(spans, seen)


def _around(spans: Sequence[Span]) -> Span:
    """The range that contains all of these."""
    return Span(min(span.start for span in spans), max(span.stop for span in spans))


def seen_keys(ctx: AttentionContext, queries: Span, keys: Span) -> list[SeenKeys]:
    """What these queries see of these keys, in each row; a single entry where all rows are the same."""
    visible = torch.cat([visible_to(ctx, row, queries, keys)[None] for row in range(ctx.mask_batch)])
    of_some, of_all = visible.any(1), visible.all(1)
    columns = torch.stack([c.long().argmax(-1) for m in (of_some, of_all) for c in (m, m.flip(-1))])
    columns = torch.cat([columns, of_some.sum(-1)[None], of_all.sum(-1)[None]])
    found = []
    for first, from_end, full, full_from_end, any_key, count in columns.T.tolist():
        if not any_key:  # one key, hidden from all
            own = Span(keys.start, keys.start + 1)
            found.append(SeenKeys(own, [own], 0))
            continue
        own = Span(keys.start + first, keys.stop - from_end)
        middle = Span(keys.start + full, keys.stop - full_from_end)  # where all queries see all keys, if that is a range
        whole = 0 < count == middle.stop - middle.start
        edges = [Span(own.start, middle.start), Span(middle.stop, own.stop)] if whole else [own]
        earlier = middle.stop - own.start if whole and ctx.causal and own.start == middle.start else 0
        found.append(SeenKeys(own, [edge for edge in edges if edge.start < edge.stop], earlier))
    return found


def visible_to(ctx: AttentionContext, row: int, queries: Span, keys: Span) -> Tensor:
    """[R keys] which keys the queries of a row of the batch see."""
    if ctx.visible is None:
        return torch.ones(queries.stop - queries.start, keys.stop - keys.start, dtype=torch.bool, device=ctx.device)
    _, h, i, j = grid(1, 1, queries, keys, ctx.device)
    return ctx.visible(torch.full_like(h, row)[None], h, i, j)[0, 0]


@dataclass(frozen=True)
class RowsPlan:
    """What the computation reads besides tensors with a gradient."""

    ctx: AttentionContext
    parts: Blocks
    scale: float
    terms: SumTerm

    @property
    def blocks(self) -> list[tuple[Span, Span]]:
        """Queries, and the keys that they see in some row of the batch."""
        return self.parts.spans

    def each_block(self, batch: int) -> Iterator["Masked"]:
        """Every block of every row of the batch."""
        for (queries, _), rows in zip(self.parts.spans, self.parts.seen, strict=True):
            hidden = [self._hidden(row, queries, seen) for row, seen in enumerate(rows)]
            for row in range(batch):
                seen = rows[row % len(rows)]
                yield Masked(ScoreBlock(row, queries, seen.keys, seen.earlier), hidden[row % len(rows)])

    def _hidden(self, row: int, queries: Span, seen: SeenKeys) -> list[tuple[slice, Tensor]]:
        """Where keys are hidden: ranges of the block's keys, and [R ...] True for hidden."""
        start = seen.keys.start
        return [
            (slice(edge.start - start, edge.stop - start), ~visible_to(self.ctx, row, queries, edge))
            for edge in seen.edges
        ]


class Masked(NamedTuple):
    """A block, and where its keys are hidden."""

    block: ScoreBlock
    hidden: list[tuple[slice, Tensor]]


@dataclass
class Buffers:
    """Two matrices of scores that every block uses again."""

    like: Tensor
    size: int
    first: Tensor = field(init=False)
    second: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.first, self.second = self.like.new_empty(self.size), self.like.new_empty(self.size)

    @classmethod
    def of(cls, q: Tensor, plan: RowsPlan) -> "Buffers":
        """Large enough for the largest block."""
        sizes = [(rows.stop - rows.start) * (keys.stop - keys.start) for rows, keys in plan.blocks]
        return cls(q, q.shape[1] * max(sizes))

    def of_block(self, heads: int, block: ScoreBlock) -> tuple[Tensor, Tensor]:
        """Two [H R W]."""
        shape = heads, block.queries.stop - block.queries.start, block.keys.stop - block.keys.start
        size = shape[0] * shape[1] * shape[2]
        return self.first[:size].view(shape), self.second[:size].view(shape)


def _probabilities(
    plan: RowsPlan, q: Tensor, k: Tensor, inputs: Sequence[Tensor], at: Masked, scores: Tensor, out: Tensor
) -> list[Any]:
    """Writes [H R W] to `out`. Returns what the terms keep. q: [H R D], scaled; k: [H W D].

    A steep bias makes probabilities near the smallest number of the dtype, and a processor multiplies what is below it a
    hundred times slower. They become 0.
    """
    torch.bmm(q, k.mT, out=scores)
    for cut, hidden in at.hidden:
        scores[..., cut].masked_fill_(hidden, torch.finfo(scores.dtype).min)
    kept = plan.terms.add(scores, inputs, at.block)
    torch.softmax(scores, -1, out=out)
    if plan.terms.parts:
        torch.threshold_(out, torch.finfo(out.dtype).tiny * 2**24, 0.0)
    for cut, hidden in at.hidden:
        out[..., cut].masked_fill_(hidden, 0)  # also for a query that sees no key at all
    return kept


class RowsAttention(torch.autograd.Function):
    """[B H T D], [B H S D], [B H S E], inputs of the terms -> [B H T E]."""

    @staticmethod
    def forward(ctx: Any, plan: RowsPlan, q: Tensor, k: Tensor, v: Tensor, *inputs: Tensor) -> Tensor:
        ctx.plan = plan
        ctx.save_for_backward(q, k, v, *inputs)
        buffers, scaled = Buffers.of(q, plan), q * plan.scale
        out = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)  # as heads are joined
        for at in plan.each_block(len(q)):
            row, queries, keys = at.block.row, at.block.queries.cut, at.block.keys.cut
            scores, p = buffers.of_block(q.shape[1], at.block)
            _probabilities(plan, scaled[row, :, queries], k[row, :, keys], inputs, at, scores, p)
            out[row, :, queries] = p @ v[row, :, keys]
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan, (grad,), (q, k, v, *inputs) = ctx.plan, grads, ctx.saved_tensors
        if torch.is_grad_enabled():  # create_graph=True
            return None, *_recorded_gradients(plan, (q, k, v, *inputs), grad)
        return None, *_gradients(plan, q, k, v, inputs, grad)


def _recorded_gradients(plan: RowsPlan, tensors: Sequence[Tensor], grad: Tensor) -> list[Tensor | None]:
    """The gradients of all tensors, recorded by autograd. Views keep derivatives partial where one was computed from another."""
    views = [t.view_as(t) for t in tensors]
    wanted = [t for t in views if t.requires_grad]
    found = iter(torch.autograd.grad(_recorded(plan, *views), wanted, grad, create_graph=True, allow_unused=True))
    return [next(found) if t.requires_grad else None for t in views]


def _recorded(plan: RowsPlan, q: Tensor, k: Tensor, v: Tensor, *inputs: Tensor) -> Tensor:
    """The same attention as a function that autograd records, except the scores of each block, which it recomputes."""

    def run(at: Masked, q: Tensor, k: Tensor, v: Tensor, *inputs: Tensor) -> Tensor:
        row, queries, keys = at.block.row, at.block.queries.cut, at.block.keys
        hidden = q.new_zeros(1, queries.stop - queries.start, keys.stop - keys.start, dtype=torch.bool)
        for cut, mask in at.hidden:
            hidden[..., cut] = mask
        scores = (q[row, :, queries] * plan.scale) @ k[row, :, keys.cut].mT
        scores = plan.terms.recorded(scores.masked_fill(hidden, torch.finfo(q.dtype).min), inputs, at.block)
        return scores.softmax(-1).masked_fill(hidden, 0) @ v[row, :, keys.cut]

    out = [checkpoint(run, at, q, k, v, *inputs, use_reentrant=False) for at in plan.each_block(len(q))]
    rows = [torch.cat(out[row :: len(q)], dim=1) for row in range(len(q))]
    return torch.stack(rows)


def _gradients(
    plan: RowsPlan, q: Tensor, k: Tensor, v: Tensor, inputs: Sequence[Tensor], grad: Tensor
) -> tuple[Tensor | None, ...]:
    """The gradients of q, k, v and inputs."""
    buffers, scaled = Buffers.of(q, plan), q * plan.scale
    dq, dk, dv = (torch.zeros_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    sums = [torch.zeros_like(t, memory_format=torch.contiguous_format) if t.requires_grad else None for t in inputs]
    for at in plan.each_block(len(q)):
        row, queries, keys = at.block.row, at.block.queries.cut, at.block.keys.cut
        scores, p = buffers.of_block(q.shape[1], at.block)
        mine, theirs, above = scaled[row, :, queries], k[row, :, keys], grad[row, :, queries]
        kept = _probabilities(plan, mine, theirs, inputs, at, scores, p)
        dv[row, :, keys].baddbmm_(p.mT, above)
        torch.bmm(above, v[row, :, keys].mT, out=scores)
        torch.ops.aten._softmax_backward_data.out(scores, p, -1, p.dtype, grad_input=scores)
        plan.terms.differentiate(scores, kept, sums, at.block)
        dq[row, :, queries].baddbmm_(scores, theirs)
        dk[row, :, keys].baddbmm_(scores.mT, mine)
    return dq.mul_(plan.scale), dk, dv, *sums


def attend_by_rows(q: Tensor, k: Tensor, v: Tensor, prepared: Prepared, ops: ScoreOps) -> Tensor | None:
    """Attention by blocks, or None where they do not apply. Keys and values have the heads of the queries."""
    if not applies((q, k, v), q.shape[2]) or ops.dropout or ops.softcap is not None or ops.sinks is not None:
        return None
    blocks = Blocks.of(prepared.ctx)
    terms = _terms(prepared, ops, blocks.spans)
    if terms is None or not applies(terms.inputs, q.shape[2]):
        return None
    plan = RowsPlan(prepared.ctx, blocks, ops.scale, terms)
    return RowsAttention.apply(plan, q, k, v, *plan.terms.inputs)  # type: ignore[no-any-return]


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
