"""torch's scaled_dot_product_attention: flash and memory-efficient kernels where they apply.

B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head dim, E value dim.
"""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional.attention.backends.base import (
    Backend,
    Prepared,
    ScoreOps,
    autocasts,
    block_size,
    blocks_of,
    drop,
    refuse_second_derivative,
)
from x_positional.attention.backends.eager import share_heads
from x_positional.attention.backends.texts import Texts, texts_of
from x_positional.attention.backends.tiles.attend import applies, attend_by_tiles, blocks_pay, shared_term
from x_positional.schemes.base import AttentionContext, Bias, Span


@dataclass(frozen=True)
class Block:
    """Some queries, the range of keys visible to them, and their additive or boolean mask [B|1 H|1 rows keys]."""

    rows: Span
    keys: Span
    mask: Tensor | None
    autocast: bool = True
    """Whether autocast may change the dtype of the queries, and would round the mask."""


class Sdpa(Backend):
    """Plain causal and full attention need no mask tensor. Any other mask or bias is materialized for one block of queries and
    the keys visible to them at a time: half of the work under a causal mask, little in a window, and never a T x S tensor."""

    name = "sdpa"
    kernels = frozenset(("fused", "bias"))
    refuses: ClassVar[dict[str, str]] = {
        "softcap": "scaled_dot_product_attention does not support a soft cap on scores",
        "sinks": "scaled_dot_product_attention has no attention sinks",
    }
    block = 256
    """Queries in a block on a CPU."""
    mixed: ClassVar[frozenset[str]] = frozenset(("cpu",))
    """Devices whose kernels take a float32 mask with queries in half precision. Elsewhere q, k and v are widened."""

    def prepare(self, ctx: AttentionContext, bias: Bias | None, dtype: torch.dtype) -> Prepared:
        if bias is None and (ctx.visible is None or ctx.plain_causal):
            return Prepared(ctx=ctx, bias=None, native=[Block(ctx.every_row, ctx.every_key, None)])
        term = shared_term(ctx, bias, dtype) if blocks_pay(ctx.T) else None
        if term is not None and term.fewest <= ctx.T:
            return Prepared(ctx=ctx, bias=bias, term=term)
        if bias is None:  # masks are made by the first layer that needs them: by blocks of queries, none does
            return Prepared(ctx=ctx, bias=None, native=texts_of(ctx) or [])
        return Prepared(ctx=ctx, bias=bias, native=self._masked_blocks(ctx, bias, dtype))

    def _masks(self, prepared: Prepared, ops: ScoreOps, dtype: torch.dtype) -> list[Block]:
        known = prepared.native if isinstance(prepared.native, list) else None
        if known:
            return known
        if ops.content is not None and prepared.bias is None:  # its dense form carries the mask
            return [Block(rows, keys, None) for rows, keys in self._blocks(prepared.ctx)]
        blocks = self._masked_blocks(prepared.ctx, prepared.bias, dtype)
        if known is not None:
            known.extend(blocks)
        return blocks

    def _masked_blocks(self, ctx: AttentionContext, bias: Bias | None, dtype: torch.dtype) -> list[Block]:
        blocks, autocast = [], autocasts(ctx.device.type)
        for rows, keys in self._blocks(ctx):
            mask = ctx.visible_rows(rows, keys) if bias is None else as_mask(bias.dense(ctx, rows, keys), dtype)
            blocks.append(Block(rows, keys, mask, autocast))
        return blocks

    def _blocks(self, ctx: AttentionContext) -> list[tuple[Span, Span]]:
        """A single block where more would gain little, and under torch.compile, which would recompile for every number of them."""
        size = block_size(self.block, ctx.device)
        if torch.compiler.is_compiling() or 2 * size > ctx.T or not ctx.ordered:
            return [(ctx.every_row, ctx.every_key)]
        return blocks_of(ctx, size)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, prepared: Prepared, ops: ScoreOps) -> Tensor:
        if applies((q,), q.shape[2]) and self._lacks_kernel(q, v, prepared, ops):
            heads = q.shape[1]
            found = attend_by_tiles(q, share_heads(k, heads), share_heads(v, heads), prepared, ops)
            if found is not None:
                return found
        return self._by_kernel(q, k, v, prepared, ops)

    def _lacks_kernel(self, q: Tensor, v: Tensor, prepared: Prepared, ops: ScoreOps) -> bool:
        """Whether torch would run its math kernel on a CPU, which holds all scores, or needs a mask per layer."""
        biased = prepared.term is not None or (ops.content is not None and blocks_pay(q.shape[2]))
        return q.device.type == "cpu" and (q.shape[-1] != v.shape[-1] or biased or ops.dropout > 0)

    def _by_kernel(self, q: Tensor, k: Tensor, v: Tensor, prepared: Prepared, ops: ScoreOps) -> Tensor:
        if isinstance(prepared.native, Texts) and ops.content is None:
            return prepared.native.attend(
                q, k, v, lambda q, k, v, *mask: fused(q, k, v, mask[0], ops, is_causal=mask[1])
            )
        blocks = self._masks(prepared, ops, q.dtype)
        if len(blocks) == 1:
            return self._attend(q, k, v, blocks[0], prepared.ctx, ops)
        out = [
            self._attend(q[:, :, b.rows.cut], k[:, :, b.keys.cut], v[:, :, b.keys.cut], b, prepared.ctx, ops)
            for b in blocks
        ]
        return torch.cat(out, dim=2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, block: Block, ctx: AttentionContext, ops: ScoreOps) -> Tensor:
        mask, custom = block.mask, ctx.custom_mask
        if mask is not None and mask.dtype == q.dtype and not block.autocast and ops.content is None and custom is None:
            return fused(q, k, v, mask, ops)
        if ops.content is not None:
            content = as_mask(ops.content.dense(ctx, block.rows, block.keys), q.dtype)
            mask = content if mask is None else mask + content
        if mask is None:
            return fused(q, k, v, None, ops, is_causal=ctx.visible is not None)
        if custom is None or custom.ndim < 3:
            return self._masked(q, k, v, mask, ops)
        seen = mask if mask.dtype == torch.bool else mask > float("-inf")
        blind = ~seen.any(-1, keepdim=True)  # a given mask may hide every key, which not every kernel of torch defines
        mask = mask | blind if mask.dtype == torch.bool else mask.masked_fill(blind, 0.0)
        return self._masked(q, k, v, mask, ops).masked_fill(blind, 0.0)

    def _masked(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, ops: ScoreOps) -> Tensor:
        """Attention with a boolean mask, or with one that is added to the scores."""
        return fused(q, k, v, mask, ops) if mask.dtype == torch.bool else self._biased(q, k, v, mask, ops)

    def _biased(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, ops: ScoreOps) -> Tensor:
        """Attention with an additive mask, which may be wider than q, k and v."""
        device = q.device.type
        autocast = autocasts(device)
        if autocast:  # it would round the mask too
            dtype = torch.get_autocast_dtype(device)
            q, k, v = (t if t.dtype == torch.float64 else t.to(dtype) for t in (q, k, v))
        mask = as_mask(mask, q.dtype)
        with torch.autocast(device, enabled=False) if autocast else nullcontext():
            if mask.dtype == q.dtype or device in self.mixed:
                return fused(q, k, v, mask, ops)
            if q.shape[2] == 1:
                return one_query(q, k, v, mask, ops)
            wide = mask.dtype
            return fused(q.to(wide), k.to(wide), v.to(wide), mask, ops).to(q.dtype)


