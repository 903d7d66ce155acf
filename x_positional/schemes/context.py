"""What attention passes to schemes and backends: where queries and keys are, and which keys a query sees.

B batch, T query tokens, S key tokens, H heads, A position axes. A leading 1 in place of B means that all rows are the same.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from x_positional.schemes.spans import Span
from x_positional.schemes.terms import ScoreBlock, ScoreTerm, SumTerm
from x_positional.schemes.traced import TracedTerm

NO_TOKEN = -1
"""The index of padding, and of a cache slot that was never written."""

IndexFn: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""A function of broadcastable (b, h, q_idx, kv_idx), as FlexAttention calls it."""


def grid(batch: int, heads: int, rows: Span, keys: Span, device: torch.device) -> tuple[Tensor, ...]:
    """Broadcastable (b, h, q_idx, kv_idx) that cover [batch, heads, rows, keys]."""
    b = torch.arange(batch, device=device)[:, None, None, None]
    h = torch.arange(heads, device=device)[:, None, None]
    i = torch.arange(rows.start, rows.stop, device=device)[:, None]
    return b, h, i, torch.arange(keys.start, keys.stop, device=device)


class AttentionWindow(NamedTuple):
    """Which tokens the queries of a layer see, besides causality and padding."""

    size: int | None = None
    """The last `size` tokens, including the query itself; without a causal mask as many to the right."""
    chunk: int | None = None
    """The tokens of the query's chunk, for sequences split into chunks of `chunk` tokens."""
    keep_first: int = 0
    """The first tokens of a sequence as well, whatever the size (attention sinks)."""

    @property
    def kept(self) -> int | None:
        """How many of the latest tokens a cache must keep; None is all."""
        sizes = [size for size in (self.size, self.chunk) if size is not None]
        return min(sizes) if sizes else None

    def drops(self, tokens: int) -> bool:
        """Whether a cache that has read this many tokens of a row has overwritten some of them."""
        return self.kept is not None and tokens > self.keep_first + self.kept

    @property
    def farthest_query(self) -> int | None:
        """The largest index of a query relative to the kept first tokens; None if it is not limited."""
        return self.keep_first + self.size - 1 if self.keep_first and self.size is not None else None


NO_WINDOW = AttentionWindow()


