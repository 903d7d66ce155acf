"""The slots of a cache: growing, static or a ring. A slot number has no meaning; the index of the token in it does.

B batch, T new tokens, S key slots, G key/value heads, C channels. `assign` runs once per forward pass and attention
window and returns where keys are; `exchange` runs once per tensor and layer: it stores the new and returns the visible.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from x_positional.attention.tokens import TokenLayout
from x_positional.errors import CacheError
from x_positional.schemes.base import NO_TOKEN, AttentionWindow

FIRST_SLOTS = 64
"""Slots that a cache without a max_len starts with; it doubles them, up to the window if there is one."""


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
    exchange: Callable[[Tensor | None, Tensor], tuple[Tensor, Tensor]]
    """(stored, new) -> (stored, visible)."""


class Slots:
    """The slots for one attention window. Their tensors exist only once rows differ or positions are custom.

    With a window, slots are a ring, after the slots of the first tokens where those are kept.
    """

    def __init__(self, batch: int, device: torch.device, size: int | None, window: AttentionWindow):
        self.batch, self.device, self.size, self.window = batch, device, size, window
        self.first = window.keep_first
        self.kept = window.kept
        self.most = None if self.kept is None else self.first + self.kept
        grown = FIRST_SLOTS if self.most is None else min(self.most, FIRST_SLOTS)
        self.capacity = grown if size is None else self.most or size
        self.index: Tensor | None = None
        self.positions: Tensor | None = None  # None: the index itself
        self.documents: Tensor | None = None

    def assign(self, tokens: TokenLayout, before: int) -> KeyView:
        """`before` tokens (at most, per row) are already stored."""
        self._reserve(tokens.span)
        if tokens.start is not None and self.index is None and not tokens.custom_positions:
            return self._assign_ordered(tokens, tokens.start)
        self._remember(tokens, before)
        return self._assign_by_row(tokens)

    def must_grow(self, span: int) -> bool:
        """Whether tokens below index `span` need more slots than there are now."""
        return span > self.capacity and self.capacity != self.most

    def _reserve(self, span: int) -> None:
        if self.kept is None and self.size is not None and span > self.size:
            raise CacheError(
                f"the cache is full: it holds max_len={self.size} tokens a row, and with the new ones a row has {span}. "
                "Make it with a larger max_len, or with max_len=None to let it grow."
            )
        while self.must_grow(span):
            self.capacity = 2 * self.capacity if self.most is None else min(2 * self.capacity, self.most)

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

    def _assign_ordered(self, tokens: TokenLayout, start: int) -> KeyView:
        T, stop, ordered, kv_start = tokens.length, start + tokens.length, True, 0
        if self.kept is None or self.most is None or stop <= self.most:  # no slot is used twice so far: slot = index
            index = torch.arange(stop, device=self.device)
            exchange = self._writer(slice(start, stop), stop)
        elif T == 1:  # the slot overwritten is the one that just left the window
            index, ordered = self._held(torch.arange(self.most, device=self.device), stop), False
            slot = self.first + (start - self.first) % self.kept
            exchange = self._writer(slice(slot, slot + 1), self.most)
        else:  # old ring in token order, then the new keys; only then is the ring overwritten
            recent = torch.arange(max(0, start - self.kept), stop, device=self.device)
            early = torch.arange(min(self.first, max(0, start - self.kept)), device=self.device)
            index, ordered = torch.cat([early, recent]), not len(early)
            kv_start = max(0, start - self.kept)
            exchange = self._ring_reader(index[: len(index) - T], start, T)
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

    def _assign_by_row(self, tokens: TokenLayout) -> KeyView:
        index = self.index
        if index is None:
            raise CacheError("the cache was planned before its tokens were remembered")
        new = tokens.index.expand(self.batch, -1)
        slots = torch.where(new == NO_TOKEN, self.capacity, self._slot_of(new))
        keep_all = self.kept is None or tokens.length == 1
        if self.kept is not None and not keep_all:
            last = (new > new.amax(1, keepdim=True) - self.kept) | (new < self.first)
            slots = torch.where(last, slots, self.capacity)
        seen = (index, self.positions, self.documents)
        stored = tuple(
            None if held is None or fresh is None else self._put(held, slots, fresh)
            for held, fresh in zip(seen, self._columns(tokens), strict=True)
        )
        self.index, self.positions, self.documents = stored  # type: ignore[assignment]
        stop = min(tokens.span, self.capacity) if self.kept is None else self.capacity
        if keep_all:
            view = tuple(None if t is None else t[:, :stop] for t in stored)
        else:
            view = tuple(
                None if t is None or fresh is None else torch.cat([t[:, : self.capacity], fresh], dim=1)
                for t, fresh in zip(seen, self._columns(tokens), strict=True)
            )
        return KeyView(
            index=view[0],  # type: ignore[arg-type]
            positions=view[0] if view[1] is None else view[1],  # type: ignore[arg-type]
            documents=view[2],
            ordered=False,
            q_start=0,
            start=0,
            only_visible=False,
            exchange=self._row_writer(slots, stop, keep_all),
        )

    def _columns(self, tokens: TokenLayout) -> tuple[Tensor, Tensor | None, Tensor | None]:
        documents = None if self.documents is None else tokens.documents
        if self.documents is not None and documents is None:
            documents = self.documents.new_zeros(self.batch, tokens.length)
        positions = None
        if self.positions is not None:
            positions = tokens.positions.to(self.positions.dtype)
            if positions.ndim < self.positions.ndim:  # text after an image: the same value on each axis
                positions = positions[..., None]
            positions = positions.expand(self.batch, tokens.length, *self.positions.shape[2:])
        return tokens.index.expand(self.batch, -1), positions, documents

    def _put(self, held: Tensor, slots: Tensor, fresh: Tensor) -> Tensor:
        where = slots if held.ndim == 2 else slots[..., None].expand_as(fresh)
        out = held.scatter(1, where, fresh)
        out[:, self.capacity :].fill_(NO_TOKEN)
        return out

    def _remember(self, tokens: TokenLayout, before: int) -> None:
        """Turn host knowledge into tensors, and make room: index, positions, documents per slot (the last is scratch)."""
        wide = self.capacity + 1
        if self.index is None:
            slot = torch.arange(wide, device=self.device)
            index = self._held(slot, before)
            index = torch.where((index >= 0) & (index < before) & (slot < self.capacity), index, NO_TOKEN)
            self.index = index.expand(self.batch, -1).clone()
        if self.index.shape[1] < wide:
            grow = wide - self.index.shape[1]
            self.index, self.positions, self.documents = (
                None if t is None else torch.cat([t, t.new_full((self.batch, grow, *t.shape[2:]), NO_TOKEN)], dim=1)
                for t in (self.index, self.positions, self.documents)
            )
        if tokens.documents is not None and self.documents is None and self.index is not None:
            self.documents = torch.zeros_like(self.index)
        held = self.index if self.positions is None else self.positions
        if held is not None and (self.positions is not None or tokens.custom_positions):
            self._match_positions(held, tokens.positions)

    def _match_positions(self, held: Tensor, new: Tensor) -> None:
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

    def _ring_reader(
        self, kept: Tensor, start: int, T: int
    ) -> Callable[[Tensor | None, Tensor], tuple[Tensor, Tensor]]:
        """kept: the indices of the stored tokens that the new ones may see."""
        late = start + max(0, T - (self.kept or 0))
        stays = torch.arange(late, start + T, device=self.device)
        if start < self.first:
            stays = torch.cat([torch.arange(start, min(self.first, late), device=self.device), stays])
        read, write = self._slot_of(kept), self._slot_of(stays)

        def exchange(stored: Tensor | None, new: Tensor) -> tuple[Tensor, Tensor]:
            stored = self._room(stored, new)
            seen = torch.cat([stored[:, :, read], new], dim=2) if len(read) else new
            stored[:, :, write] = new[:, :, stays - start]
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
