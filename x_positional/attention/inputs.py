"""The inputs of one forward pass, checked: mask, positions and document ids become a `TokenLayout`.

B batch, T tokens, A position axes.
"""

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral
from typing import Any, TypeAlias

import torch
from torch import Tensor

from x_positional.attention.cache import KVCache
from x_positional.attention.masks import index_of, restart_per_document
from x_positional.attention.tokens import TokenLayout, following_positions
from x_positional.errors import InputError, PositionError, shown
from x_positional.schemes.base import NO_TOKEN, PositionScheme

SeqLens: TypeAlias = Sequence[int] | Sequence[Sequence[int]] | Tensor
"""Lengths of the documents in a packed row: one list for all rows, or one list a row."""

INTEGERS = frozenset(
    (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)
)


def as_tensor(value: Any, name: str) -> Tensor:
    """A dense tensor as it is; lists and numpy arrays of numbers become one. Raises InputError."""
    if isinstance(value, Tensor):
        if value.layout != torch.strided or value.is_nested:
            raise InputError(f"{name} must be a dense tensor; got layout {value.layout}. Use {name}.to_dense().")
        return value
    if isinstance(value, (str, bytes)):
        raise InputError(
            f"{name} must be a tensor, a numpy array or a list of numbers; got {shown(value)}. For text, pass "
            "the ids of its tokenizer: load_tokenizer(folder).encode(text)."
        )
    try:
        return torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError, OverflowError, IndexError) as error:
        raise InputError(
            f"{name} must be a tensor, a numpy array or a list of numbers whose rows are equally long; got "
            f"{type(value).__name__}: {error}"
        ) from None


def is_traced() -> bool:
    """Whether torch.jit.trace records this call."""
    return torch.jit.is_tracing()  # type: ignore[attr-defined]


def read_value(flag: Tensor) -> bool | None:
    """The value of a flag [], which forces a device sync; None where it has none yet: under torch.compile, in a batch of
    torch.func.vmap, on the meta device."""
    if torch.compiler.is_compiling() or is_traced() or flag.is_meta:
        return None
    try:
        return bool(flag)
    except RuntimeError:  # torch has no public way to ask whether a tensor is a batch of vmap, or a fake one
        return None


def read_bounds(values: Tensor) -> tuple[int, int] | None:
    """The smallest and the largest value as integers, which forces a device sync; None as in `read_value`."""
    if torch.compiler.is_compiling() or is_traced() or values.is_meta:
        return None
    try:
        low, high = values.long().aminmax()
        return int(low), int(high)
    except RuntimeError:  # as in `read_value`
        return None


def check_floats(x: Any, width: int, expected: str) -> None:
    """Raises InputError unless x is a float tensor [B T width]. expected: the same in words."""
    if not isinstance(x, Tensor):
        raise InputError(f"expected {expected}; got {type(x).__name__}.")
    if x.ndim != 3 or x.shape[-1] != width or not x.is_floating_point() or 0 in x.shape:
        raise InputError(f"expected {expected}; got {list(x.shape)} of {x.dtype}.")


def check_cache(cache: Any) -> None:
    """Raises InputError for what is no cache."""
    if not isinstance(cache, KVCache):
        raise InputError(f"cache={cache!r} must be a cache from this model's new_cache(batch_size).")


def check_mask(mask: Any, batch: int, length: int, name: str = "mask") -> Tensor:
    """[B T] bool. Raises InputError."""
    mask = as_tensor(mask, name)
    if mask.dtype != torch.bool:
        raise InputError(f"{name} must be bool, True = keep; got {mask.dtype}. Use {name}.bool().")
    if mask.shape != (batch, length):
        raise InputError(f"{name} must have shape [batch, tokens] = [{batch}, {length}]; got {list(mask.shape)}.")
    return mask


def check_shows_a_token(mask: Tensor, what: str = "mask hides") -> None:
    """Raises InputError for a mask that is False everywhere. Forces a device sync."""
    if read_value(mask.any()) is False:
        raise InputError(
            f"{what} every token of the batch, so there is nothing to compute. Leave this batch out. True = keep: invert a "
            "mask that is True at padding, with ~mask."
        )


