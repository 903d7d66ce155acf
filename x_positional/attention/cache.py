"""The key/value cache of a model: the tensors of every layer, and the slots that they are in.

B batch, T new tokens, S key slots, G key/value heads, H heads, D head dim, C channels, M model dim.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from x_positional.attention.cache_rows import kept_lengths, row_numbers, take_rows, whole_number
from x_positional.attention.cache_slots import KeyView, Slots, SlotTable, in_dtype
from x_positional.attention.integers import dequantize_rows, quantize_rows
from x_positional.attention.ownership import UNKNOWN, Identity, Stamp
from x_positional.attention.tokens import TokenLayout, following_positions
from x_positional.errors import ArgumentError, CacheError
from x_positional.schemes.base import NO_TOKEN, AttentionWindow
from x_positional.schemes.precision import widened

__all__ = ["CachePass", "CacheState", "CrossContext", "KVCache", "KeyView"]

Stored: TypeAlias = tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
"""A layer's keys, values, key states, and the scales of keys and values, by slot; None before the first token, where a scheme has
no key state, and where keys and values are no integers."""
EMPTY: Stored = (None, None, None, None, None)

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int8)
"""What keys and values can be stored in."""


@dataclass(frozen=True)
class CrossContext:
    """The context of cross-attention, resolved."""

    tokens: TokenLayout
    rotated: bool
    """Whether positions apply to its keys."""
    context: Tensor
    mask: Tensor | None
    positions: Tensor | None

    def map(self, fn: Callable[[Tensor], Tensor]) -> "CrossContext":
        """The same with fn applied to every tensor that has rows."""
        held = self.tokens
        index = fn(held.index)
        places = fn(held.positions) if held.custom_positions else index
        positions = self.positions
        if positions is not None and positions.ndim > 1:
            positions = fn(positions)
        return replace(
            self,
            tokens=replace(held, index=index, positions=places),
            context=fn(self.context),
            mask=None if self.mask is None else fn(self.mask),
            positions=positions,
        )


@dataclass(frozen=True, kw_only=True)
class CacheState:
    """Everything in a cache that calls change, as one record. A call that succeeds replaces the record.

    Tensors are shared with the record before it: a single token is written in place, but only to slots that the record before
    does not use. So that one stays valid, and a call that fails after all can be undone.
    """

    batch_size: int
    span: int = 0
    """Every index so far is below it; the length of each row while rows are alike."""
    lengths: Tensor | None = None
    """[B] tokens per row, once rows differ."""
    last_document: tuple[Tensor, Tensor] | None = None
    """Its id [B], and the index of its first token [B]."""
    following: Tensor | None = None
    """[B|1] or [B|1 A] the next position, once positions were given."""
    final_lengths: Tensor | None = None
    """[B|1] how long the rows will be, for schemes whose tables depend on it; None where that is unknown."""
    ending: tuple[int, Tensor] | None = None
    """The span, and the hidden state [B M] that predicts the token after it."""
    ahead: int = 0
    """Every token that an earlier one saw has an index below it: a row keeps all of them, or none."""
    tables: tuple[SlotTable, ...]
    """Which token is in each slot, for each distinct window."""
    layers: tuple[Stored, ...]
    cross: tuple[tuple[Tensor, Tensor] | None, ...]
    """Keys and values of the context, for each layer."""
    cross_context: CrossContext | None = None
    weights: Stamp = UNKNOWN
    """Of the parameters that the keys were computed with."""
    weights_move: bool = False
    """A call itself changes parameters, as peft's wrappers of single tensors do, which swap them in and out."""
    in_graph: bool = False
    """An autograd graph may hold these tensors, so nothing is written in place."""
    inference: bool = False
    """Some of the tensors may be inference tensors."""

    @property
    def filled(self) -> bool:
        """Whether there are keys in it."""
        return self.span > 0 or self.cross_context is not None

    def map(self, fn: Callable[[Tensor], Tensor]) -> "CacheState":
        """The same with fn applied to every tensor that has rows."""

        def each(tensors: tuple[Tensor | None, ...]) -> tuple[Any, ...]:
            return tuple(None if t is None else fn(t) for t in tensors)

        lengths, following, final_lengths = each((self.lengths, self.following, self.final_lengths))
        return replace(
            self,
            lengths=lengths,
            following=following,
            final_lengths=final_lengths,
            last_document=None if self.last_document is None else each(self.last_document),
            ending=None if self.ending is None else (self.ending[0], fn(self.ending[1])),
            tables=tuple(table.map(fn) for table in self.tables),
            layers=tuple(each(layer) for layer in self.layers),
            cross=tuple(None if kv is None else each(kv) for kv in self.cross),
            cross_context=None if self.cross_context is None else self.cross_context.map(fn),
        )

    def cropped(self, slots: Sequence[Slots], kept: int | Tensor) -> "CacheState":
        """The same with the first tokens of every row alone. The slots of the others count as unused.

        Args:
            slots: of the tables. No ring may have overwritten a token of a row that loses some.
            kept: tokens of each row, at most those that it has: one number where rows are alike, or [B] in which rows differ.
        """
        alike = isinstance(kept, int)
        span = kept if alike else int(kept.max())
        tables = tuple(
            SlotTable(capacity=table.capacity) if span == 0 else _without_tokens(held, table, self, kept)
            for held, table in zip(slots, self.tables, strict=True)
        )
        positions = tables[0].positions
        return replace(
            self,
            span=span,
            lengths=None if alike or span == 0 else kept,
            following=None if self.following is None or positions is None else following_positions(positions),
            ending=None,
            tables=tables,
        )


