"""The first tokens that a sliding window keeps, seen at distances that stop growing (StreamingLLM).

A query at index t of a window of W that keeps n tokens sees those n as if it stood at min(t, n + W - 1): where it would
stand if the cache were the whole text (Xiao et al. 2024, arXiv:2309.17453, section 3.2). Each query has its own, so the
result does not depend on how a text is cut into chunks, and a full pass equals a cached one.

B batch, T query tokens, S key tokens, N kept tokens, H heads, G key/value heads, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from x_positional.attention.cache_slots import TokenLayout
from x_positional.schemes.base import NO_TOKEN, AttentionContext, AttentionWindow, Bias, PositionScheme


@dataclass(frozen=True)
class KeptTokens:
    """kv_index [B|1 S]; slots [B|1 N] of the first tokens; tables: the queries' tables for where those see them. Once per
    forward pass: what is left for each layer is its queries and keys."""

    first: int
    kv_index: Tensor
    slots: Tensor
    tables: Any

    @classmethod
    def of(cls, ctx: AttentionContext, tables: Any) -> "KeptTokens":
        """The first tokens among the keys of a context."""
        index = torch.arange(ctx.window.keep_first, device=ctx.device)
        slots = (ctx.kv_index[:, None] == index[:, None]).long().argmax(-1)
        return cls(ctx.window.keep_first, ctx.kv_index, slots, tables)

    def correction(self, moved: Tensor, q: Tensor, k: Tensor, scale: float) -> Bias:
        """What the scores of the first tokens change by when their queries [B H T D] are `moved`. k: [B G S D]."""
        batch, heads, width = q.shape[0], q.shape[1], q.shape[3]
        kv_index = self.kv_index.expand(batch, -1)
        slots = self.slots[:, None, :, None].expand(batch, k.shape[1], -1, width)
        keys = k.gather(2, slots).float()  # of a slot that holds another token where there is none: never looked up
        moved_by = (moved.float() - q.float()).unflatten(1, (k.shape[1], -1))
        change = torch.einsum("bgrtd,bgnd->bgrtn", moved_by, keys).flatten(1, 2) * scale

        def fn(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            index = kv_index[b, j]
            found = change[b, h, i, index.clamp(0, self.first - 1)]
            return torch.where((index != NO_TOKEN) & (index < self.first), found, 0.0)

        return Bias(fn, batch, heads)


def anchored(tokens: TokenLayout, window: AttentionWindow) -> TokenLayout | None:
    """The new tokens where the first ones see them; None where that is where they are."""
    if window.farthest_query is None or tokens.span <= window.farthest_query + 1:
        return None
    return replace(tokens, positions=tokens.index.clamp(max=window.farthest_query))


def bias_of_kept(scheme: PositionScheme, ctx: AttentionContext, moved: TokenLayout) -> Bias | None:
    """The scheme's bias, that of the first tokens seen from where they see the queries."""
    plain = scheme.bias(ctx)
    near = scheme.bias(replace(ctx, q_positions=moved.positions, ordered=False))
    if plain is None or near is None:
        return plain
    first, kv_index = ctx.window.keep_first, ctx.kv_index.expand(ctx.batch, -1)
    return Bias(
        lambda b, h, i, j: torch.where(kv_index[b, j] < first, near.fn(b, h, i, j), plain.fn(b, h, i, j)),
        max(plain.batch, near.batch),
        plain.heads,
    )


def keep_first_problem(schemes: Sequence[PositionScheme], windows: Sequence[AttentionWindow]) -> str | None:
    """Why the first tokens cannot be kept beside a window; None where they can, or are not."""
    fixed = [type(s).__name__ for s in schemes if s.overrides("embed")]
    if fixed and any(window.keep_first for window in windows):
        return (
            f"keep_first sees the first tokens from where the cache ends, and {', '.join(fixed)} writes positions into the "
            "embeddings for good. Leave keep_first out, or use a scheme of distances: rope, alibi, t5."
        )
    reading = [type(s).__name__ for s in schemes if s.overrides("layer_bias")]
    if reading and any(window.keep_first for window in windows):
        return (
            f"keep_first sees the first tokens from where the cache ends, and {', '.join(reading)} has no such other place for a "
            "query. Leave keep_first out, or use rope, alibi, t5."
        )
    summed = [type(s).__name__ for s in schemes if s.overrides("key_state")]
    if summed and any(window.keep_first for window in windows):
        return (
            f"keep_first drops tokens between the first ones and the window, and {', '.join(summed)} adds up what every "
            "token in between says. Leave keep_first out, or use rope, alibi, t5, cope."
        )
    return None
