"""Attention sinks: the first tokens that a sliding window keeps, at distances that stop growing (StreamingLLM).

With a window of W and n kept tokens, a query at index t attends to those n as if its index were min(t, n + W - 1): its index in
a cache that holds only what is kept (Xiao et al. 2024, arXiv:2309.17453, section 3.2). This is computed for each query, so the
result does not depend on how the text is split into chunks, and a full pass equals a cached one.

B batch, T query tokens, S key tokens, N kept tokens, H heads, G key/value heads, D head dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from x_positional.attention.tokens import TokenLayout
from x_positional.schemes.base import NO_TOKEN, AttentionContext, AttentionWindow, Bias, PositionScheme
from x_positional.schemes.compose import Chain, leaves
from x_positional.schemes.precision import widened
from x_positional.schemes.spans import Span
from x_positional.schemes.terms import ScoreBlock, ScoreTerm


@dataclass(frozen=True)
class KeptTokens:
    """The kept first tokens of one forward pass; each layer adds its queries and keys."""

    first: int
    """N, how many are kept."""
    kv_index: Tensor
    """[B|1 S]."""
    slots: Tensor
    """[B|1 N] the slots that hold them."""
    tables: Any
    """The scheme's tables for the queries at the positions where these tokens see them."""
    near: AttentionContext | None
    """The context with the queries there; None where the scheme has no bias that depends on the layer."""

    @classmethod
    def of(cls, scheme: PositionScheme, ctx: AttentionContext, tables: Any, moved: TokenLayout) -> "KeptTokens":
        """The first tokens among the keys of a context."""
        index = torch.arange(ctx.window.keep_first, device=ctx.device)
        slots = (ctx.kv_index[:, None] == index[:, None]).long().argmax(-1)
        biased = any(leaf.overrides("content_bias") for leaf in leaves(scheme))
        return cls(ctx.window.keep_first, ctx.kv_index, slots, tables, seen_near(ctx, moved) if biased else None)

    def bias(self, scheme: PositionScheme, q: Tensor, plain: Bias | None) -> Bias | None:
        """The scheme's bias of a layer, `plain`, with that of the first tokens at the distances at which they see the queries.
        q: [B H T D], not rotated. A scheme that has states of tokens is refused."""
        near = None if self.near is None else scheme.content_bias(q, self.near, None, None)
        return plain if self.near is None else near_first(plain, near, self.near)

    def correction(self, moved: Tensor, q: Tensor, k: Tensor, scale: float) -> Bias:
        """By how much the scores of the first tokens change when queries [B H T D] become `moved`. k: [B G S D]."""
        batch, heads, width = q.shape[0], q.shape[1], q.shape[3]
        kv_index = self.kv_index.expand(batch, -1)
        slots = self.slots[:, None, :, None].expand(batch, k.shape[1], -1, width)
        keys = widened(k.gather(2, slots))  # an absent first token gathers some other slot, which is never looked up
        moved_by = torch.unflatten(widened(moved) - widened(q), 1, (k.shape[1], -1))
        change = torch.einsum("bgrtd,bgnd->bgrtn", moved_by, keys).flatten(1, 2) * scale

        def fn(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            index = kv_index[b, j]
            found = change[b, h, i, index.clamp(0, self.first - 1)]
            return torch.where((index != NO_TOKEN) & (index < self.first), found, 0.0)

        return KeptBias(fn, batch, heads, change, self.kv_index)


@dataclass(frozen=True)
class KeptBias(Bias):
    """By how much the scores of the kept first tokens change."""

    change: Tensor
    """[B H T N]."""
    kv_index: Tensor
    """[B|1 S]."""

    def term(self, ctx: AttentionContext, blocks: Sequence[tuple[Span, Span]]) -> ScoreTerm:
        return KeptTerm(self.change, self.kv_index)


class KeptTerm(ScoreTerm):
    """The same for blocks of scores: it reads and writes the kept columns alone.

    Args:
        change: [B H T N].
        kv_index: [B|1 S].
    """

    def __init__(self, change: Tensor, kv_index: Tensor):
        self.inputs, self.kv_index = (change,), kv_index
        self.known: dict[tuple[int, int, int], tuple[Tensor, Tensor]] = {}

    @property
    def arguments(self) -> tuple[Any, ...]:
        return *self.inputs, self.kv_index

    def _columns(self, block: ScoreBlock) -> tuple[Tensor, Tensor]:
        """Which of a block's keys are kept first tokens, and the number of each."""
        place = block.row % len(self.kv_index), block.keys.start, block.keys.stop
        if place not in self.known:
            index = self.kv_index[place[0], block.keys.cut]
            columns = ((index != NO_TOKEN) & (index < self.inputs[0].shape[-1])).nonzero()[:, 0]
            self.known[place] = columns, index[columns]
        return self.known[place]

    def _of_block(self, change: Tensor, block: ScoreBlock) -> Tensor:
        """[G R N]."""
        return change[block.row, block.heads.cut, block.queries.cut]

    def add(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> None:
        columns, numbers = self._columns(block)
        if len(columns):
            scores.index_add_(-1, columns, self._of_block(inputs[0], block).index_select(-1, numbers).to(scores.dtype))

    def differentiate(self, grad: Tensor, kept: None, sums: Sequence[Tensor | None], block: ScoreBlock) -> None:
        columns, numbers = self._columns(block)
        if sums[0] is not None and len(columns):
            found = grad.index_select(-1, columns).to(sums[0].dtype)
            self._of_block(sums[0], block).index_add_(-1, numbers, found)

    def recorded(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        columns, numbers = self._columns(block)
        found = self._of_block(inputs[0], block).index_select(-1, numbers)
        return scores.index_add(-1, columns, found.to(scores.dtype))


def as_kept_tokens_see(layout: TokenLayout, window: AttentionWindow) -> TokenLayout | None:
    """The queries at the positions where the kept first tokens see them; None where no query is moved."""
    if window.farthest_query is None or layout.span <= window.farthest_query + 1:
        return None
    return replace(layout, positions=layout.index.clamp(max=window.farthest_query))


def tables_of_kept(scheme: PositionScheme, tables: Any, moved: Any) -> Any:
    """The scheme's tables for queries as the kept first tokens see them: `moved`, except for a temperature. It scales a query
    for all keys alike, so it stays the one of the query's own position, which is in `tables`."""
    if isinstance(scheme, Chain):
        parts = zip(scheme.parts, tables, moved, strict=True)
        return [tables_of_kept(part, *pair) for part, *pair in parts if isinstance(part, PositionScheme)]
    return tables if scheme.capabilities().acts_on == ("queries",) else moved


def bias_of_kept(scheme: PositionScheme, ctx: AttentionContext, moved: TokenLayout) -> Bias | None:
    """The scheme's bias; for the kept first tokens, at the distances at which they see the queries."""
    return near_first(scheme.bias(ctx), scheme.bias(seen_near(ctx, moved)), ctx)


def seen_near(ctx: AttentionContext, moved: TokenLayout) -> AttentionContext:
    """The same context with the queries where the kept first tokens see them."""
    return replace(ctx, q_positions=moved.positions, ordered=False)


def near_first(plain: Bias | None, near: Bias | None, ctx: AttentionContext) -> Bias | None:
    """A bias that is `near` for the kept first tokens, and `plain` for the others."""
    if plain is None or near is None:
        return plain
    first, kv_index = ctx.window.keep_first, ctx.kv_index.expand(ctx.batch, -1)
    return Bias(
        lambda b, h, i, j: torch.where(kv_index[b, j] < first, near.fn(b, h, i, j), plain.fn(b, h, i, j)),
        max(plain.batch, near.batch),
        plain.heads,
    )


def keep_first_problem(layers: Sequence[tuple[Sequence[PositionScheme], AttentionWindow]]) -> str | None:
    """Why keep_first cannot be combined with the schemes of these layers; None where it can, or is off.

    Embeddings are shared, so a scheme that changes them concerns every layer; other hooks concern their own layer.
    """
    reasons = {
        "embed": "adds positions to the embeddings, before any layer could move them. Leave keep_first out, or use a scheme of "
        "distances: rope, alibi, t5.",
        "layer_bias": "cannot move a query to another position. Leave keep_first out, or use rope, alibi, t5.",
        "query_state": "cannot move a query to another position. Leave keep_first out, or use rope, alibi, t5.",
        "key_state": "sums over every token between query and key, and keep_first drops those between the first tokens and the "
        "window. Leave keep_first out, or use rope, alibi, t5, cope.",
        "transform_scores": "transforms whole rows by position (uses_positions=True), so the scores of the first tokens cannot be "
        "moved alone. Leave keep_first out, or put what depends on positions into bias or content_bias.",
    }
    anywhere = any(window.keep_first for _, window in layers)
    for hook, reason in reasons.items():
        concerned = [schemes for schemes, window in layers if window.keep_first or (anywhere and hook == "embed")]
        found = [scheme for schemes in concerned for scheme in schemes if scheme.overrides(hook)]
        names = [type(scheme).__name__ for scheme in found if hook != "transform_scores" or scheme.uses_positions]
        if names:
            return f"keep_first is unsupported with {', '.join(dict.fromkeys(names))}, which {reason}"
    return None