@dataclass(frozen=True, kw_only=True)
class AttentionContext:
    """Where the queries and keys of one forward pass are; built once, shared by every layer of a kind.

    A token has two numbers: its index, which masks and caches use, and its position, which schemes use.
    """

    q_index: Tensor
    """[B|1 T]: a query's number in its row, 0, 1, 2, ... without padding; -1 for padding."""
    kv_index: Tensor
    """[B|1 S]: the same for keys; -1 for empty cache slots too."""
    q_positions: Tensor
    """[B|1 T] or [B|1 T A]. The same tensor as `q_index` unless custom positions or documents were given."""
    kv_positions: Tensor
    """[B|1 S] or [B|1 S A], the same for keys."""
    batch: int
    """B."""
    heads: int
    """H."""
    span: int
    """An upper bound of every index, exclusive, known on the host."""
    causal: bool
    """Whether attention is causal: no query sees a later key."""
    window: AttentionWindow = NO_WINDOW
    """Which tokens are visible besides causality and padding."""
    visible: IndexFn | None = None
    """Which keys a query may see, as an index function over the whole batch; None if all are visible."""
    ordered: bool = False
    """In every row q_index is q_start + 0..T-1 and kv_index is kv_start + 0..S-1, known on the host."""
    q_start: int = 0
    """The first query's index, if `ordered`."""
    kv_start: int = 0
    """The first key's index, if `ordered`."""
    custom_positions: bool = False
    """Positions were given, or restart per document, so they differ from the index."""
    positions_below_span: bool = False
    """Every position is below `span`, and none is negative except at padding: known on the host where none was given."""
    custom_mask: Tensor | None = None
    """The mask or prefix that the caller gave, as a tensor, so that the host does not know who sees whom: which keys each query
    may see [B T N], or how many first tokens of a row see each other [B|1]."""
    ahead: int = 0
    """In a decoder with a custom mask, every key that an earlier query sees has an index below it; 0 where none does."""
    q_documents: Tensor | None = None
    """[B T], the document of each query in packed rows."""
    kv_documents: Tensor | None = None
    """[B S], the document of each key in packed rows."""
    q_place: Tensor | None = None
    """[B|1 T], the place of each query in its text, which in a packed row is its document; given where chunks need it."""
    memo: dict[int, Any] | None = None
    """Results that schemes reuse between decoding steps; kept as long as the cache."""

    @property
    def T(self) -> int:
        """The number of queries."""
        return self.q_index.shape[1]

    @property
    def S(self) -> int:
        """The number of keys."""
        return self.kv_index.shape[1]

    @property
    def device(self) -> torch.device:
        """The device of all tensors."""
        return self.q_index.device

    @property
    def regular(self) -> bool:
        """Ordered, and positions are the index: distances depend on q_idx - kv_idx alone."""
        return self.ordered and not self.custom_positions

    @property
    def plain_causal(self) -> bool:
        """The mask is just the lower triangle, so a kernel needs no mask tensor."""
        square = self.ordered and self.q_start == self.kv_start and self.T == self.S
        unlimited = self.window.kept is None or self.window.kept >= self.S
        return square and unlimited and self.causal and self.q_documents is None and self.custom_mask is None

    @property
    def simple_mask(self) -> bool:
        """Only causality and a window of a size hide keys, so the host knows which."""
        plain_window = self.window.chunk is None and not self.window.keep_first
        plain = self.ordered and self.q_documents is None and self.custom_mask is None and plain_window
        return plain or self.visible is None

    @property
    def mask_batch(self) -> int:
        """1 if all rows share positions and masks, otherwise B."""
        per_row = (self.q_index, self.kv_index, self.q_positions, self.kv_positions)
        rows_differ = any(t.shape[0] > 1 for t in per_row) or self.q_documents is not None
        masks_differ = self.custom_mask is not None and self.custom_mask.shape[0] > 1
        return self.batch if rows_differ or masks_differ else 1

    @property
    def every_row(self) -> Span:
        """All queries."""
        return Span(0, self.T)

    @property
    def every_key(self) -> Span:
        """All keys."""
        return Span(0, self.S)

    def keys_of(self, rows: Span) -> Span:
        """The keys that these queries may see, as far as the host knows; all other keys are hidden from them."""
        if not self.ordered:
            return self.every_key
        offset = self.q_start - self.kv_start  # from a query's row to its own key
        first, last, recent = offset + rows.start, offset + rows.stop - 1, self.window.kept
        seen_ahead = self.ahead - self.kv_start if self.ahead else self.S
        start, stop = 0, last + 1 if self.causal else max(last + 1, seen_ahead)
        if recent is not None and not self.window.keep_first:
            start = first - recent + 1
            stop = min(stop, last + recent)
        return Span(max(0, min(start, self.S - 1)), max(1, min(stop, self.S)))

    def earlier_than(self, rows: Span, keys: Span) -> int:
        """How many of these keys, from the first on, the host knows to precede all of these queries."""
        if not self.ordered:
            return 0
        own = self.q_start - self.kv_start + rows.start
        return max(0, min(own, keys.stop) - keys.start)

    def edges_of(self, rows: Span, keys: Span) -> list[Span]:
        """The keys, in ranges, that may be hidden from some of these queries; all others are visible to each of them."""
        if self.visible is None:
            return []
        if not self.simple_mask:
            return [keys]
        offset, size = self.q_start - self.kv_start, self.window.size
        first, last = offset + rows.start, offset + rows.stop - 1  # the own keys of the first and the last query
        left = keys.start if size is None else min(keys.stop, max(keys.start, last - size + 1))
        right = first + 1 if self.causal else keys.stop if size is None else first + size
        right = max(left, min(keys.stop, right))
        return [span for span in (Span(keys.start, left), Span(right, keys.stop)) if span.start < span.stop]

    def visible_rows(self, rows: Span, keys: Span | None = None) -> Tensor | None:
        """[B|1 1 rows keys] bool, or None if every key is visible. keys: None is all."""
        if self.visible is None:
            return None
        return self.visible(*grid(self.mask_batch, 1, rows, keys or self.every_key, self.device))

    def visible_in_row(self, row: int, queries: Span, keys: Span) -> Tensor:
        """[queries keys] bool, in one row of the batch."""
        _, h, i, j = grid(1, 1, queries, keys, self.device)
        if self.visible is None:
            return torch.ones(len(i), len(j), dtype=torch.bool, device=self.device)
        return self.visible(torch.full_like(h, row)[None], h, i, j)[0, 0]

    def block(self, rows: Span, keys: Span) -> "AttentionContext":
        """The same context for some of its queries and keys, for a transform of scores."""
        return replace(
            self,
            q_index=self.q_index[:, rows.cut],
            q_positions=self.q_positions[:, rows.cut],
            kv_index=self.kv_index[:, keys.cut],
            kv_positions=self.kv_positions[:, keys.cut],
            q_documents=None if self.q_documents is None else self.q_documents[:, rows.cut],
            q_place=None if self.q_place is None else self.q_place[:, rows.cut],
            kv_documents=None if self.kv_documents is None else self.kv_documents[:, keys.cut],
            q_start=self.q_start + rows.start,
            kv_start=self.kv_start + keys.start,
            visible=None,
            custom_mask=None,
        )

    def key_order(self) -> Tensor | None:
        """[B|1 S], the key slots in token order, empty slots first; None if they are in order already."""
        return None if self.ordered else self.kv_index.argsort(dim=-1, stable=True)