def check_positions(positions: Any, batch: int, length: int, name: str = "positions") -> Tensor:
    """[T], [B T] or [B T A] -> [B|1 T] or [B|1 T A]."""
    positions = as_tensor(positions, name)
    if positions.dtype not in INTEGERS and not positions.is_floating_point():
        raise InputError(f"{name} must be integers or floats; got {positions.dtype}.")
    if positions.ndim == 1:
        positions = positions[None]
    if positions.ndim == 3 and positions.shape[-1] == 1:
        positions = positions[..., 0]
    fits = positions.ndim in (2, 3) and positions.shape[0] in (1, batch) and positions.shape[1] == length
    if not fits or 0 in positions.shape:
        raise InputError(
            f"{name} must have shape [tokens], [batch, tokens] or [batch, tokens, axes] with batch={batch} and "
            f"tokens={length}; got {list(positions.shape)}."
        )
    return positions if positions.is_floating_point() else positions.long()


def check_finite(positions: Tensor, name: str = "positions") -> None:
    """Raises InputError for floats that are NaN or infinite. Forces a device sync for floats, and none for integers."""
    if positions.is_floating_point() and read_value(positions.isfinite().all()) is False:
        place = positions.isfinite().logical_not().nonzero()[0].tolist()
        raise InputError(
            f"{name}{place} is {float(positions[tuple(place)])}, but a position must be a finite number. Give a token that "
            "has none a position from its neighbours, or leave it out with mask=."
        )


def check_documents(documents: Any, batch: int, length: int) -> Tensor:
    """[T] or [B T] integers -> [B T]. Raises InputError."""
    documents = as_tensor(documents, "document_ids")
    if documents.dtype not in INTEGERS:
        raise InputError(f"document_ids must be integers, one per token; got {documents.dtype}.")
    if documents.ndim == 1:
        documents = documents[None].expand(batch, -1)
    if documents.shape != (batch, length):
        raise InputError(
            f"document_ids must have shape [batch, tokens] = [{batch}, {length}]; got {list(documents.shape)}."
        )
    return documents.long()


def packed_documents(document_ids: Any, seq_lens: SeqLens | None, batch: int, length: int) -> Tensor | None:
    """document_ids [B T] or [T] as they are, or made from `seq_lens`, the lengths of the documents of each row, which add up
    to T. None where neither was given. Raises InputError."""
    if seq_lens is None:
        return document_ids
    if document_ids is not None:
        raise InputError("document_ids and seq_lens both specify where documents end. Pass one of them.")
    rows = _rows_of_lengths(seq_lens, batch)
    for row in rows:
        if any(isinstance(n, bool) or not isinstance(n, Integral) or n < 1 for n in row):
            raise InputError(f"seq_lens must be positive integers; got {row}.")
        if sum(row) != length:
            raise InputError(
                f"seq_lens must be positive integers that add up to the {length} tokens of a row; {row} adds up to "
                f"{sum(row)}. Count padding at the end as a document of its own, and pass mask=."
            )
    if len(rows) != batch:
        raise InputError(
            f"seq_lens has {len(rows)} rows, but the batch has {batch}. Pass one list for all rows, or one a row."
        )
    return torch.tensor([[number for number, n in enumerate(row) for _ in range(n)] for row in rows])


def _rows_of_lengths(seq_lens: Any, batch: int) -> list[list[Any]]:
    """The lengths of each row, whatever they are."""
    given = seq_lens.tolist() if isinstance(seq_lens, Tensor) else seq_lens
    if isinstance(given, Iterable) and not isinstance(given, str | bytes | Mapping):
        given = list(given)
        rows = [list(row) for row in given if isinstance(row, Iterable) and not isinstance(row, str)]
        if given and len(rows) == len(given):
            return rows
        if not rows:
            return [given] * batch
    raise InputError(f"seq_lens must be one list of lengths for all rows, or one list a row; got {seq_lens!r}.")


def token_mask(batch: int, length: int, mask: Any, positions: Any) -> Tensor | None:
    """[B T] bool, False where there is no token; None where every slot holds one. Raises InputError."""
    if mask is not None:
        mask = check_mask(mask, batch, length)
    return (
        mask if positions is None else _mask_of_positions(check_positions(positions, batch, length), mask, batch, True)
    )


