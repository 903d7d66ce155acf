"""Attention maps: the probabilities of each layer, computed beside the fused pass from the same queries, keys and biases.

B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head dim.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional.attention.backends.base import Prepared, ScoreOps, blocks_of
from x_positional.attention.backends.eager import probabilities, share_heads
from x_positional.schemes.base import NO_TOKEN, AttentionContext, Span
from x_positional.schemes.precision import wide_dtype

BLOCK = 128
"""Queries whose scores are held at a time, beside the maps themselves."""

Maps: TypeAlias = list[Tensor | None]
"""[B H T S] a layer; None for a layer without this kind of attention."""

WithMaps: TypeAlias = tuple[Tensor, Maps] | tuple[Tensor, Maps, Maps]
"""An output, the maps of self-attention and, in a stack with cross-attention, the maps of that."""


class MapCollector(NamedTuple):
    """Where the layers of one forward pass put their maps."""

    of_self: Maps
    of_cross: Maps | None
    """None in a stack without cross-attention."""

    @classmethod
    def empty(cls, depth: int, cross: bool) -> "MapCollector":
        """Without maps so far. cross: the stack has cross-attention."""
        of_self: Maps = [None] * depth
        return cls(of_self, list(of_self) if cross else None)

    def beside(self, out: Tensor) -> WithMaps:
        """The output together with copies of the lists: a checkpoint that recomputes a layer writes to these again."""
        if self.of_cross is None:
            return out, list(self.of_self)
        return out, list(self.of_self), list(self.of_cross)


def attention_map(q: Tensor, k: Tensor, prepared: Prepared, ops: ScoreOps) -> Tensor:
    """[B H T D], [B G S D] -> [B H T S] probabilities before dropout, in float32 or wider, recorded by autograd.

    Rows sum to one, or with sinks to one minus the sink's share. Hidden keys are exactly 0, and so are the rows of queries that
    hold no token.
    """
    ctx, wide = prepared.ctx, wide_dtype(q.dtype)
    q, k = q.to(wide), share_heads(k, q.shape[1]).to(wide)  # fused kernels do not round scores to half precision either

    def block(rows: Span, keys: Span) -> Tensor:
        found = probabilities(q[:, :, rows.cut], k[:, :, keys.cut], prepared, ops, rows, keys)
        return F.pad(found, (keys.start, ctx.S - keys.stop)) if keys.stop - keys.start < ctx.S else found

    found = _by_blocks(ctx, block)
    return found if ctx.ordered else found.masked_fill((ctx.q_index == NO_TOKEN)[:, None, :, None], 0)


def _by_blocks(ctx: AttentionContext, block: Callable[[Span, Span], Tensor]) -> Tensor:
    """All rows, from a function of some queries and the keys that they may see."""
    if torch.compiler.is_compiling():  # it would recompile for every number of blocks
        return block(ctx.every_row, ctx.every_key)
    found = [block(rows, keys) for rows, keys in blocks_of(ctx, BLOCK)]
    return found[0] if len(found) == 1 else torch.cat(found, dim=2)


def by_token(found: Tensor, ctx: AttentionContext) -> Tensor:
    """A map whose columns are the slots of a cache -> one whose column j is token j of the row, of all tokens so far.

    Without a window a token's slot is its index. A ring has dropped tokens, whose columns are 0.
    """
    if ctx.window.kept is None:
        return found
    column = torch.where(ctx.kv_index == NO_TOKEN, ctx.span, ctx.kv_index)[:, None, None]
    wide = found.new_zeros(*found.shape[:3], ctx.span + 1)  # the last column takes unused slots
    return wide.scatter(-1, column.expand_as(found), found)[..., : ctx.span]
