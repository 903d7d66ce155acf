"""Key/value caches: growing, static, and a ring for sliding windows. A slot means nothing; its token's index does.

B batch, T new tokens, S key slots, G key/value heads, C channels. `plan` runs once per forward pass and window size and
says where keys are; `exchange` runs once per tensor and layer: it stores what is new and returns what queries see.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from x_positional.scheme import NO_TOKEN


class CacheError(ValueError):
    """A cache that is full, or that was made for another model or batch."""


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """The new tokens of one forward pass. `start` is their first index where rows are alike and unpadded, else None."""

    index: Tensor  # [B|1 T], -1 where there is no token
    positions: Tensor  # [B|1 T] or [B|1 T A]; the same tensor as index unless custom
    documents: Tensor | None
    start: int | None
    span: int  # every index, the cached ones included, is below it

    @property
    def length(self) -> int:
        return self.index.shape[1]

    @property
    def custom_positions(self) -> bool:
        return self.positions is not self.index


@dataclass(frozen=True, kw_only=True)
class KeyView:
    """The keys that the new queries can see, in slot order, and how a layer's tensors get there."""

    index: Tensor  # [B|1 S]
    positions: Tensor
    documents: Tensor | None
    ordered: bool
    q_start: int
    start: int
    only_visible: bool  # the host knows that every slot is visible to every query
    exchange: Callable[[Tensor | None, Tensor], tuple[Tensor, Tensor]]  # (stored, new) -> (stored, seen)


