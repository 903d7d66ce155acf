"""Padded and packed rows without a mask: the tokens of each text are gathered, and attend to one another alone.

A text is a row without its padding, or one document of a packed row. Within it attention is plainly causal, or full, and torch's
kernel needs no mask for either. In a window a block of queries reads only the keys near it, through a mask of those.

B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head dim, E value dim.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from x_positional.attention.backends.base import torch_func_runs
from x_positional.schemes.base import NO_TOKEN, AttentionContext, Span

FEWEST, FEWEST_PACKED = 512, 128
"""Queries below which one call with a mask is at least as fast. In packed rows most pairs are hidden, which saves work earlier."""
SHORTEST = 16
"""Tokens in a text, on average, from which calls for each text are known to be faster."""
BLOCK = 256
"""Queries of a text that share a mask, in a window."""

Kernel = Callable[[Tensor, Tensor, Tensor, Tensor | None, bool], Tensor]
"""(q, k, v, boolean mask, whether the mask is causal) -> [B H T E]."""


@dataclass(frozen=True)
class Part:
    """Some queries of a text, or the padding of a row."""

    rows: Span
    """Of the text's queries."""
    keys: Span
    """Of the text's keys."""
    mask: Tensor | None = None
    """[rows keys] bool; None where all are visible, or `causal` hides the others."""
    causal: bool = False


@dataclass(frozen=True)
class Text:
    """Tokens that see one another, or the padding of a row, which sees every key: its result is finite and not read."""

    number: int | None
    """Of its keys among those of the row; None is every key."""
    parts: Sequence[Part]


@dataclass(frozen=True)
class Order:
    """The slots of a row, one text after the other."""

    names: list[int]
    """A number of each text; NO_TOKEN is padding."""
    sizes: list[int]
    """Slots of each text."""
    slots: Tensor | None
    """[T] int64; None where texts follow one another already."""

    @classmethod
    def of(cls, names: Tensor) -> "Order":
        """names: [T], the text of each slot."""
        found, sizes = names.unique_consecutive(return_counts=True)
        slots = None
        if len(found) > len(found.unique()):
            slots = names.argsort(stable=True)
            found, sizes = names[slots].unique_consecutive(return_counts=True)
        return cls(found.tolist(), sizes.tolist(), slots)

    def split(self, x: Tensor) -> Sequence[Tensor]:
        """[B H T D] -> the part of each text."""
        x = x if self.slots is None else x.index_select(2, self.slots)
        return x.split(self.sizes, 2)

    def join(self, parts: list[Tensor]) -> Tensor:
        """The inverse of `split`."""
        x = torch.cat(parts, 2) if len(parts) > 1 else parts[0]
        return x if self.slots is None else x.index_select(2, self.slots.argsort())

    def same_as(self, other: "Order") -> bool:
        """Whether both put the same slots into the same texts."""
        if (self.slots is None) != (other.slots is None) or (self.names, self.sizes) != (other.names, other.sizes):
            return False
        return self.slots is None or other.slots is None or torch.equal(self.slots, other.slots)


@dataclass(frozen=True)
class Rows:
    """Rows of the batch with the same texts."""

    queries: Order
    keys: Order
    texts: Sequence[Text]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, kernel: Kernel) -> Tensor:
        """[B H T D], [B G S D], [B G S E] -> [B H T E]."""
        found, k_texts, v_texts = [], self.keys.split(k), self.keys.split(v)
        for text, own in zip(self.texts, self.queries.split(q), strict=True):
            keys, values = (k, v) if text.number is None else (k_texts[text.number], v_texts[text.number])
            if len(text.parts) == 1:
                part = text.parts[0]
                found.append(kernel(own, keys, values, part.mask, part.causal))
                continue
            for part in text.parts:
                at = own[:, :, part.rows.cut], keys[:, :, part.keys.cut], values[:, :, part.keys.cut]
                found.append(kernel(*at, part.mask, part.causal))
        return self.queries.join(found)