@dataclass(frozen=True, kw_only=True)
class Memo:
    """What schemes reuse between passes over one cache."""

    schemes: Any = None
    """Identifies the schemes; others start a new memo."""
    biases: dict[AttentionWindow, dict[int, Any]] = field(default_factory=dict)
    """What the bias of each scheme keeps, for each window."""
    tables: dict[int, Any] = field(default_factory=dict)
    """Tables computed in advance, for each scheme."""


class KVCache:
    """Keys, values and key states of every layer, and where they are. Make one with `model.new_cache(...)`.

    A call that raises leaves the cache as it was, so the same chunk can be tried again.

    Args:
        windows: what each layer attends to, and so has to keep.
        batch_size: rows.
        max_len: slots a row; None grows, by doubling.
        device: of its tensors.
        dtype: of keys and values; None is the dtype they are computed in. torch.int8 stores a scale per token and head too.
        owner: identifies the model it was made for, so that it cannot serve another one.
        final_lengths: [B|1] how long its rows will be, for schemes whose tables depend on it; None where that is unknown.

    Raises:
        ArgumentError: a size that is not a positive integer, or a dtype that cannot hold keys.
    """

    def __init__(
        self,
        windows: Sequence[AttentionWindow],
        batch_size: int,
        max_len: int | None,
        device: torch.device,
        dtype: torch.dtype | None = None,
        owner: Identity | None = None,
        final_lengths: Tensor | None = None,
    ):
        batch_size = whole_number("batch_size", batch_size)
        self.max_len = None if max_len is None else whole_number("max_len", max_len)
        if dtype is not None and dtype not in DTYPES:
            raise ArgumentError(
                f"dtype={dtype!r} cannot store keys and values. Use one of "
                f"{', '.join(map(str, DTYPES))}, or None for the dtype they are computed in."
            )
        self.device, self.dtype = device, dtype
        self.owner = Identity() if owner is None else owner
        self.windows = tuple(windows)
        self.distinct = tuple(dict.fromkeys(windows))
        self.slots = tuple(Slots(device, self.max_len, window) for window in self.distinct)
        self.state = CacheState(
            batch_size=batch_size,
            final_lengths=final_lengths,
            tables=tuple(SlotTable(capacity=slots.first_capacity) for slots in self.slots),
            layers=(EMPTY,) * len(self.windows),
            cross=(None,) * len(self.windows),
            inference=torch.is_inference_mode_enabled(),
        )
        self._weights = UNKNOWN  # of the model that is being called
        self._pass_open = False  # a call has begun and not succeeded, so unused slots may hold anything
        self._memo = Memo()

    @property
    def batch_size(self) -> int:
        """Rows."""
        return self.state.batch_size

    @property
    def span(self) -> int:
        """Every index so far is below it; the length of each row while rows are alike."""
        return self.state.span

    @property
    def final_lengths(self) -> Tensor | None:
        """[B|1] how long the rows will be, for schemes whose tables depend on it; None where that is unknown."""
        return self.state.final_lengths

    def starts(self) -> Tensor | int:
        """The next token's index: one number, or [B] where rows differ."""
        return self.state.span if self.state.lengths is None else self.state.lengths

    def longest(self) -> int:
        """Tokens of the longest row. Forces a device sync where rows differ."""
        return self.state.span if self.state.lengths is None else int(self.state.lengths.max())

    def must_grow(self, span: int) -> bool:
        """Whether tokens below index `span` need more slots than there are now."""
        return any(slots.must_grow(table, span) for slots, table in zip(self.slots, self.state.tables, strict=True))

    def check(self, owner: Identity, batch_size: int, device: torch.device, weights: Stamp) -> None:
        """Raises CacheError where this cache was made for another model, batch size or device, or where the model's
        parameters changed after it was filled."""
        if not self.owner.belongs_to(owner):
            raise CacheError(
                "this cache was made for another model, and its keys are meaningless to this one. A copy of a model is another "
                "one, unless both were copied or pickled together. Make one with this model's new_cache(batch_size)."
            )
        if batch_size != self.batch_size:
            raise CacheError(
                f"this cache has batch_size={self.batch_size}, but the input has {batch_size} rows. "
                f"Make one with new_cache({batch_size}), or select rows with cache.reorder(rows)."
            )
        if device != self.device:
            raise CacheError(
                f"this cache is on {self.device}, but the input is on {device}. Move the input there; after moving the model, "
                f"make a new one with new_cache({batch_size})."
            )
        if self.state.filled and not self.state.weights.agrees(weights):
            raise CacheError(
                "parameters of the model changed after this cache was filled, so its keys are stale. Make one with "
                f"new_cache({batch_size}) and pass the whole sequence again."
            )
        self._weights = self.state.weights.updated(weights) if self.state.filled else weights

    def note_weights(self, weights: Stamp) -> None:
        """The parameters as a call left them: where the first one changes them, each does."""
        state = self.state
        if state.weights_move or not state.weights.agrees(weights):
            self.state = replace(state, weights=state.weights.updated(weights), weights_move=True)

    def begin(self, tokens: TokenLayout, schemes: Any, tracked: bool) -> "CachePass":
        """Reserves slots for the new tokens, once a forward pass. The cache stays as it is until the pass is committed.

        Args:
            tokens: the new tokens.
            schemes: identifies the schemes that fill the memo; another object starts a new one.
            tracked: autograd records this pass.

        Raises:
            CacheError: the cache is full, or autograd would record integers.
        """
        if tracked and self.dtype == torch.int8:
            raise CacheError(
                "a cache with dtype=torch.int8 stores rounded keys and values, through which no gradient flows. Call the model "
                "under torch.no_grad(), or make a cache of floats."
            )
        state = self.settled()
        assigned = [
            slots.assign(table, tokens, state.span, state.batch_size)
            for slots, table in zip(self.slots, state.tables, strict=True)
        ]
        if self._memo.schemes is not schemes or not state.filled:
            self._memo = Memo(schemes=schemes, biases={window: {} for window in self.distinct})
        self._pass_open = True
        return CachePass(
            self,
            state,
            tokens,
            tables=tuple(table for table, _ in assigned),
            views={window: view for window, (_, view) in zip(self.distinct, assigned, strict=True)},
            memo=self._memo,
            tracked=tracked,
        )

    def in_state(self, state: CacheState) -> "KVCache":
        """A cache like this one in another state, which shares the state's tensors."""
        new = object.__new__(type(self))
        new.max_len, new.device, new.dtype, new.owner = self.max_len, self.device, self.dtype, self.owner
        new.windows, new.distinct, new.slots = self.windows, self.distinct, self.slots
        new.state, new._weights, new._pass_open = state, state.weights, False
        new._memo = Memo()
        return new

    def without_limit(self) -> "KVCache":
        """An empty cache for the same model without max_len."""
        state = self.state
        return KVCache(self.windows, state.batch_size, None, self.device, self.dtype, self.owner)

    def expect_writes(self) -> None:
        """Until the next commit, slots that the state does not use may hold anything."""
        self._pass_open = True

    def settled(self) -> CacheState:
        """The state with tensors that this call may write to, and without what a failed call left in unused slots."""
        state = self.state
        if state.inference and not torch.compiler.is_compiling() and not torch.is_inference_mode_enabled():
            state = replace(state.map(torch.clone), inference=False)
        return self._without_leftovers(state) if self._pass_open else state

    def commit(self, state: CacheState) -> None:
        """Adopts the state after a pass. One assignment, so that it happens wholly or not at all."""
        self.state = state
        self._pass_open = False

    def restore(self, state: CacheState) -> None:
        """Back to an earlier state: the one before the last pass, or a `snapshot`."""
        self._pass_open = self._pass_open or state is not self.state
        self.state = state

    def snapshot(self, total: int) -> CacheState:
        """A state to restore after any number of passes, up to `total` tokens a row. Copies full rings, nothing else."""
        overwritten = [window.drops(total) for window in self.windows]
        if not any(overwritten):
            return self.state
        layers = [
            tuple(None if t is None else t.clone() for t in layer) if overwrites else layer
            for overwrites, layer in zip(overwritten, self.state.layers, strict=True)
        ]
        return replace(self.state, layers=tuple(layers))

    def remember_ending(self, x: Tensor) -> None:
        """x: the hidden state [B M] that predicts the next token."""
        self.state = replace(self.state, ending=(self.state.span, x))

    def crop(self, length: int | Tensor | Sequence[int]) -> "KVCache":
        """Keep the first tokens of every row and forget the others, such as proposals that were rejected.

        Changes this cache and returns it, like `crop` of transformers' caches. It continues as if the other tokens had never been
        read. Padding does not count.

        Args:
            length: tokens to keep. A number applies to all rows, and shorter rows stay as they are; below 0 it is the number of
                tokens to drop, from every row. [B] integers give each row its own length. Where rows differ, it forces a device
                sync.

        Raises:
            ArgumentError: length is no integer, or not one for each row.
            CacheError: there are fewer tokens, packed documents, a window that overwrote tokens which would be visible again, or
                part of a prefix whose tokens see each other. The cache is left as it was.
        """
        state, held = self.state, self.starts()
        kept = kept_lengths(length, state.batch_size, held)
        if isinstance(kept, int) and kept == state.span:
            return self
        if state.last_document is not None:
            raise CacheError(
                f"crop({length}): this cache holds packed documents, and which one its last token is in is not kept for "
                "earlier tokens. copy() the cache before it reads tokens that may be dropped."
            )
        self._check_not_overwritten(length, kept, held)
        self._check_keys_stay(length, kept, held)
        self.state = replace(state.cropped(self.slots, kept), inference=self._in_inference())
        return self

    def _check_keys_stay(self, length: Any, kept: int | Tensor, held: int | Tensor) -> None:
        """Raises CacheError where the keys of tokens that stay were computed from tokens after them, some of which go."""
        ahead = self.state.ahead
        if not ahead:
            return
        rows = [(kept, held)] if isinstance(kept, int) and isinstance(held, int) else self._by_row(kept, held)
        stale = [left for left, before in rows if 0 < left < min(ahead, before)]
        if stale:
            raise CacheError(
                f"crop({length}) would leave {stale[0]} tokens, but prefix_len or attention_mask let tokens see later ones up to "
                f"token {ahead}, so the keys of those that stay would be stale. copy() the cache before it reads tokens that may "
                "be dropped."
            )

    def _by_row(self, *numbers: int | Tensor) -> list[tuple[int, ...]]:
        """One tuple for each row, of numbers that are the same in every row or [B]."""
        rows = [[n] * self.batch_size if isinstance(n, int) else n.tolist() for n in numbers]
        return list(zip(*rows, strict=True))

    def _check_not_overwritten(self, length: Any, kept: int | Tensor, held: int | Tensor) -> None:
        """Raises CacheError if a ring has overwritten tokens of a row that loses some but not all."""
        rings = [slots.most for slots in self.slots if slots.most is not None]
        if not rings:
            return
        if isinstance(kept, int):
            longest = held if kept else 0  # an empty row needs no earlier token
        else:
            longest = int(torch.where((kept > 0) & (kept < held), held, 0).max())
        if not longest:
            return
        if longest + self._pass_open > min(rings):  # a step that failed may have overwritten one more
            raise CacheError(
                f"crop({length}): the {longest} tokens of a row exceed a window, whose cache keeps {min(rings)}, so tokens that "
                "would be visible again are overwritten. copy() the cache before it reads tokens that may be dropped."
            )

    def reorder(self, rows: Tensor | Sequence[int]) -> "KVCache":
        """Keep these rows, in that order: for beam search, or a batch that shrinks.

        Changes this cache and returns it, like `batch_select_indices` and `reorder_cache` of transformers' caches.

        Args:
            rows: [B'] integers from 0 to batch_size - 1; a row may be repeated. On a device, checking them forces a sync.

        Raises:
            CacheError: they are no row numbers. The cache is left as it was.
        """
        return self._take(row_numbers(rows, self.batch_size).to(self.device))

    def repeat(self, n: int) -> "KVCache":
        """Repeat each row n times, next to each other: several continuations of each prefix. Rows 0, 1 become 0, 0, 1, 1 for n=2.

        Changes this cache and returns it, like `batch_repeat_interleave` of transformers' caches; rows are in the order of
        `torch.repeat_interleave`. Every tensor is copied for each row: `prefix.copy().repeat(n)` leaves `prefix` as it was.

        Raises:
            ArgumentError: n is not a positive integer.
        """
        rows = torch.arange(self.batch_size, device=self.device).repeat_interleave(whole_number("n", n))
        return self if n == 1 else self._take(rows)

    def copy(self) -> "KVCache":
        """A cache that continues from this one independently, as `copy.copy` and `copy.deepcopy` make it.

        Every tensor is copied, so neither sees what the other one reads. Gradients flow through both.
        """
        return copy.deepcopy(self)

    def _take(self, rows: Tensor) -> "KVCache":
        batch = self.batch_size
        state = self.state.map(lambda t: take_rows(t, rows, batch))
        self.state = replace(state, batch_size=len(rows), inference=self._in_inference())
        return self

    def follow_rows(self, rows: Tensor, start: int) -> None:
        """Row i continues as row rows[i] did, where both are equal before index `start`, as beams of one prompt are.

        Keys are copied in place, and only those of later tokens. Nothing is checked: no host sync.

        Args:
            rows: [B] int64, on the device of the cache. Rows that exchange tokens have equal lengths and positions.
            start: of the first token in which they differ.
        """
        state = self.settled()
        ranges = {
            window: slots.written(start, state.span) for window, slots in zip(self.distinct, self.slots, strict=True)
        }
        for window, layer in zip(self.windows, state.layers, strict=True):
            for stored in layer:
                if stored is not None:
                    part = stored[:, :, ranges[window]]
                    part.copy_(part.index_select(0, rows))
        self.state = state

    def _in_inference(self) -> bool:
        """Whether tensors of the state, or those made from them now, may be inference tensors."""
        return self.state.inference or (not torch.compiler.is_compiling() and torch.is_inference_mode_enabled())

    def detach(self) -> "KVCache":
        """Cut the autograd graph: no gradient flows into the chunks so far. Changes this cache and returns it."""
        self.state = self.state.map(torch.detach)
        return self

    def nbytes(self) -> int:
        """Bytes held by keys, values and key states."""
        return sum(t.numel() * t.element_size() for layer in self.state.layers for t in layer if t is not None)

    def _without_leftovers(self, state: CacheState) -> CacheState:
        """Zeroes unused slots after a call that failed: a hidden key has no weight, but 0 * NaN is NaN."""
        count = state.span if state.lengths is None else state.lengths[:, None]
        used = {
            window: slots.used(table, state.span, count)
            for window, slots, table in zip(self.distinct, self.slots, state.tables, strict=True)
        }
        layers = [
            tuple(None if t is None else _only(t, used[window]) for t in layer)
            for window, layer in zip(self.windows, state.layers, strict=True)
        ]
        return replace(state, layers=tuple(layers))

    def __copy__(self) -> "KVCache":
        return self.copy()

    def __deepcopy__(self, memo: dict[int, Any]) -> "KVCache":
        new = object.__new__(type(self))
        memo[id(self)] = new
        state = replace(self.state.map(torch.clone), inference=self._in_inference())
        new.__dict__.update(self.__getstate__(), state=state)
        new.owner = copy.deepcopy(self.owner, memo)
        return new

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_memo": Memo()}


