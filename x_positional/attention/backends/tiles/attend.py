"""Attention by tiles as other backends call it: where it applies, its autograd function, and second derivatives."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import get_dynamic_layer_stack_depth  # type: ignore[import-not-found]
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from x_positional.attention.backends.base import (
    Prepared,
    ScoreOps,
    SeededDropout,
    autocasts,
    inside_torch_func,
    no_autocast,
)
from x_positional.attention.backends.tiles.cap_and_sinks import SoftcapTerm, sink_gradient
from x_positional.attention.backends.tiles.forward import forward_pass
from x_positional.attention.backends.tiles.geometry import TilePlan, blocks_for
from x_positional.attention.backends.tiles.gradients import tile_gradients
from x_positional.attention.backends.tiles.operator import attend_in_graph
from x_positional.schemes.base import AttentionContext, Bias, Span
from x_positional.schemes.precision import widened
from x_positional.schemes.terms import ScoreBlock, ScoreTerm, SumTerm

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Half precision is computed in float32."""
FEWEST = 64
"""Queries below which one call of torch's kernel, or one matrix of scores, is at least as fast."""
FEWEST_TRAINING, FEWEST_INFERENCE = 512, 2048
"""The same for a bias: torch's kernel takes it as a mask for all queries, whose size matters only for long sequences."""


def applies(tensors: Sequence[Tensor], queries: int) -> bool:
    """Whether attention can run by tiles: plain tensors on a CPU, outside of torch.func."""
    if forward_ad._current_level >= 0:
        return False
    if torch.compiler.is_compiling():
        if torch.compiler.is_exporting() or get_dynamic_layer_stack_depth():
            return False
        return _at_least(queries, FEWEST) and all(t.device.type == "cpu" and t.dtype in DTYPES for t in tensors)
    if queries < FEWEST:
        return False
    plain = (type(t) in (Tensor, torch.nn.Parameter) and t.dtype in DTYPES and t.device.type == "cpu" for t in tensors)
    return all(plain) and not any(map(inside_torch_func, tensors))


def blocks_pay(queries: int) -> bool:
    """Whether attention with a bias runs by tiles although torch's kernel could take the bias as a mask."""
    return _at_least(queries, FEWEST_TRAINING if torch.is_grad_enabled() else FEWEST_INFERENCE)


def _at_least(queries: int, fewest: int) -> bool:
    """queries >= fewest; True where torch.compile traces a graph for any number of them, which a comparison would restrict."""
    if not torch.compiler.is_compiling():
        return queries >= fewest
    from torch.fx.experimental.symbolic_shapes import statically_known_true  # imports sympy, which torch.compile needs

    return not statically_known_true(queries < fewest)


def shared_term(ctx: AttentionContext, bias: Bias | None, dtype: torch.dtype) -> ScoreTerm | None:
    """The bias that all layers of a kind share, as a term for tiles; None where attention does not run by tiles."""
    if bias is None or dtype not in DTYPES or ctx.device.type != "cpu" or not applies((), ctx.T):
        return None
    return bias.term(ctx, _blocks(ctx))


def _blocks(ctx: AttentionContext) -> list[tuple[Span, Span]]:
    """None under torch.compile, which would make a graph for every number of them."""
    return [] if torch.compiler.is_compiling() else blocks_for(ctx)


def attend_by_tiles(q: Tensor, k: Tensor, v: Tensor, prepared: Prepared, ops: ScoreOps) -> Tensor | None:
    """Attention by tiles, or None where it does not apply. Keys and values have as many heads as the queries."""
    given = (q, k, v) if ops.sinks is None else (q, k, v, ops.sinks)
    if not applies(given, q.shape[2]):
        return None
    ctx, blocks = prepared.ctx, _blocks(prepared.ctx)
    terms = _terms(prepared, ops, blocks)
    if terms is None or not applies(terms.inputs, q.shape[2]):
        return None
    dtype = torch.get_autocast_dtype("cpu") if autocasts("cpu") and q.dtype != torch.float64 else q.dtype
    with no_autocast():
        if torch.compiler.is_compiling():
            tensors, sinks = tuple(map(widened, (q, k, v))), None if ops.sinks is None else widened(ops.sinks)
            found = attend_in_graph(tensors, sinks, ctx, ops.scale, terms, ops.dropout)
            return None if found is None else found.to(dtype)
        dropout = SeededDropout.drawn(ops.dropout) if ops.dropout else None
        plan = TilePlan(ctx, blocks, ops.scale, terms, dropout)
        out: Tensor = TiledAttention.apply(plan, len(given), *map(widened, (*given, *plan.terms.inputs)))
    return out.to(dtype)


