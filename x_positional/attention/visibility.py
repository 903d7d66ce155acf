"""Who sees whom where the caller decides: `attention_mask` and `prefix_len`, checked.

B batch, T new tokens, P earlier tokens of a row, S = P + T.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from x_positional.attention.cache import KVCache
from x_positional.attention.inputs import INTEGERS, as_tensor, check_shows_a_token, read_bounds, read_value
from x_positional.attention.masks import index_of
from x_positional.attention.tokens import TokenLayout
from x_positional.errors import InputError, PositionError
from x_positional.schemes.base import NO_TOKEN, Capabilities, PositionScheme

PrefixLen: TypeAlias = int | Sequence[int] | Tensor
"""How many first tokens of each row see each other: one number for all rows, or one a row."""

BIDIRECTIONAL = "rope, polar, alibi, dynamic, deberta, absolute or sinusoidal"
"""Schemes that a message names as a way out."""


def read_attention_mask(
    given: Any, mask: Tensor | None, batch: int, length: int, cache: KVCache | None, *, checked: bool
) -> tuple[Tensor | None, Tensor | None]:
    """`attention_mask` -> the padding mask [B T], and who sees whom [B T S]; None for the one that is not given.

    Args:
        given: [B S] bool or 0/1 integers, False or 0 at padding; or [B T S] or [B 1 T S] bool, True = may attend.
        mask: `mask=` as it was given.
        batch: B.
        length: T.
        cache: read, not changed.
        checked: skip the checks that force a device sync.

    Raises:
        InputError.
    """
    given = as_tensor(given, "attention_mask")
    if given.dtype != torch.bool and given.dtype not in INTEGERS:
        instead = (
            "attention_mask.bool() where 1 is a token and 0 padding, attention_mask == 0 where 0 is visible and -inf hidden"
            if given.ndim == 2
            else "attention_mask == 0 where 0 is visible and -inf hidden"
        )
        raise InputError(
            f"attention_mask is {given.dtype}: additive masks are unsupported. Pass a bool mask, True = may attend: {instead}."
        )
    if given.ndim != 2:
        return mask, _pairs(given, batch, length, cache, checked=checked)
    if mask is not None:
        raise InputError("mask= and a two-dimensional attention_mask both mark padding. Pass one of them.")
    return _padding(given, batch, length, cache, checked=checked), None


def _padding(given: Tensor, batch: int, length: int, cache: KVCache | None, *, checked: bool) -> Tensor:
    """[B S] bool or integers, S = T or earlier slots + T -> [B T] bool."""
    started, past = cache is not None and cache.span > 0, given.shape[1] - length
    if given.shape[0] != batch or past < 0 or (past and not started):
        more = f", or the earlier tokens too: [{batch}, earlier + {length}]" if started else ""
        raise InputError(
            f"a two-dimensional attention_mask marks padding, so it must have shape [batch, tokens] = [{batch}, {length}]{more}; "
            f"got {list(given.shape)}. A mask of who sees whom is [batch, tokens, tokens]."
        )
    bounds = None if checked or given.dtype == torch.bool else read_bounds(given)
    if bounds is not None and not 0 <= bounds[0] <= bounds[1] <= 1:
        raise InputError(
            f"attention_mask contains {bounds[0] if bounds[0] < 0 else bounds[1]}, but integers must be 0 for padding and 1 for "
            "a token."
        )
    given = given.bool()
    if past and cache is not None and not checked:
        _check_past(given[:, :past], cache)
    given = given[:, past:]
    if not checked and cache is None:
        check_shows_a_token(given, "attention_mask hides")
    return given


def _check_past(past: Tensor, cache: KVCache) -> None:
    """Raises InputError where a mask of earlier slots [B P] shows another number of tokens than the cache holds."""
    counts, held = past.sum(-1), cache.starts()
    held = held.to(counts.device) if isinstance(held, Tensor) else torch.full_like(counts, held)
    differs = counts != held
    if read_value(differs.any()):
        row = int(differs.nonzero()[0, 0])
        raise InputError(
            f"row {row} of attention_mask shows {int(counts[row])} earlier tokens, but this cache holds {int(held[row])}. Pass "
            "the mask that the cached tokens were read with, followed by that of the new ones; or that of the new ones alone."
        )


def _pairs(given: Tensor, batch: int, length: int, cache: KVCache | None, *, checked: bool) -> Tensor:
    """[B T S] or [B 1 T S] bool -> [B T S]."""
    if given.ndim == 4 and given.shape[1] > 1:
        raise InputError(
            f"attention_mask has shape {list(given.shape)}, a mask for each head, but all heads share one mask. Pass "
            "[batch, tokens, tokens]."
        )
    if given.dtype != torch.bool:
        raise InputError(
            f"attention_mask is {given.dtype} of shape {list(given.shape)}: only padding [batch, tokens] may be 0/1 integers. "
            "Pass attention_mask.bool() if 1 = may attend."
        )
    pairs = given[:, 0] if given.ndim == 4 else given
    past = _earlier(pairs, length, cache, checked=checked)
    if pairs.shape != (batch, length, past + length):
        held = f", {past} of them cached" if past else ""
        raise InputError(
            f"attention_mask must have shape [batch, tokens] = [{batch}, {length}] for padding, or [batch, queries, keys] = "
            f"[{batch}, {length}, {past + length}]{held} for who sees whom; got {list(given.shape)}."
        )
    return pairs


def _earlier(pairs: Tensor, length: int, cache: KVCache | None, *, checked: bool) -> int:
    """P, the columns of a mask before the new tokens. Raises InputError where rows hold different numbers of tokens."""
    held = 0 if cache is None else cache.starts()
    if isinstance(held, int):
        return held
    bounds = None if checked else read_bounds(held)
    if bounds is None:
        return max(0, pairs.shape[-1] - length)
    if bounds[0] != bounds[1]:
        raise InputError(
            f"the rows of this cache hold {bounds[0]} to {bounds[1]} tokens, so the columns of an attention_mask would mean "
            "another token in each row. Pass one row a call, or rows of equal length; padding and prefix_len may differ."
        )
    return bounds[0]


def with_visibility(
    layout: TokenLayout,
    batch: int,
    pairs: Tensor | None,
    prefix_len: PrefixLen | None,
    schemes: Sequence[PositionScheme],
    cache: KVCache | None,
    *,
    causal: bool,
    checked: bool,
) -> TokenLayout:
    """A layout with who sees whom, from `attention_mask` [B T S] or `prefix_len`.

    Args:
        layout: of the new tokens.
        batch: B.
        pairs: [B T S] bool, its columns the tokens of the cache by index, then the T slots of this call.
        prefix_len: how many first tokens of each row see each other.
        schemes: of the stack.
        cache: read, not changed.
        causal: whether attention is causal without either of them.
        checked: skip the checks that force a device sync.

    Raises:
        InputError, PositionError.
    """
    if pairs is not None and prefix_len is not None:
        raise InputError("attention_mask and prefix_len both replace the causal mask. Pass one of them.")
    if pairs is not None:
        pairs = _by_index(pairs.to(layout.index.device), layout)
        ahead = _looks_ahead(pairs, layout, schemes, cache, checked=checked) if causal and layout.length > 1 else 0
        return replace(layout, pairs=pairs, ahead=ahead)
    if prefix_len is None:
        return layout
    if not causal:
        raise InputError("prefix_len is for decoders: the tokens of an encoder all see each other. Leave it out.")
    if layout.documents is not None:
        raise InputError(
            "prefix_len counts the first tokens of a row, so it cannot be combined with packed documents. Unpack them, or pass "
            "attention_mask=[batch, tokens, tokens]."
        )
    if Capabilities.combined([scheme.capabilities() for scheme in schemes]).causal_only:
        raise PositionError(f"prefix_len cannot be used here: {_only_causal(schemes)}")
    index = None if layout.start is not None else layout.index
    lengths = check_prefix_len(prefix_len, batch, layout.length, index, checked=checked)
    longest = _longest(lengths, layout.span)
    if longest < 2:  # a single token sees itself in any case
        return layout
    check_starts(lengths, cache, checked=checked)
    device = layout.index.device
    prefix = torch.full((1,), lengths, device=device) if isinstance(lengths, int) else lengths.to(device)
    return replace(layout, prefix=prefix, ahead=longest)


def check_prefix_len(
    prefix_len: Any, batch: int, length: int, index: Tensor | None, *, checked: bool = False
) -> int | Tensor:
    """One number for all rows, or [B] int64. Raises InputError.

    Args:
        prefix_len: an integer, or one a row.
        batch: B.
        length: T, the tokens that the prefix is read with.
        index: [B|1 T] of these tokens, -1 at padding; None where nothing is padded.
        checked: skip the checks that force a device sync.
    """
    if isinstance(prefix_len, int) and not isinstance(prefix_len, bool):
        lengths: int | Tensor = prefix_len
        bounds = (prefix_len, prefix_len)
    else:
        lengths = as_tensor(prefix_len, "prefix_len")
        if lengths.dtype not in INTEGERS or lengths.shape not in ((), (batch,)):
            raise InputError(
                f"prefix_len must be an integer, or {batch} of them, one a row; got shape {list(lengths.shape)} of {lengths.dtype}."
            )
        lengths = lengths.long().expand(batch)
        bounds = None if checked else read_bounds(lengths)
    if bounds is not None and bounds[0] < 0:
        raise InputError(f"prefix_len contains {bounds[0]}, but counts tokens, so it cannot be negative.")
    if bounds is not None and bounds[1] > length:
        raise InputError(_too_long(bounds[1], f"the {length} tokens of this call"))
    if bounds is not None and bounds[1] and not checked and index is not None:
        _check_rows(lengths, index)
    return lengths


def prefix_of_loss(
    prefix_len: PrefixLen, batch: int, length: int, present: Tensor | None
) -> tuple[int | Tensor, Tensor]:
    """The prefix of rows without their last place, which a model reads, and which places belong to a prefix [B|1 T], padding
    aside. present: [B T] bool, False at padding; None where there is none. Raises InputError."""
    index = None if present is None else index_of(present)
    lengths = check_prefix_len(prefix_len, batch, length, index)
    index = torch.arange(length)[None] if index is None else index
    if isinstance(lengths, int):
        return min(lengths, length - 1), index < lengths
    return lengths.clamp(max=length - 1), index < lengths.to(index.device)[:, None]


def _check_rows(lengths: int | Tensor, index: Tensor) -> None:
    """Raises InputError where a row [B T] has fewer tokens than its prefix."""
    counts = (index != NO_TOKEN).sum(-1)
    short = counts < (lengths.to(counts.device) if isinstance(lengths, Tensor) else lengths)
    if read_value(short.any()):
        row = int(short.nonzero()[0, 0])
        length = lengths if isinstance(lengths, int) else int(lengths[row])
        raise InputError(_too_long(length, f"the {int(counts[row])} tokens of row {row}"))


def _too_long(length: int, tokens: str) -> str:
    return (
        f"prefix_len={length} exceeds {tokens}. The tokens of a prefix see each other, so it must be read in one call. Pass at "
        "most the number of tokens, or more tokens at once."
    )


def _longest(lengths: int | Tensor, span: int) -> int:
    """The longest prefix; where that is unknown on the host, the length of the row."""
    if isinstance(lengths, int):
        return lengths
    bounds = read_bounds(lengths) if lengths.device.type == "cpu" else None
    return span if bounds is None else bounds[1]


def check_starts(lengths: int | Tensor, cache: KVCache | None, *, checked: bool = False) -> None:
    """Raises InputError where a row with a prefix is in the cache already."""
    if cache is None or (isinstance(lengths, int) and lengths < 2):
        return
    starts = cache.starts()
    if isinstance(starts, Tensor):
        late = starts > 0 if isinstance(lengths, int) else (starts > 0) & (lengths.to(starts.device) > 1)
        started = not checked and read_value(late.any()) is True
    else:
        started = starts > 0
    if started:
        raise InputError(
            "prefix_len was given, but this cache holds the first tokens of the row already, and they did not see the new ones. "
            "Read the prefix in the call that starts the row, and leave prefix_len out of later calls, which are causal."
        )


def _by_index(pairs: Tensor, layout: TokenLayout) -> Tensor:
    """[B T S] with the T slots of the call as its last columns -> columns by the token's index in its row."""
    if layout.start is not None:
        return pairs
    batch, length, total = pairs.shape
    index, columns = layout.index.expand(batch, -1), torch.arange(total + 1, device=pairs.device)
    slots = columns[total - length : total].expand(batch, -1)
    place = torch.where(index == NO_TOKEN, total, index.clamp(max=total))  # the last column takes the padding
    column = columns.repeat(batch, 1).scatter(1, place, slots)[:, :total]
    exists = columns[:total] <= index.amax(-1, keepdim=True)
    return pairs.gather(2, column[:, None].expand(-1, length, -1)) & exists[:, None]


