"""A cache in tensors alone, for a decoding step that is compiled once: where its tokens are is data, and so is its length.

B batch, S key slots.
"""

from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from x_positional.attention.cache import CacheState, KVCache
from x_positional.attention.ownership import UNKNOWN

GROWTH = 256
"""Slots that a cache grows by. It reads at most so many slots that hold no token yet, and copies its tensors once in as many
tokens."""


def grown_size(tokens: int) -> int:
    """Slots for this many tokens a row, and for at least one more."""
    return (tokens // GROWTH + 1) * GROWTH


def fixed_state(cache: KVCache, size: int, rows: int) -> CacheState:
    """The state of a cache as a compiled step takes it: every row has its own index, and no number of tokens is a constant.

    Tensors that have the room already are shared with the cache, which stays as it is: a step writes to slots that hold no token
    that a later query sees.

    Args:
        cache: filled, for one pass after another of a single token a row.
        size: slots a row, at least; a window needs no more than it keeps.
        rows: B, at least those of the cache; further rows repeat the first one.

    Returns:
        A state whose span is the largest that its slots allow, which is an upper bound as any.
    """
    state = cache.settled()
    cache.expect_writes()
    if state.in_graph:
        state = replace(state.map(torch.clone), in_graph=False)
    batch, lengths = state.batch_size, state.lengths
    if lengths is None:
        lengths = torch.full((batch,), state.span, device=cache.device)
    pairs = list(zip(cache.slots, state.tables, strict=True))
    size = max(size, *(table.capacity for slots, table in pairs if table.capacity != slots.most), 0)
    tables = tuple(
        slots.by_row(table, state.span, batch, slots.capacity_for(size)).map(torch.Tensor.contiguous)
        for slots, table in pairs
    )
    room = {
        window: (slots, table.capacity)
        for window, slots, table in zip(cache.distinct, cache.slots, tables, strict=True)
    }
    layers = []
    for window, layer in zip(cache.windows, state.layers, strict=True):
        slots, capacity = room[window]
        layers.append(tuple(None if t is None else slots.room(t, t, capacity) for t in layer))
    state = replace(state, span=size - 1, lengths=lengths, tables=tables, layers=tuple(layers), ending=None)
    if rows == batch:
        return state
    return replace(state.map(lambda t: padded_rows(t, rows) if len(t) == batch else t), batch_size=rows)


def padded_rows(t: Tensor, rows: int) -> Tensor:
    """[B ...] -> [rows ...], where further rows repeat the first one."""
    return t if len(t) == rows else torch.cat([t, t[:1].expand(rows - len(t), *t.shape[1:])])


class FixedCache:
    """The tensors of a fixed state, in two lists: what a step replaces, and what it writes to or reads.

    Args:
        cache: whose sizes and windows hold; its state is not read.
        state: from `fixed_state`.
    """

    def __init__(self, cache: KVCache, state: CacheState):
        self.changing, self.stored = (leaves(part) for part in _parts(state))
        self.weights, self.ahead = state.weights, state.ahead
        self.size = state.span + 1
        """Slots a row, of layers without a window."""
        growing = tuple(self._growing())
        changing, stored = (part.map(_nothing) for part in _parts(state))
        self.form = FixedForm(cache.without_limit(), changing, stored, growing)

    def state(self, span: int) -> CacheState:
        """The state that the tensors make up. span: an upper bound of every index, exclusive."""
        return replace(self.form.state(self.changing, self.stored, span), weights=self.weights, ahead=self.ahead)

    def sizes(self) -> Iterator[tuple[Tensor, int]]:
        """Each tensor's axes whose size depends on how many tokens there is room for."""
        tensors = (*self.changing, *self.stored)
        yield from ((tensors[i], dim) for i, dim in self.form.growing)

    def _growing(self) -> Iterator[tuple[int, int]]:
        for i, tensor in enumerate((*self.changing, *self.stored)):
            yield from ((i, dim) for dim, size in enumerate(tensor.shape) if size == self.size + 1)

    def signature(self) -> Hashable:
        """All that distinguishes these tensors besides values and that size."""
        growing = {(id(tensor), dim) for tensor, dim in self.sizes()}
        tensors = tuple(
            (t.dtype, *(0 if (id(t), dim) in growing else size for dim, size in enumerate(t.shape)))
            for t in (*self.changing, *self.stored)
        )
        return tensors, str(self.form.changing), str(self.form.stored)


@dataclass(frozen=True)
class FixedForm:
    """Everything of a fixed state but its tensors: what is constant in a compiled step."""

    cache: KVCache
    """An empty one for the same model."""
    changing: CacheState
    """Only which tensors it has counts."""
    stored: CacheState
    """Likewise."""
    growing: tuple[tuple[int, int], ...]
    """Which axes of which tensors have a size for each slot and one more."""

    def unite_sizes(self, changing: Sequence[Tensor], stored: Sequence[Tensor], size: int) -> None:
        """Tell a compiler that these axes are `size` + 1. Each would be a symbol of its own, which takes 10 microseconds a call."""
        tensors = (*changing, *stored)
        for i, dim in self.growing:
            torch._check(tensors[i].shape[dim] == size + 1)

    def state(self, changing: Sequence[Tensor], stored: Sequence[Tensor], span: int) -> CacheState:
        """The state of these tensors. span: an upper bound of every index, exclusive."""
        state, kept = filled(self.changing, changing), filled(self.stored, stored)
        tables = tuple(replace(t, capacity=0 if t.index is None else t.index.shape[1] - 1) for t in state.tables)
        return replace(
            state, span=span, tables=tables, layers=kept.layers, cross=kept.cross, cross_context=kept.cross_context
        )


def leaves(state: CacheState) -> list[Tensor]:
    """Every tensor of a state that has rows, in the order of `CacheState.map`."""
    found: list[Tensor] = []

    def take(t: Tensor) -> Tensor:
        found.append(t)
        return t

    state.map(take)
    return found


def changing_leaves(state: CacheState) -> list[Tensor]:
    """What a step replaces: lengths, positions, and which token is in each slot."""
    return leaves(_parts(state)[0])


def _parts(state: CacheState) -> tuple[CacheState, CacheState]:
    """What a step replaces, and keys, values, key states and contexts."""
    tables = tuple(replace(table, capacity=0) for table in state.tables)  # their tensors tell
    changing = replace(
        state, span=0, ahead=0, tables=tables, layers=(), cross=(), cross_context=None, ending=None, weights=UNKNOWN
    )
    stored = CacheState(
        batch_size=state.batch_size,
        tables=(),
        layers=state.layers,
        cross=state.cross,
        cross_context=state.cross_context,
    )
    return changing, stored


def leaf_names(state: CacheState) -> list[str]:
    """A name for each of `leaves`, in their order: keys_0 are the keys of the first layer."""
    parts: list[tuple[str, Any]] = [(name, getattr(state, name)) for name in ("lengths", "following", "final_lengths")]
    parts += zip(("last_document", "last_document_start"), state.last_document or (), strict=False)
    parts += [] if state.ending is None else [("ending", state.ending[1])]
    for i, table in enumerate(state.tables):  # a table for each distinct window
        parts += [(f"index_{i}", table.index), (f"positions_{i}", table.positions), (f"documents_{i}", table.documents)]
    for i, layer in enumerate(state.layers):
        names = ("keys", "values", "key_states", "key_scales", "value_scales")
        parts += [(f"{name}_{i}", t) for name, t in zip(names, layer, strict=True)]
    for i, pair in enumerate(state.cross):
        parts += zip((f"context_keys_{i}", f"context_values_{i}"), pair or (), strict=False)
    if (seen := state.cross_context) is not None:
        at, given = seen.tokens, seen.positions
        parts += [("context_index", at.index), ("context_at", at.positions if at.custom_positions else None)]
        parts += [("context_positions", given if given is not None and given.ndim > 1 else None)]
        parts += [("context", seen.context), ("context_mask", seen.mask)]
    return [name for name, t in parts if t is not None]


def filled(form: CacheState, tensors: Iterable[Any]) -> CacheState:
    """The state of this form with these `leaves`."""
    given = iter(tensors)
    return form.map(lambda _: next(given))


def _nothing(t: Tensor) -> Tensor:
    return t.new_empty(0)