class CachePass:
    """One forward pass over a cache: what it adds, which becomes part of the cache at `commit`.

    Args:
        cache: the cache.
        before: its state before the pass.
        tokens: the new tokens.
        tables: which token is in each slot after the pass, for each distinct window.
        views: the keys visible to the new tokens, for each window.
        memo: what schemes reuse between passes.
        tracked: autograd records this pass; it does too where it recorded the passes before.
    """

    def __init__(
        self,
        cache: KVCache,
        before: CacheState,
        tokens: TokenLayout,
        *,
        tables: tuple[SlotTable, ...],
        views: dict[AttentionWindow, KeyView],
        memo: Memo,
        tracked: bool,
    ):
        self.cache, self.before, self.tokens, self.tables = cache, before, tokens, tables
        self.views, self.memo = views, memo
        self.tracked = tracked or (before.in_graph and torch.is_grad_enabled())
        self.final_lengths = before.final_lengths
        self.in_place = not (self.tracked or before.in_graph)
        self.layers = list(before.layers)
        self.cross = list(before.cross)
        self.cross_context = before.cross_context

    def write(
        self, layer: int, view: KeyView, k: Tensor, v: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """New keys [B G T D], values [B G T D] and key state [B H T C] of a layer -> the same for every visible slot."""
        k_held, v_held, state_held, k_scale, v_scale = self.before.layers[layer]
        k_held, k_scale, k = self._exchange(view, k_held, k_scale, k)
        v_held, v_scale, v = self._exchange(view, v_held, v_scale, v)
        if state is not None:
            state_held, state = view.exchange(state_held, state, self.in_place)
        self.layers[layer] = (k_held, v_held, state_held, k_scale, v_scale)
        return k, v, state

    def _exchange(
        self, view: KeyView, held: Tensor | None, scale: Tensor | None, new: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """What is stored, with its scales, and what is visible, in the dtype of the new."""
        dtype = self.cache.dtype
        if dtype != torch.int8:
            held, seen = view.exchange(held, new if dtype is None else new.to(dtype), self.in_place)
            return held, None, in_dtype(seen, new.dtype)
        integers, steps = quantize_rows(widened(new))
        held, seen = view.exchange(held, integers, self.in_place)
        scale, steps = view.exchange(scale, steps[..., None], self.in_place)
        return held, scale, dequantize_rows(seen, steps[..., 0]).to(new.dtype)

    def commit(self) -> None:
        """Make the new tokens part of the cache: the last step of a forward pass."""
        before, tokens = self.before, self.tokens
        lengths = before.lengths
        if tokens.start is None:
            counts = (tokens.index != NO_TOKEN).sum(-1).expand(before.batch_size)
            lengths = (before.span if lengths is None else lengths) + counts
        after = CacheState(
            batch_size=before.batch_size,
            span=tokens.span,
            lengths=lengths,
            last_document=before.last_document if tokens.last_document is None else tokens.last_document,
            following=tokens.following,
            final_lengths=before.final_lengths,
            ending=before.ending,
            ahead=max(before.ahead, tokens.ahead),
            tables=self.tables,
            layers=tuple(self.layers),
            cross=tuple(self.cross),
            cross_context=self.cross_context,
            weights=self.cache._weights,
            weights_move=before.weights_move,
            in_graph=self.tracked,
            inference=before.inference or (not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()),
        )
        self.cache.commit(after)


def _without_tokens(slots: Slots, table: SlotTable, state: CacheState, kept: int | Tensor) -> SlotTable:
    """The table of a state with no token in the slots of those after the first `kept`, [B] or one number."""
    if isinstance(kept, int):
        if table.index is None:
            return table  # slots are filled in order, up to the span
    else:
        table, kept = slots.by_row(table, state.span, state.batch_size, table.capacity), kept[:, None]
    if table.index is None:
        raise CacheError("the cache was cropped before its tokens were remembered")
    dropped = table.index >= kept
    return table.map(lambda t: t.masked_fill(dropped if t.ndim == 2 else dropped[..., None], NO_TOKEN))


def _only(stored: Tensor, used: Tensor) -> Tensor:
    """[B G S D] with zeros in the slots that are not used [B|1 S']; later ones are unused too."""
    stop = min(stored.shape[2], used.shape[1])
    kept = torch.zeros_like(stored)
    kept[:, :, :stop] = torch.where(used[:, None, :stop, None], stored[:, :, :stop], 0)
    return kept