def _looks_ahead(
    pairs: Tensor, layout: TokenLayout, schemes: Sequence[PositionScheme], cache: KVCache | None, *, checked: bool
) -> int:
    """One more than the largest index of a token that an earlier one sees; 0 where none does. Forces a device sync where a
    scheme or the cache depends on it. Raises PositionError where a scheme needs causal attention."""
    only_causal = Capabilities.combined([scheme.capabilities() for scheme in schemes]).causal_only
    bounds = None
    if not checked and (only_causal or cache is not None):
        columns, index = torch.arange(pairs.shape[-1], device=pairs.device), layout.index[..., None]
        shown = (pairs & (columns > index) & (index != NO_TOKEN)).flatten(0, 1).any(0)
        bounds = read_bounds(shown * (columns + 1))
    if not only_causal:
        return layout.span if bounds is None else bounds[1]
    if bounds is not None and bounds[1]:
        raise PositionError(
            f"attention_mask shows token {bounds[1] - 1} to an earlier one, but {_only_causal(schemes)}"
        )
    return 0  # the causal rule still applies, so that nothing is computed outside of the scheme's definition


def _only_causal(schemes: Sequence[PositionScheme]) -> str:
    """Why a stack needs causal attention, and the way out."""
    found = {type(s).__name__: s.capabilities() for s in schemes if s.capabilities().causal_only}
    undefined = [name for name, caps in found.items() if caps.tells_order]
    counting = [name for name, caps in found.items() if caps.counts_keys]
    if counting and not undefined:
        return (
            f"{', '.join(counting)} scales each query by the number of keys at or before it, which is not the number it sees "
            "then. Build the model without it."
        )
    if undefined:
        return f"{', '.join(undefined)} is defined only for keys at or before the query. Build the model with {BIDIRECTIONAL}."
    return (
        f"with {', '.join(found)} only the causal mask distinguishes one order of tokens from another. Build the model with "
        f"{BIDIRECTIONAL}."
    )