def prepare_tokens(
    batch: int,
    length: int,
    device: torch.device,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    document_ids: Tensor | None = None,
    cache: KVCache | None = None,
    *,
    checked: bool = False,
) -> TokenLayout:
    """The layout of the new tokens, which follow those already in `cache`.

    Args:
        batch: B.
        length: T, the new tokens of each row, padding included.
        device: of the layout's tensors.
        mask: [B T] bool, True = a token; padding may be on the left, on the right or anywhere.
        positions: ints or floats [T], [B T] or [B T A]; an integer -1 is no token. After positions were given, a cache continues
            from the largest one so far, of any axis, plus one, on every axis.
        document_ids: [T] or [B T]; positions restart at each document unless given.
        cache: read, not changed.
        checked: the caller guarantees that float positions are finite, and that the mask shows a token.

    Raises:
        InputError.
    """
    if mask is not None:
        mask = check_mask(mask, batch, length)
        if mask.device.type == "cpu":
            if read_value(mask.all()):
                mask = None  # nothing is padded: keep the fast path
            elif not checked and cache is None:
                check_shows_a_token(mask)
    if positions is not None:
        positions = check_positions(positions, batch, length)
        if not checked:
            check_finite(positions)
        positions = positions.to(device)
        mask = _mask_of_positions(positions, mask, batch, checked or cache is not None)
    mask = None if mask is None else mask.to(device)
    first = 0 if cache is None else cache.starts()
    span = length if cache is None else cache.span + length
    start = first if mask is None and isinstance(first, int) else None
    shift = first if isinstance(first, int) else first[:, None]
    if start is not None:
        index = torch.arange(start, start + length, device=device)[None]
    elif mask is None:
        index = torch.arange(length, device=device)[None] + shift
    else:
        index = torch.where(mask, index_of(mask) + shift, NO_TOKEN)
    if cache is not None and start is None and cache.must_grow(span):  # padding counts in the bound: look at the rows
        span = max(cache.longest(), int(index.max()) + 1)
    last_document, restarted = None, None
    if document_ids is not None:
        document_ids = check_documents(document_ids, batch, length).to(device)
        restarted, last_document = _restart(index.expand(batch, -1), document_ids, cache)
    following = None if cache is None else cache.state.following
    if positions is not None:
        held = positions if mask is None or positions.is_floating_point() else where_tokens(positions, mask)
        following = following_positions(held, _after_index(first, device) if following is None else following)
    elif restarted is not None:
        positions = restarted
    elif following is not None:
        positions = _continue(following, index, index - shift)
        following = following_positions(positions, following)
    return TokenLayout(
        index=index,
        positions=index if positions is None else positions,
        documents=document_ids,
        start=start,
        span=span,
        last_document=last_document,
        in_document=restarted,
        following=following,
    )


def _mask_of_positions(positions: Tensor, mask: Tensor | None, batch: int, checked: bool) -> Tensor | None:
    if positions.is_floating_point() or (mask is None and torch.compiler.is_compiling()):
        return mask
    is_token = positions != NO_TOKEN
    is_token = is_token.any(-1) if is_token.ndim == 3 else is_token
    if mask is None and read_value(is_token.all()):
        return None
    if not checked:
        check_shows_a_token(is_token, "positions of -1 hide")
    return is_token.expand(batch, -1) if mask is None else mask.to(positions.device) & is_token


def _after_index(first: int | Tensor, device: torch.device) -> Tensor | None:
    """[B|1] the position after cached tokens that are where their index is; None where there are none."""
    if isinstance(first, Tensor):
        return first
    return torch.full((1,), first, device=device) if first else None


def where_tokens(positions: Tensor, mask: Tensor) -> Tensor:
    """[B|1 T] or [B|1 T A], with -1 where the mask [B T] is False."""
    return torch.where(mask if positions.ndim == 2 else mask[..., None], positions, NO_TOKEN)


def _continue(following: Tensor, index: Tensor, offset: Tensor) -> Tensor:
    """[B|1 T] or [B|1 T A]: positions of the new tokens, which are `offset` [B|1 T] tokens after the cached ones."""
    if following.is_floating_point():
        raise InputError(
            "this cache holds tokens with float positions, which have no next position. Pass positions= for the new tokens too."
        )
    axes = (slice(None),) * 2 + (None,) * (following.ndim - 1)
    return torch.where((index == NO_TOKEN)[axes], NO_TOKEN, following[:, None] + offset[axes])