def as_mask(bias: Tensor, dtype: torch.dtype) -> Tensor:
    """A bias for queries of this dtype. Half precision cannot hold all biases: bfloat16 rounds -1000 and -1001 to the same number,
    and float16 ends at -65504. So a wider bias becomes float32."""
    return bias.to(torch.float32 if dtype.itemsize < 4 and bias.dtype != dtype else dtype)


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, ops: ScoreOps, *, is_causal: bool = False) -> Tensor:
    """torch's function. mask: boolean, or added to the scores."""
    out = F.scaled_dot_product_attention(
        q,
        k,
        v,
        attn_mask=mask,
        dropout_p=ops.dropout,
        is_causal=is_causal,
        scale=ops.scale,
        enable_gqa=q.shape[1] != k.shape[1],
    )
    refuse_second_derivative(out, "ScaledDotProduct", Sdpa.name)
    return out


def one_query(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, ops: ScoreOps) -> Tensor:
    """The same for a single query, whose scores are few: copies of all cached keys in float32 would cost more."""
    heads = q.shape[1]
    scores = (q @ share_heads(k, heads).mT).to(mask.dtype) * ops.scale + mask
    probabilities = drop(scores.softmax(-1), ops.dropout)
    return probabilities.to(v.dtype) @ share_heads(v, heads)