@dataclass(frozen=True)
class Bias:
    """A bias in logits."""

    fn: IndexFn
    """The bias, pointwise in (b, h, q_idx, kv_idx)."""
    batch: int
    """B, or 1 if it is the same for every row."""
    heads: int
    """H."""

    def dense(self, ctx: AttentionContext, rows: Span, keys: Span) -> Tensor:
        """[B|1 H rows keys], with -inf where the key is hidden."""
        bias = self.fn(*grid(self.batch, self.heads, rows, keys, ctx.device))
        visible = ctx.visible_rows(rows, keys)
        return bias if visible is None else torch.where(visible, bias, float("-inf"))

    def term(self, ctx: AttentionContext, blocks: Sequence[tuple[Span, Span]]) -> ScoreTerm | None:
        """The same bias for these blocks of queries and keys; None if there is no such form. Under torch.compile there are no
        blocks yet: their number depends on the length."""
        if not blocks:
            return None
        queries, keys = blocks[0]
        return TracedTerm.of(self.fn, ScoreBlock(0, Span(0, self.heads), queries, keys, 0))


@dataclass(frozen=True)
class SumBias(Bias):
    """The sum of several biases, each of which computes its own dense form."""

    parts: tuple[Bias, ...]
    """The terms."""

    def dense(self, ctx: AttentionContext, rows: Span, keys: Span) -> Tensor:
        total = self.parts[0].dense(ctx, rows, keys)
        for part in self.parts[1:]:
            total = total + part.dense(ctx, rows, keys)
        return total

    def term(self, ctx: AttentionContext, blocks: Sequence[tuple[Span, Span]]) -> ScoreTerm | None:
        terms = tuple(term for part in self.parts if (term := part.term(ctx, blocks)) is not None)
        return SumTerm(terms) if len(terms) == len(self.parts) else None


def add(biases: Sequence[Bias | None]) -> Bias | None:
    """The sum of those that are not None; None if all are."""
    present = tuple(b for b in biases if b is not None)
    if len(present) < 2:
        return present[0] if present else None

    def total(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        out = present[0].fn(b, h, i, j)
        for part in present[1:]:
            out = out + part.fn(b, h, i, j)
        return out

    return SumBias(total, max(p.batch for p in present), present[0].heads, present)