def _restart(index: Tensor, documents: Tensor, cache: KVCache | None) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
    """[B T] positions that restart per document; and, for a cache, the last document [B] and its first token's index [B]."""
    if cache is None:
        return restart_per_document(index, documents), None
    positions = restart_per_document(index, documents, cache.state.last_document)
    last = index.argmax(-1, keepdim=True)
    start = index.gather(1, last) - positions.gather(1, last)
    ending = (documents.gather(1, last)[:, 0], start[:, 0])
    if cache.state.last_document is not None:  # a row without a token stays where it was
        grew, (document, first) = (index != NO_TOKEN).any(-1), cache.state.last_document
        ending = torch.where(grew, ending[0], document), torch.where(grew, ending[1], first)
    return positions, ending


def check_final_lengths(lengths: Any, batch: int, schemes: list[PositionScheme]) -> Tensor:
    """[B] or [1] positive integers. Raises InputError."""
    lengths = as_tensor(lengths, "final_lengths")
    if lengths.is_floating_point() or lengths.dtype == torch.bool or lengths.shape not in ((batch,), (1,)):
        raise InputError(
            f"final_lengths must be {batch} integers, one a row, or a single one for all rows; got shape {list(lengths.shape)}, "
            f"{lengths.dtype}."
        )
    if not any(s.takes_final_length for s in schemes):
        names = ", ".join(dict.fromkeys(type(s).__name__ for s in schemes))
        raise InputError(
            f"final_lengths would be ignored: {names} does not depend on the final length. It is for RoPE scalings with "
            "length_policy='fixed' and no length of their own. Leave final_lengths out."
        )
    bounds = read_bounds(lengths)
    if bounds is not None and bounds[0] < 1:
        raise InputError(
            f"final_lengths contains {bounds[0]}, but counts the tokens of a row once it is complete, so it must be at least 1. "
            "Leave final_lengths out for max_seq_len."
        )
    return lengths.long()


def check_positions_fit(tokens: TokenLayout, schemes: list[PositionScheme]) -> None:
    """Raises PositionError where a scheme cannot use these positions: too large, fractional, too many axes, or ignored."""
    positions = tokens.positions
    given = not tokens.within_span
    if given and not any(s.capabilities().uses_positions for s in schemes):
        names = ", ".join(dict.fromkeys(type(s).__name__ for s in schemes))
        raise PositionError(
            f"positions would be ignored: {names} does not read them. "
            "Leave positions out, or choose a scheme that uses them: rope, alibi, dynamic, sinusoidal."
        )
    axes = positions.shape[-1] if positions.ndim == 3 else 1
    for scheme in schemes:
        if scheme.limit is None and not tokens.custom_positions:
            continue  # whole numbers on one axis, which every scheme takes
        name = type(scheme).__name__
        caps = scheme.capabilities()
        if positions.is_floating_point() and caps.uses_positions and not caps.continuous:
            raise PositionError(
                f"positions are {positions.dtype}, but {name} indexes a table with them, which needs integers. "
                "Round them with positions.long(), or use a continuous scheme: rope, xpos, polar, alibi, dynamic, sinusoidal."
            )
        if caps.uses_positions and axes not in (1, scheme.max_axes):
            shapes = "[batch, tokens]" + (f" or [batch, tokens, {scheme.max_axes}]" if scheme.max_axes > 1 else "")
            raise PositionError(f"positions have {axes} axes, but {name} takes {scheme.max_axes}. Pass {shapes}.")
        if scheme.limit is not None and not torch.compiler.is_compiling():
            _check_limit(tokens, name, scheme.limit, caps.continuous)


def _check_limit(tokens: TokenLayout, name: str, limit: int, continuous: bool) -> None:
    if not tokens.custom_positions and (tokens.start is not None or tokens.span <= limit):
        smallest, largest = 0, tokens.span - 1  # a bound that needs no host sync
    else:
        bounds = read_bounds(tokens.positions)
        if bounds is None:
            return
        smallest, largest = bounds
    if smallest < NO_TOKEN and not continuous:
        raise PositionError(
            f"position {smallest} is out of range: the rows of {name} start at 0. Shift the positions; -1 means no token."
        )
    if largest >= limit:
        raise PositionError(
            f"position {largest} is out of range: {name} has {limit} rows (0 to {limit - 1}). Pass at most {limit} "
            "tokens, build the model with a larger max_seq_len, or choose a scheme without a table (rope, alibi, ...)."
        )