def _terms(prepared: Prepared, ops: ScoreOps, blocks: list[tuple[Span, Span]]) -> SumTerm | None:
    """What is added to the scores, in order; None where a bias or transform has no ScoreTerm."""
    ctx = prepared.ctx
    found = [] if prepared.bias is None else [prepared.term]
    found += [] if ops.content is None else [ops.content.term(ctx, blocks)]
    found += [] if ops.softcap is None else [SoftcapTerm(ops.softcap, ops.transform is not None)]
    if ops.transform is not None:
        make, q = ops.row_term, ops.unrotated_q
        found.append(None if make is None or q is None else make(q, ctx))
    terms = tuple(term for term in found if term is not None)
    return SumTerm(terms) if len(terms) == len(found) else None


class TiledAttention(torch.autograd.Function):
    """[B H T D], [B H S D], [B H S E], the sinks [H] where there are some, inputs of the terms -> [B H T E]."""

    @staticmethod
    def forward(ctx: Any, plan: TilePlan, given: int, *tensors: Tensor) -> Tensor:
        """given: how many tensors come before the inputs of the terms."""
        (q, k, v), sinks, inputs = tensors[:3], tensors[3] if given > 3 else None, tensors[given:]
        ctx.plan, ctx.given = plan, given
        out, logsumexp, ctx.bias = forward_pass(plan, (q, k, v), sinks, inputs)
        ctx.save_for_backward(out, logsumexp, *tensors)
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        plan, (grad,), (out, logsumexp, *tensors) = ctx.plan, grads, ctx.saved_tensors
        (q, k, v), sinks, inputs = tensors[:3], tensors[3 : ctx.given], tensors[ctx.given :]
        with no_autocast():
            if torch.is_grad_enabled():  # create_graph=True
                return None, None, *_recorded_gradients(plan, ctx.given, tensors, grad)
            wanted = [t.requires_grad for t in inputs]
            found = tile_gradients(plan, ctx.bias, (q, k, v, out, logsumexp), inputs, grad, wanted)
            of_sinks = [sink_gradient(own, out, logsumexp, grad) for own in sinks]
            return None, None, *found[:3], *of_sinks, *found[3:]


def _recorded_gradients(plan: TilePlan, given: int, tensors: Sequence[Tensor], grad: Tensor) -> list[Tensor | None]:
    """The gradients of all tensors, recorded by autograd. Views keep them partial where one tensor was computed from another."""
    views = [t.view_as(t) for t in tensors]
    wanted = [t for t in views if t.requires_grad]
    found = iter(
        torch.autograd.grad(_recorded(plan, given, *views), wanted, grad, create_graph=True, allow_unused=True)
    )
    return [next(found) if t.requires_grad else None for t in views]


def _recorded(plan: TilePlan, given: int, q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> Tensor:
    """The same attention by operations that autograd records; the scores of each block are recomputed (activation checkpoints)."""

    def run(at: ScoreBlock, q: Tensor, k: Tensor, v: Tensor, *others: Tensor) -> Tensor:
        row, queries, keys, sinks, inputs = at.row, at.queries.cut, at.keys, others[: given - 3], others[given - 3 :]
        hidden = q.new_zeros(1, queries.stop - queries.start, keys.stop - keys.start, dtype=torch.bool)
        for cut, visible, _ in plan.hidden(row, at.queries, keys):
            hidden[..., cut] = ~visible
        scores = (q[row, :, queries] * plan.scale) @ k[row, :, keys.cut].mT
        scores = plan.terms.recorded(scores.masked_fill(hidden, torch.finfo(q.dtype).min), inputs, at)
        columns = [own[:, None, None].expand(*scores.shape[:2], 1) for own in sinks]
        probabilities = torch.cat([*columns, scores], -1).softmax(-1)[..., len(columns) :].masked_fill(hidden, 0)
        if plan.dropout is not None:
            tiles = plan.tiles([block for block, _ in plan.blocks].index(at.queries))
            kept = torch.cat([plan.kept(row, at.heads, tile) for tile in tiles], -1)  # type: ignore[arg-type,misc]
            probabilities = probabilities * kept * plan.dropout.factor
        return probabilities @ v[row, :, keys.cut]

    out = [checkpoint(run, at, q, k, v, *others, use_reentrant=False) for at in plan.each_block(len(q))]
    rows = [torch.cat(out[row :: len(q)], dim=1) for row in range(len(q))]
    return torch.stack(rows)
