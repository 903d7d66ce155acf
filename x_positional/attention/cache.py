"""The key/value cache of a model: what every layer keeps, over the slots that say where keys are.

B batch, T new tokens, S key slots, G key/value heads, H heads, D head dim, C channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from x_positional.attention.cache_slots import KeyView, Slots, TokenLayout
from x_positional.errors import CacheError
from x_positional.schemes.base import NO_TOKEN, AttentionWindow

__all__ = ["CrossContext", "KVCache", "KeyView", "TokenLayout"]


@dataclass(frozen=True)
class CrossContext:
    """The context of cross-attention: where its tokens are, whether its keys are rotated, and what the caller gave."""

    tokens: TokenLayout
    rotated: bool
    context: Tensor
    mask: Tensor | None
    positions: Tensor | None

    def rows(self, rows: Tensor) -> "CrossContext":
        """The contexts of the rows [B'], in that order."""
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

    windows: what each layer sees, and so has to keep. max_len: slots per row; None grows (by doubling). final_lengths:
    [B|1] how long its rows will be, for schemes that choose their tables by it; None where nobody knows.
    owner: a token of the model it was made for, so that it cannot serve another one.
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
        self.span = 0  # every index so far is below it; equal to each row's length while rows are alike
        self.lengths: Tensor | None = None  # [B] tokens per row, once rows differ
        self.last_document: tuple[Tensor, Tensor] | None = None  # the last document [B], its first token's index [B]
        self.following: Tensor | None = None  # [B|1] or [B|1 A] the next position, once positions were given
        self.windows = tuple(windows)
        self._slots = {window: Slots(batch_size, device, max_len, window) for window in set(windows)}
        self._layers: list[list[Tensor | None]] = [[None, None, None] for _ in windows]
        self.cross: list[tuple[Tensor, Tensor] | None] = [None for _ in windows]
        self.cross_context: CrossContext | None = None
        self.memo: dict[AttentionWindow, dict[int, Any]] = {window: {} for window in set(windows)}
        self.ending: tuple[int, Tensor] | None = None  # the span, and [B M] that predicts the token after it

    def starts(self) -> Tensor | int:
        """The next token's index: one number, or [B] where rows differ."""
        return self.span if self.lengths is None else self.lengths

    def longest(self) -> int:
        """Tokens of the longest row. Looks at the device where rows differ."""
        return self.span if self.lengths is None else int(self.lengths.max())

    def must_grow(self, span: int) -> bool:
        """Whether tokens below index `span` are more than there are slots for now."""
        return any(slots.must_grow(span) for slots in self._slots.values())

    def reserve(self, tokens: TokenLayout) -> dict[AttentionWindow, KeyView]:
        """Where the new tokens go and which keys they see, for each attention window. Once per forward pass."""
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
        """[B G T D], [B G T D], [B H T C] of one layer -> the same for every key slot that the queries see."""
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
                "this cache was made for another model, whose keys mean nothing to this one. "
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
