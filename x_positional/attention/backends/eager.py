"""The reference backend, and the same arithmetic by blocks of query rows.

B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head dim, E value dim.
"""

import torch
from einops import repeat
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from x_positional.attention.backends.base import (
    Backend,
    Prepared,
    ScoreOps,
    block_size,
    blocks_of,
    drop,
    torch_func_runs,
)
from x_positional.attention.backends.tiles.attend import attend_by_tiles, shared_term
from x_positional.schemes.base import AttentionContext, Bias, Kernel, Span
from x_positional.schemes.precision import wide_dtype

ALL_KERNELS: frozenset[Kernel] = frozenset(("fused", "bias", "rows"))


def probabilities(q: Tensor, k: Tensor, prepared: Prepared, ops: ScoreOps, rows: Span, keys: Span) -> Tensor:
    """[B H rows D], [B H keys D] -> [B H rows keys], in float32 or wider; a query without visible keys gets zeros."""
    ctx = prepared.ctx
    visible = ctx.visible_rows(rows, keys)
    scores = (q @ k.mT).to(wide_dtype(q.dtype)) * ops.scale
    for bias in (prepared.bias, ops.content):
        if bias is not None:
            scores = scores + replace_hidden(bias.dense(ctx, rows, keys), visible)
    if ops.softcap is not None:
        scores = ops.softcap * torch.tanh(scores / ops.softcap)
    if ops.transform is not None and ops.unrotated_q is not None:
        scores = ops.transform(scores, visible, ops.unrotated_q[:, :, rows.cut], ctx.block(rows, keys))
    if visible is not None:
        scores = scores.masked_fill(~visible, torch.finfo(scores.dtype).min)
    if ops.sinks is not None:
        sink = ops.sinks.to(scores.dtype)[None, :, None, None].expand(*scores.shape[:3], 1)
        return torch.cat([sink, scores], dim=-1).softmax(-1)[..., 1:]
    found = scores.softmax(-1)
    return found if visible is None else found.masked_fill(~visible, 0)


def replace_hidden(bias: Tensor, visible: Tensor | None) -> Tensor:
    """A dense bias with 0 in place of -inf at hidden keys: the mask is applied last, after the soft cap."""
    return bias if visible is None else bias.masked_fill(~visible, 0)


def share_heads(k: Tensor, heads: int) -> Tensor:
    """[B G S D] -> [B H S D]: query head h reads key head h // (H / G)."""
    groups = k.shape[1]
    return k if groups == heads else repeat(k, "b g s d -> b (g r) s d", r=heads // groups)


class Eager(Backend):
    """Full score matrices: the reference."""

    name = "eager"
    kernels = ALL_KERNELS

    def attend(self, q: Tensor, k: Tensor, v: Tensor, prepared: Prepared, ops: ScoreOps) -> Tensor:
        ctx, heads = prepared.ctx, q.shape[1]
        found = probabilities(q, share_heads(k, heads), prepared, ops, ctx.every_row, ctx.every_key)
        return drop(found, ops.dropout).to(v.dtype) @ share_heads(v, heads)


class Blockwise(Backend):
    """Exact and differentiable, holding the scores of one block of query rows at a time; backward recomputes them, except
    for a single block, as under torch.compile, and inside torch.func, which does not support checkpoints."""

    name = "blockwise"
    kernels = ALL_KERNELS
    block = 128
    """Queries in a block on a CPU."""

    def prepare(self, ctx: AttentionContext, bias: Bias | None, dtype: torch.dtype) -> Prepared:
        return Prepared(ctx=ctx, bias=bias, term=shared_term(ctx, bias, dtype))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, prepared: Prepared, ops: ScoreOps) -> Tensor:
        heads = q.shape[1]
        k, v = share_heads(k, heads), share_heads(v, heads)
        found = attend_by_tiles(q, k, v, prepared, ops)
        return self._recorded(q, k, v, prepared, ops) if found is None else found

    def _recorded(self, q: Tensor, k: Tensor, v: Tensor, prepared: Prepared, ops: ScoreOps) -> Tensor:
        """Recorded by autograd, so that derivatives of any order and transforms of torch.func work."""
        ctx = prepared.ctx
        if torch.compiler.is_compiling():  # it would recompile for every number of blocks
            blocks = [(ctx.every_row, ctx.every_key)]
        else:
            blocks = blocks_of(ctx, block_size(self.block, q.device))
        out = [self._block(q, k, v, prepared, ops, rows, keys) for rows, keys in blocks]
        return out[0] if len(out) == 1 else torch.cat(out, dim=2)

    def _block(
        self, q: Tensor, k: Tensor, v: Tensor, prepared: Prepared, ops: ScoreOps, rows: Span, keys: Span
    ) -> Tensor:
        def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            found = drop(probabilities(q, k, prepared, ops, rows, keys), ops.dropout)
            return found.to(v.dtype) @ v

        args = (q[:, :, rows.cut], k[:, :, keys.cut], v[:, :, keys.cut])
        if not torch.is_grad_enabled() or torch_func_runs() or rows.stop - rows.start == prepared.ctx.T:
            return run(*args)
        return checkpoint(run, *args, use_reentrant=False, preserve_rng_state=ops.dropout > 0)