@dataclass(frozen=True)
class Texts:
    """All rows of the batch."""

    sizes: list[int]
    """Rows of each of `rows`."""
    rows: Sequence[Rows]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, kernel: Kernel) -> Tensor:
        """[B H T D], [B G S D], [B G S E] -> [B H T E]."""
        shares = (t.split(self.sizes, 0) for t in (q, k, v))
        found = [rows.attend(*own, kernel) for rows, *own in zip(self.rows, *shares, strict=True)]
        return torch.cat(found) if len(found) > 1 else found[0]


def texts_of(ctx: AttentionContext) -> Texts | None:
    """The texts of a batch; None where torch's kernel needs a mask for them, or is faster with one."""
    irregular = ctx.visible is not None and (not ctx.ordered or ctx.q_documents is not None)
    fewest = FEWEST if ctx.q_documents is None else FEWEST_PACKED
    if not irregular or fewest > ctx.T or not _on_host(ctx.q_index):
        return None
    if ctx.window.keep_first or ctx.custom_mask is not None:  # texts are causal or full, or in a window
        return None
    aligned = ctx.causal or ctx.window.kept is not None
    if aligned and not torch.equal(ctx.q_index, ctx.kv_index):  # after cached tokens
        return None
    queries, keys = _names(ctx, ctx.q_index, ctx.q_documents), _names(ctx, ctx.kv_index, ctx.kv_documents)
    orders: list[tuple[Order, Order]] = []
    sizes: list[int] = []
    for row in range(ctx.batch):
        order = Order.of(queries[row]), Order.of(keys[row])
        if orders and all(a.same_as(b) for a, b in zip(order, orders[-1], strict=True)):
            sizes[-1] += 1
        else:
            orders.append(order)
            sizes.append(1)
    if sum(len(order.names) for order, _ in orders) * SHORTEST > ctx.batch * ctx.T:
        return None
    starts = torch.tensor([0, *sizes]).cumsum(0).tolist()
    rows = [Rows(q, k, _texts(ctx, start, q, k)) for start, (q, k) in zip(starts, orders, strict=False)]
    return Texts(sizes, rows)


def _on_host(index: Tensor) -> bool:
    """Whether the numbers of a plain tensor can be read without a device sync or a graph break."""
    if torch.compiler.is_compiling() or torch_func_runs():
        return False
    return type(index) is Tensor and index.device.type == "cpu"


def _names(ctx: AttentionContext, index: Tensor, documents: Tensor | None) -> Tensor:
    """[B T], a number of each token's text."""
    found = torch.zeros_like(index) if documents is None else documents - documents.amin()
    return torch.where(index == NO_TOKEN, NO_TOKEN, found).expand(ctx.batch, -1)


def _texts(ctx: AttentionContext, row: int, queries: Order, keys: Order) -> list[Text]:
    """The texts of a row of the batch. A text without keys, as where a context is empty, sees all of them."""
    found, starts = [], torch.tensor([0, *queries.sizes]).cumsum(0).tolist()
    for name, size, start in zip(queries.names, queries.sizes, starts, strict=False):
        number = keys.names.index(name) if name != NO_TOKEN and name in keys.names else None
        kept = ctx.window.kept
        if number is None:
            found.append(Text(None, [Part(Span(0, size), ctx.every_key)]))
        elif kept is None or kept >= size:
            found.append(Text(number, [Part(Span(0, size), Span(0, keys.sizes[number]), causal=ctx.causal)]))
        else:
            slots = torch.arange(start, start + size) if queries.slots is None else queries.slots[start : start + size]
            found.append(Text(number, list(_parts(ctx, row, slots, kept))))
    return found


def _parts(ctx: AttentionContext, row: int, slots: Tensor, kept: int) -> Iterator[Part]:
    """Blocks of queries of a text, each with the keys that are at most `kept` tokens away. slots: of its tokens."""
    b, h = slots.new_full((1, 1, 1, 1), row), slots.new_zeros(1, 1, 1)
    for start in range(0, len(slots), BLOCK):
        stop = min(start + BLOCK, len(slots))
        last = stop if ctx.causal else min(len(slots), stop + kept - 1)
        rows, keys = Span(start, stop), Span(max(0, start - kept + 1), last)
        visible = ctx.visible
        mask = None if visible is None else visible(b, h, slots[rows.cut, None], slots[keys.cut])
        yield Part(rows, keys, mask)
