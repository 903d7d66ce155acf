"""The slots of a cache: growing, static or a ring. A slot number has no meaning; the index of the token in it does.

B batch, T new tokens, S key slots, G key/value heads, C channels. `assign` runs once per forward pass and attention
window and returns where keys are; `exchange` runs once per tensor and layer: it stores the new and returns the visible.
Neither changes what a committed state of the cache reads.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

from x_positional.attention.tokens import TokenLayout
from x_positional.errors import CacheError
from x_positional.schemes.base import NO_TOKEN, AttentionWindow

FIRST_SLOTS = 64
"""Slots that a cache without a max_len starts with; it doubles them, up to the window if there is one."""

Exchange: TypeAlias = Callable[[Tensor | None, Tensor, bool], tuple[Tensor, Tensor]]


@dataclass(frozen=True, kw_only=True)
class KeyView:
    """The keys visible to the new queries, in slot order, and how a layer's tensors get there."""

    index: Tensor
    """[B|1 S]."""
    positions: Tensor
    """[B|1 S] or [B|1 S A]."""
    documents: Tensor | None
    """[B S]."""
    ordered: bool
    """In every row the index is start, start + 1, ...; known on the host."""
    q_start: int
    """The index of the first query, if ordered."""
    start: int
    """The index of the first key, if ordered."""
    only_visible: bool
    """Every slot is visible to every query; known on the host."""
    exchange: Exchange
    """(stored, new, in_place) -> (stored, visible). In place it writes to slots that no token is in, or one that no later
    query sees; `stored` as it was before stays valid."""


@dataclass(frozen=True, kw_only=True)
class SlotTable:
    """Which token is in each slot. The tensors exist only once rows differ or positions are custom; their last slot is
    scratch."""

    capacity: int
    """Slots a row."""
    index: Tensor | None = None
    """[B S+1]; None: slots are filled in order."""
    positions: Tensor | None = None
    """[B S+1] or [B S+1 A]; None: the index itself."""
    documents: Tensor | None = None
    """[B S+1]; None: no documents so far."""

    def map(self, fn: Callable[[Tensor], Tensor]) -> "SlotTable":
        """The same with fn applied to every tensor."""
        index, positions, documents = (
            None if t is None else fn(t) for t in (self.index, self.positions, self.documents)
        )
        return replace(self, index=index, positions=positions, documents=documents)


