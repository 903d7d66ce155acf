"""The key/value cache of a model: the tensors of every layer, and the slots that they are in.

B batch, T new tokens, S key slots, G key/value heads, H heads, D head dim, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from x_positional.attention.cache_slots import KeyView, Slots
from x_positional.attention.tokens import TokenLayout
from x_positional.errors import CacheError
from x_positional.schemes.base import NO_TOKEN, AttentionWindow

__all__ = ["CrossContext", "KVCache", "KeyView"]


@dataclass(frozen=True)
class CrossContext:
    """The context of cross-attention, resolved."""

    tokens: TokenLayout
    rotated: bool
    """Whether positions apply to its keys."""
    context: Tensor
    mask: Tensor | None
    positions: Tensor | None

    def rows(self, rows: Tensor) -> "CrossContext":
        """The same for the rows [B'], in that order."""
        held = self.tokens
        index = _rows(held.index, rows)
        places = _rows(held.positions, rows) if held.custom_positions else index
        mask = None if self.mask is None else self.mask[rows]
        positions = self.positions
        if positions is not None and positions.ndim > 1:
            positions = _rows(positions, rows)
        return replace(
            self,
            tokens=replace(held, index=index, positions=places),
            context=self.context[rows],
            mask=mask,
            positions=positions,
        )


def _rows(x: Tensor, rows: Tensor) -> Tensor:
    """[B|1 ...] -> [B'|1 ...]."""
    return x if x.shape[0] == 1 else x[rows]


class KVCache:
    """Keys, values and key states of every layer, and where they are. Make one with `model.new_cache(...)`.

    Args:
        windows: what each layer attends to, and so has to keep.
        batch_size: rows.
        max_len: slots a row; None grows, by doubling.
        device: of its tensors.
        dtype: of keys and values; None is the dtype they are computed in.
        owner: identifies the model it was made for, so that it cannot serve another one.
        final_lengths: [B|1] how long its rows will be, for schemes whose tables depend on it; None where that is unknown.
    """

    def __init__(
        self,
        windows: Sequence[AttentionWindow],
        batch_size: int,
        max_len: int | None,
        device: torch.device,
        dtype: torch.dtype | None = None,
        owner: str = "",
        final_lengths: Tensor | None = None,
    ):
        self.batch_size, self.max_len, self.device, self.dtype = batch_size, max_len, device, dtype
        self.owner, self.final_lengths = owner, final_lengths
        self.span = 0  # every index so far is below it; the length of each row while rows are alike
        self.lengths: Tensor | None = None  # [B] tokens per row, once rows differ
        self.last_document: tuple[Tensor, Tensor] | None = None  # its id [B], the index of its first token [B]
        self.following: Tensor | None = None  # [B|1] or [B|1 A] the next position, once positions were given
        self.windows = tuple(windows)
        self._slots = {window: Slots(batch_size, device, max_len, window) for window in set(windows)}
        self._layers: list[list[Tensor | None]] = [[None, None, None] for _ in windows]
        self.cross: list[tuple[Tensor, Tensor] | None] = [None for _ in windows]
        self.cross_context: CrossContext | None = None
        self.memo: dict[AttentionWindow, dict[int, Any]] = {window: {} for window in set(windows)}
        self.ending: tuple[int, Tensor] | None = None  # the span, and the hidden state [B M] that predicts the token after it

    def starts(self) -> Tensor | int:
        """The next token's index: one number, or [B] where rows differ."""
        return self.span if self.lengths is None else self.lengths

    def longest(self) -> int:
        """Tokens of the longest row. Forces a device sync where rows differ."""
        return self.span if self.lengths is None else int(self.lengths.max())

    def must_grow(self, span: int) -> bool:
        """Whether tokens below index `span` need more slots than there are now."""
        return any(slots.must_grow(span) for slots in self._slots.values())

    def reserve(self, tokens: TokenLayout) -> dict[AttentionWindow, KeyView]:
        """Reserves slots for the new tokens and returns the keys visible to them, for each attention window. Once a forward pass."""
        views = {window: slots.assign(tokens, self.span) for window, slots in self._slots.items()}
        if tokens.start is None:
            counts = (tokens.index != NO_TOKEN).sum(-1).expand(self.batch_size)
            self.lengths = self.starts() + counts
        self.span = tokens.span
        if tokens.last_document is not None:
            self.last_document = tokens.last_document
        self.following = tokens.following
        return views

    def write(
        self, layer: int, view: KeyView, k: Tensor, v: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """New keys [B G T D], values [B G T D] and key state [B H T C] of a layer -> the same for every visible slot."""
        held = self._layers[layer]
        held[0], keys = view.exchange(held[0], k if self.dtype is None else k.to(self.dtype))
        held[1], values = view.exchange(held[1], v if self.dtype is None else v.to(self.dtype))
        if state is not None:
            held[2], state = view.exchange(held[2], state)
        return keys.to(k.dtype), values.to(v.dtype), state

    def check(self, owner: str, batch_size: int) -> None:
        """Raises CacheError where this cache was made for another model or another batch size."""
        if owner != self.owner:
            raise CacheError(
                "this cache was made for another model, and its keys are meaningless to this one. "
                "Make one with this model's new_cache(batch_size)."
            )
        if batch_size != self.batch_size:
            raise CacheError(
                f"this cache has batch_size={self.batch_size}, but the input has {batch_size} rows. "
                f"Make one with new_cache({batch_size}), or select rows with cache.reorder(rows)."
            )

    def reorder(self, rows: Tensor) -> None:
        """Keep the rows [B'] int64, in that order: for beam search, or a batch that shrinks."""
        self.batch_size = len(rows)
        self.lengths = None if self.lengths is None else self.lengths[rows]
        if self.last_document is not None:
            self.last_document = (self.last_document[0][rows], self.last_document[1][rows])
        self.following = None if self.following is None else _rows(self.following, rows)
        self.final_lengths = None if self.final_lengths is None else _rows(self.final_lengths, rows)
        if self.ending is not None:
            self.ending = (self.ending[0], self.ending[1][rows])
        for slots in self._slots.values():
            slots.batch = len(rows)
            slots.reorder(rows)
        self._layers = [[None if t is None else t[rows] for t in layer] for layer in self._layers]
        self.cross = [None if kv is None else (kv[0][rows], kv[1][rows]) for kv in self.cross]
        self.cross_context = None if self.cross_context is None else self.cross_context.rows(rows)

    def nbytes(self) -> int:
        """Bytes held by keys, values and key states."""
        return sum(t.numel() * t.element_size() for layer in self._layers for t in layer if t is not None)