class Slots:
    """What the slots of one window size hold. Tensors exist only once rows differ or positions are custom."""

    def __init__(self, batch: int, device: torch.device, size: int | None, window: int | None):
        self.batch, self.device, self.size, self.window = batch, device, size, window
        self.capacity = window or size or 64
        self.index: Tensor | None = None
        self.positions: Tensor | None = None
        self.documents: Tensor | None = None

    def plan(self, tokens: Tokens, before: int) -> KeyView:
        """`before` tokens (at most, per row) are already stored."""
        if self.window is None:
            self._reserve(before, tokens.length)
        if tokens.start is not None and self.index is None and not tokens.custom_positions:
            return self._plan_ordered(tokens, tokens.start)
        self._remember(tokens, before)
        return self._plan_by_row(tokens)

    def _reserve(self, before: int, new: int) -> None:
        if self.size is not None and before + new > self.size:
            raise CacheError(
                f"the cache is full: it holds max_len={self.size} tokens a row, {before} are used and {new} more came. "
                "Make it with a larger max_len, or with max_len=None to let it grow."
            )
        while before + new > self.capacity:
            self.capacity *= 2

    def _plan_ordered(self, tokens: Tokens, start: int) -> KeyView:
        T, W = tokens.length, self.window
        stop = start + T
        if W is None or stop <= W:  # no slot is used twice so far: slot = index
            index, first = torch.arange(stop, device=self.device)[None], 0
            exchange = self._writer(slice(start, stop), stop)
        elif T == 1:  # the slot overwritten is the one that just left the window
            slot = torch.arange(W, device=self.device)
            index, first = (start - (start - slot) % W)[None], 0
            exchange = self._writer(slice(start % W, start % W + 1), W)
        else:  # old ring in token order, then the new keys; only then is the ring overwritten
            first = max(0, start - W)
            index = torch.arange(first, stop, device=self.device)[None]
            exchange = self._ring_reader(start, T)
        ordered = W is None or stop <= W or T > 1
        return KeyView(
            index=index, positions=index, documents=None, ordered=ordered, q_start=start, start=first,
            only_visible=T == 1, exchange=exchange,
        )  # fmt: skip

    def _plan_by_row(self, tokens: Tokens) -> KeyView:
        index, positions, documents = self.index, self.positions, self.documents
        if index is None or positions is None:
            raise CacheError("the cache was planned before its tokens were remembered")
        new = tokens.index.expand(self.batch, -1)
        slots = torch.where(new == NO_TOKEN, self.capacity, new if self.window is None else new % self.window)
        keep_all = self.window is None or tokens.length == 1
        if self.window is not None and not keep_all:
            last = new > new.amax(1, keepdim=True) - self.window
            slots = torch.where(last, slots, self.capacity)
        seen = (index, positions, documents)
        stored = tuple(
            None if held is None else self._put(held, slots, fresh)
            for held, fresh in zip(seen, self._columns(tokens), strict=True)
        )
        self.index, self.positions, self.documents = stored  # type: ignore[assignment]
        stop = min(tokens.span, self.capacity) if self.window is None else self.capacity
        if keep_all:
            view = tuple(None if t is None else t[:, :stop] for t in stored)
        else:
            view = tuple(
                None if t is None else torch.cat([t[:, : self.capacity], fresh], dim=1)
                for t, fresh in zip(seen, self._columns(tokens), strict=True)
            )
        return KeyView(
            index=view[0], positions=view[1], documents=view[2], ordered=False, q_start=0, start=0,  # type: ignore[arg-type]
            only_visible=False, exchange=self._row_writer(slots, stop, keep_all),
        )  # fmt: skip

    def _columns(self, tokens: Tokens) -> tuple[Tensor, Tensor, Tensor | None]:
        positions = tokens.positions.expand(self.batch, *tokens.positions.shape[1:])
        documents = None if self.documents is None else tokens.documents
        if self.documents is not None and documents is None:
            documents = self.documents.new_zeros(self.batch, tokens.length)
        if self.positions is not None:
            positions = positions.to(self.positions.dtype)
        return tokens.index.expand(self.batch, -1), positions, documents

    def _put(self, held: Tensor, slots: Tensor, fresh: Tensor) -> Tensor:
        where = slots if held.ndim == 2 else slots[..., None].expand_as(fresh)
        out = held.scatter(1, where, fresh)
        out[:, self.capacity :] = NO_TOKEN
        return out

    def _remember(self, tokens: Tokens, before: int) -> None:
        """Turn host knowledge into tensors, and make room: index, positions, documents per slot (the last is scratch)."""
        wide = self.capacity + 1
        if self.index is None:
            slot = torch.arange(wide, device=self.device)
            index = slot if self.window is None else before - 1 - (before - 1 - slot) % self.window
            index = torch.where((index >= 0) & (index < before) & (slot < self.capacity), index, NO_TOKEN)
            self.index = index.expand(self.batch, -1).clone()
            self.positions = self.index.clone()
        if self.index.shape[1] < wide:
            grow = wide - self.index.shape[1]
            self.index, self.positions, self.documents = (
                None if t is None else torch.cat([t, t.new_full((self.batch, grow, *t.shape[2:]), NO_TOKEN)], dim=1)
                for t in (self.index, self.positions, self.documents)
            )
        if tokens.documents is not None and self.documents is None and self.index is not None:
            self.documents = torch.zeros_like(self.index)
        self._match_positions(tokens.positions)

    def _match_positions(self, new: Tensor) -> None:
        held = self.positions
        if held is None:
            return
        if new.ndim > held.ndim:  # earlier tokens had one axis: the same value on each
            held = held[..., None].expand(*held.shape, new.shape[-1]).clone()
        self.positions = held.to(torch.promote_types(held.dtype, new.dtype))

    def _room(self, stored: Tensor | None, new: Tensor) -> Tensor:
        wide = self.capacity + 1
        if stored is None:
            return new.new_zeros(*new.shape[:2], wide, new.shape[-1])
        if stored.shape[2] < wide:
            larger = stored.new_zeros(*stored.shape[:2], wide, stored.shape[-1])
            larger[:, :, : stored.shape[2] - 1] = stored[:, :, :-1]
            return larger
        return stored

    def _writer(self, where: slice, stop: int) -> Callable[[Tensor | None, Tensor], tuple[Tensor, Tensor]]:
        def exchange(stored: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
            stored = self._room(stored, new)
            stored[:, :, where] = new
            return stored, stored[:, :, :stop]

        return exchange

    def _ring_reader(self, start: int, T: int) -> Callable[[Tensor | None, Tensor], tuple[Tensor, Tensor]]:
        W = self.capacity
        kept = torch.arange(max(0, start - W), start, device=self.device) % W
        last = torch.arange(max(start, start + T - W), start + T, device=self.device)

        def exchange(stored: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
            stored = self._room(stored, new)
            seen = torch.cat([stored[:, :, kept], new], dim=2) if len(kept) else new
            stored[:, :, last % W] = new[:, :, last - start]
            return stored, seen

        return exchange

    def _row_writer(
        self, slots: Tensor, stop: int, write_first: bool
    ) -> Callable[[Tensor | None, Tensor], tuple[Tensor, Tensor]]:
        def exchange(stored: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
            stored = self._room(stored, new)
            seen = None if write_first else torch.cat([stored[:, :, : self.capacity], new], dim=2)
            stored.scatter_(2, slots[:, None, :, None].expand_as(new), new)
            return stored, stored[:, :, :stop] if seen is None else seen

        return exchange

    def reorder(self, rows: Tensor) -> None:
        self.index, self.positions, self.documents = (
            None if t is None else t[rows] for t in (self.index, self.positions, self.documents)
        )


class KVCache:
    """Keys, values and key states of every layer, and where they are. Make one with `model.new_cache(...)`.

    windows: one entry per layer, its sliding window or None. max_len: slots per row; None grows (by doubling).
    signature: what the model says of itself, so that a cache cannot serve another model.
    """

    def __init__(
        self, windows: Sequence[int | None], batch_size: int, max_len: int | None, device: torch.device,
        dtype: torch.dtype | None = None, signature: tuple[object, ...] = (),
    ):  # fmt: skip
        self.batch_size, self.max_len, self.device, self.dtype = batch_size, max_len, device, dtype
        self.signature = signature
        self.span = 0  # every index so far is below it; equal to each row's length while rows are alike
        self.lengths: Tensor | None = None  # [B] tokens per row, once rows differ
        self.last_document: tuple[Tensor, Tensor] | None = None  # the last document [B], its first token's index [B]
        self.windows = tuple(windows)
        self._slots = {w: Slots(batch_size, device, max_len, w) for w in set(windows)}
        self._layers: list[list[Tensor | None]] = [[None, None, None] for _ in windows]
        self.cross: list[tuple[Tensor, Tensor] | None] = [None for _ in windows]
        self.cross_context: object = None
        self.memo: dict[int | None, dict[int, Any]] = {w: {} for w in set(windows)}
        self.ending: tuple[int, Tensor] | None = None  # the span, and [B M] that predicts the token after it

    def starts(self) -> Tensor | int:
        """The next token's index: one number, or [B] where rows differ."""
        return self.span if self.lengths is None else self.lengths

    def plan(self, tokens: Tokens) -> dict[int | None, KeyView]:
        """Where the new tokens go and which keys they see, for each window size. Once per forward pass."""
        views = {w: slots.plan(tokens, self.span) for w, slots in self._slots.items()}
        if tokens.start is None:
            counts = (tokens.index != NO_TOKEN).sum(-1).expand(self.batch_size)
            self.lengths = self.starts() + counts
        self.span = tokens.span
        return views

    def write(
        self, layer: int, view: KeyView, k: Tensor, v: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """[B G T D], [B G T D], [B H T C] of one layer -> the same for every key slot that the queries see."""
        held = self._layers[layer]
        held[0], keys = view.exchange(held[0], k if self.dtype is None else k.to(self.dtype))
        held[1], values = view.exchange(held[1], v if self.dtype is None else v.to(self.dtype))
        if state is not None:
            held[2], state = view.exchange(held[2], state)
        return keys.to(k.dtype), values.to(v.dtype), state

    def check(self, signature: tuple[object, ...], batch_size: int) -> None:
        """Raises CacheError where this cache was made for another model or another batch size."""
        if signature != self.signature:
            raise CacheError(
                f"this cache was made for a model of shape {self.signature}, this model is {signature}. "
                "Make one with this model's new_cache(batch_size)."
            )
        if batch_size != self.batch_size:
            raise CacheError(
                f"this cache holds batch_size={self.batch_size} rows, {batch_size} came. "
                f"Make one with new_cache({batch_size}), or take rows with cache.reorder(rows)."
            )

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows [B'] int64, in that order: beams, or a batch that shrinks."""
        self.batch_size = len(rows)
        self.lengths = None if self.lengths is None else self.lengths[rows]
        if self.last_document is not None:
            self.last_document = (self.last_document[0][rows], self.last_document[1][rows])
        if self.ending is not None:
            self.ending = (self.ending[0], self.ending[1][rows])
        for slots in self._slots.values():
            slots.batch = len(rows)
            slots.reorder(rows)
        self._layers = [[None if t is None else t[rows] for t in layer] for layer in self._layers]
        self.cross = [None if kv is None else (kv[0][rows], kv[1][rows]) for kv in self.cross]

    def nbytes(self) -> int:
        """Bytes held by keys, values and key states."""
        return sum(t.numel() * t.element_size() for layer in self._layers for t in layer if t is not None)