class Slots:
    """The slots for one attention window: where tokens go. With a window, they are a ring, after the slots of the first
    tokens where those are kept.

    Args:
        device: of the tensors.
        size: slots a row; None grows.
        window: what the layers attend to.
    """

    def __init__(self, device: torch.device, size: int | None, window: AttentionWindow):
        self.device, self.size, self.window = device, size, window
        self.first = window.keep_first
        self.kept = window.kept
        self.most = None if self.kept is None else self.first + self.kept
        grown = FIRST_SLOTS if self.most is None else min(self.most, FIRST_SLOTS)
        self.first_capacity = grown if size is None else self.most or size

    def assign(self, table: SlotTable, tokens: TokenLayout, before: int, batch: int) -> tuple[SlotTable, KeyView]:
        """The table after these tokens, and the keys that they see. `before` tokens (at most, per row) are already stored."""
        capacity = self._reserve(table, tokens.span)
        if tokens.start is not None and table.index is None and not tokens.custom_positions:
            return SlotTable(capacity=capacity), self._assign_ordered(tokens, tokens.start, capacity)
        return self._assign_by_row(self._by_row(table, tokens, before, batch, capacity), tokens, batch)

    def capacity_for(self, size: int) -> int:
        """Slots for `size` tokens a row; a window needs no more than it keeps."""
        return size if self.most is None else min(size, self.most)

    def must_grow(self, table: SlotTable, span: int) -> bool:
        """Whether tokens below index `span` need more slots than there are now."""
        return self._too_small(table.capacity, span)

    def used(self, table: SlotTable, span: int, count: Tensor | int) -> Tensor:
        """[B|1 S] bool: slots whose token a later query may see, after `count` [B 1] tokens, at most `span`."""
        index = table.index
        if index is None:
            index = self._held(torch.arange(table.capacity, device=self.device), span)[None]
        used = (index >= 0) & (index < count)
        return used if self.kept is None else used & ((index > count - self.kept) | (index < self.first))

    def written(self, start: int, stop: int) -> slice:
        """Slots that tokens with indices from `start` to below `stop` may be in."""
        return slice(start, stop) if self.most is None or stop <= self.most else slice(0, self.most)

    def _too_small(self, capacity: int, span: int) -> bool:
        return span > capacity and capacity != self.most

    def _reserve(self, table: SlotTable, span: int) -> int:
        """How many slots hold tokens below index `span`. Raises CacheError."""
        if self.kept is None and self.size is not None and span > self.size:
            raise CacheError(
                f"the cache is full: it holds max_len={self.size} tokens a row, and with the new ones a row has {span}. "
                "Make it with a larger max_len, or with max_len=None to let it grow."
            )
        capacity = table.capacity
        while self._too_small(capacity, span):
            capacity = 2 * capacity if self.most is None else min(2 * capacity, self.most)
        return capacity

    def _slot_of(self, index: Tensor) -> Tensor:
        """The slots of tokens with these indices."""
        if self.kept is None:
            return index
        ring = self.first + (index - self.first) % self.kept
        return torch.where(index < self.first, index, ring) if self.first else ring

    def _held(self, slot: Tensor, count: int) -> Tensor:
        """The index of the token in each slot after `count` tokens; outside 0 .. count - 1 there is none."""
        if self.kept is None:
            return slot
        last = count - 1 - self.first
        ring = self.first + last - (last - (slot - self.first)) % self.kept
        return torch.where(slot < self.first, slot, torch.where(ring < self.first, NO_TOKEN, ring))

    def _assign_ordered(self, tokens: TokenLayout, start: int, capacity: int) -> KeyView:
        T, stop, ordered, kv_start = tokens.length, start + tokens.length, True, 0
        if self.kept is None or self.most is None or stop <= self.most:  # no slot is used twice so far: slot = index
            index = torch.arange(stop, device=self.device)
            exchange = self._writer(slice(start, stop), stop, capacity)
        elif T == 1:  # the slot overwritten is the one that just left the window
            index, ordered = self._held(torch.arange(self.most, device=self.device), stop), False
            slot = self.first + (start - self.first) % self.kept
            exchange = self._writer(slice(slot, slot + 1), self.most, capacity)
        else:  # old ring in token order, then the new keys; the ring is overwritten in a copy
            recent = torch.arange(max(0, start - self.kept), stop, device=self.device)
            early = torch.arange(min(self.first, max(0, start - self.kept)), device=self.device)
            index, ordered = torch.cat([early, recent]), not len(early)
            kv_start = max(0, start - self.kept)
            exchange = self._ring_reader(index[: len(index) - T], start, T, capacity)
        index = index[None]
        return KeyView(
            index=index,
            positions=index,
            documents=None,
            ordered=ordered,
            q_start=start,
            start=kv_start,
            only_visible=T == 1 and self.window.chunk is None,
            exchange=exchange,
        )

    def _assign_by_row(self, table: SlotTable, tokens: TokenLayout, batch: int) -> tuple[SlotTable, KeyView]:
        index, capacity = table.index, table.capacity
        if index is None:
            raise CacheError("the cache was planned before its tokens were remembered")
        new = tokens.index.expand(batch, -1)
        slots = torch.where(new == NO_TOKEN, capacity, self._slot_of(new))
        keep_all = self.kept is None or tokens.length == 1
        if self.kept is not None and not keep_all:
            last = (new > new.amax(1, keepdim=True) - self.kept) | (new < self.first)
            slots = torch.where(last, slots, capacity)
        seen = (index, table.positions, table.documents)
        columns = self._columns(table, tokens, batch)
        stored = tuple(
            None if held is None or fresh is None else self._put(held, slots, fresh, capacity)
            for held, fresh in zip(seen, columns, strict=True)
        )
        # padding alone adds no token, and its queries still read a slot: the scratch one
        stop = max(1, min(tokens.span, capacity)) if self.kept is None else capacity
        if keep_all:
            view = tuple(None if t is None else t[:, :stop] for t in stored)
        else:
            view = tuple(
                None if t is None or fresh is None else torch.cat([t[:, :capacity], fresh], dim=1)
                for t, fresh in zip(seen, columns, strict=True)
            )
        after = SlotTable(capacity=capacity, index=stored[0], positions=stored[1], documents=stored[2])
        return after, KeyView(
            index=view[0],  # type: ignore[arg-type]
            positions=view[0] if view[1] is None else view[1],  # type: ignore[arg-type]
            documents=view[2],
            ordered=False,
            q_start=0,
            start=0,
            only_visible=False,
            exchange=self._row_writer(slots, stop, capacity, keep_all),
        )

    def _columns(
        self, table: SlotTable, tokens: TokenLayout, batch: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        documents = None if table.documents is None else tokens.documents
        if table.documents is not None and documents is None:
            documents = table.documents.new_zeros(batch, tokens.length)
        positions = None
        if table.positions is not None:
            positions = tokens.positions.to(table.positions.dtype)
            if positions.ndim < table.positions.ndim:  # text after an image: the same value on each axis
                positions = positions[..., None]
            positions = positions.expand(batch, tokens.length, *table.positions.shape[2:])
        return tokens.index.expand(batch, -1), positions, documents

    def _put(self, held: Tensor, slots: Tensor, fresh: Tensor, capacity: int) -> Tensor:
        where = slots if held.ndim == 2 else slots[..., None].expand_as(fresh)
        out = held.scatter(1, where, fresh)
        out[:, capacity:].fill_(NO_TOKEN)
        return out

    def _by_row(self, table: SlotTable, tokens: TokenLayout, before: int, batch: int, capacity: int) -> SlotTable:
        """The table as tensors, with what the new tokens need: documents, custom positions."""
        table = self.by_row(table, before, batch, capacity)
        index, positions, documents = table.index, table.positions, table.documents
        if index is not None:
            if tokens.documents is not None and documents is None:
                documents = torch.zeros_like(index)
            if positions is not None or tokens.custom_positions:
                positions = _matched(index if positions is None else positions, tokens.positions)
        return SlotTable(capacity=capacity, index=index, positions=positions, documents=documents)

    def by_row(self, table: SlotTable, before: int, batch: int, capacity: int) -> SlotTable:
        """Turn host knowledge into tensors, and make room: index, positions, documents per slot (the last is scratch).

        Args:
            table: which token is in each slot, `before` tokens at most.
            before: tokens that are stored, per row.
            batch: rows.
            capacity: slots a row, at least those of the table.
        """
        wide = capacity + 1
        index, positions, documents = table.index, table.positions, table.documents
        if index is None:
            slot = torch.arange(wide, device=self.device)
            index = self._held(slot, before)
            index = torch.where((index >= 0) & (index < before) & (slot < capacity), index, NO_TOKEN).expand(batch, -1)
        if index.shape[1] < wide:
            grow = wide - index.shape[1]
            index, positions, documents = (
                None if t is None else torch.cat([t, t.new_full((batch, grow, *t.shape[2:]), NO_TOKEN)], dim=1)
                for t in (index, positions, documents)
            )
        return SlotTable(capacity=capacity, index=index, positions=positions, documents=documents)

    def room(self, stored: Tensor | None, new: Tensor, capacity: int) -> Tensor:
        """The stored tensor of a layer, with capacity + 1 slots."""
        wide = capacity + 1
        if stored is None:
            return new.new_zeros(*new.shape[:2], wide, new.shape[-1])
        if stored.shape[2] < wide:
            larger = stored.new_zeros(*stored.shape[:2], wide, stored.shape[-1])
            larger[:, :, : stored.shape[2] - 1] = stored[:, :, :-1]
            return larger
        return stored

    def _writer(self, where: slice, stop: int, capacity: int) -> Exchange:
        def exchange(stored: Tensor | None, new: Tensor, in_place: bool) -> tuple[Tensor, Tensor]:
            stored = self.room(stored, new, capacity)
            if in_place:
                stored[:, :, where] = new
            else:
                stored = stored.slice_scatter(new.to(stored.dtype), 2, where.start, where.stop)
            return stored, stored[:, :, :stop]

        return exchange

    def _ring_reader(self, kept: Tensor, start: int, T: int, capacity: int) -> Exchange:
        """kept: the indices of the stored tokens that the new ones may see."""
        late = start + max(0, T - (self.kept or 0))
        stays = torch.arange(late, start + T, device=self.device)
        if start < self.first:
            stays = torch.cat([torch.arange(start, min(self.first, late), device=self.device), stays])
        read, write = self._slot_of(kept), self._slot_of(stays)

        def exchange(stored: Tensor | None, new: Tensor, in_place: bool) -> tuple[Tensor, Tensor]:
            stored = self.room(stored, new, capacity)
            seen = torch.cat([stored[:, :, read], new], dim=2) if len(read) else new
            return stored.index_copy(2, write, new[:, :, stays - start].to(stored.dtype)), seen

        return exchange

    def _row_writer(self, slots: Tensor, stop: int, capacity: int, write_first: bool) -> Exchange:
        def exchange(stored: Tensor | None, new: Tensor, in_place: bool) -> tuple[Tensor, Tensor]:
            stored = self.room(stored, new, capacity)
            seen = None if write_first else torch.cat([stored[:, :, :capacity], new], dim=2)
            batch, heads = (torch.arange(n, device=slots.device) for n in stored.shape[:2])
            where = (
                batch[:, None, None],
                heads[:, None],
                slots[:, None],
            )  # not scatter, which compiles to a copy of all slots
            if in_place and write_first:
                stored.index_put_(where, new.to(stored.dtype))
            else:
                stored = stored.index_put(where, new.to(stored.dtype))
            return stored, stored[:, :, :stop] if seen is None else seen

        return exchange


def in_dtype(t: Tensor, dtype: torch.dtype) -> Tensor:
    """`t.to(dtype)`, which takes a microsecond where there is nothing to do."""
    return t if t.dtype == dtype else t.to(dtype)


def _matched(held: Tensor, new: Tensor) -> Tensor:
    """Stored positions with the axes and the dtype that the new ones need."""
    if new.ndim > held.ndim:  # earlier tokens had one axis: the same value on each
        held = held[..., None].expand(*held.shape, new.shape[-1])
    return held.to(torch.promote_types(held.dtype, new.dtype))
