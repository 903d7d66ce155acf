"""The inputs of transformers' models as those of x_positional's.

B batch, T new tokens, S tokens so far, C columns of earlier calls, A position axes.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache

from x_positional.attention.cache import KVCache
from x_positional.attention.inputs import read_value
from x_positional.errors import CacheError, InputError
from x_positional.hf.caching import XPositionalCache


@dataclass(frozen=True)
class Places:
    """Where the tokens of one call are."""

    given: dict[str, Any]
    """Keyword arguments of the model: positions, document_ids, attention_mask."""
    columns: Tensor | None
    """[B T] bool, which columns hold a token; None where all do."""


def read_places(
    length: int, batch: int, attention_mask: Tensor | None, position_ids: Tensor | None, cache: XPositionalCache | None
) -> Places:
    """The mask and the positions of a call, as transformers' models read them.

    Args:
        length: T.
        batch: B.
        attention_mask: [B S], 0 at padding; or [B 1 T S] bool, who sees whom.
        position_ids: [B|1 T], or [A B T]. Without a mask and a cache, a position that does not follow the one before it starts
            another text, as in rows that are packed without padding.
        cache: Of earlier calls.

    Raises:
        InputError: For a mask or positions of another shape.
    """
    given: dict[str, Any] = {}
    columns = None
    if attention_mask is not None and attention_mask.ndim == 2:
        mask = attention_mask.bool()
        past = 0 if cache is None else cache.get_seq_length()
        if mask.shape[0] != batch or mask.shape[1] not in (length, past + length):
            more = f" or {past + length}, {past} of them cached" if past else ""
            raise InputError(
                f"attention_mask has shape {list(mask.shape)}, but must have {batch} rows and {length}{more} columns."
            )
        ragged = cache is not None and cache.kv is not None and cache.kv.state.lengths is not None
        if ragged or read_value(mask.all()) is not True:
            given["attention_mask"], columns = mask, mask[:, -length:]
    elif attention_mask is not None:
        given["attention_mask"] = _as_bool(attention_mask)
    positions = _positions(position_ids, batch, length)
    if positions is None or _follows(positions, columns, attention_mask, cache):
        return Places(given, columns)
    given["positions"] = positions
    if cache is None and attention_mask is None and positions.ndim == 2:
        starts = torch.diff(positions, prepend=positions[:, :1] - 1) != 1
        documents = starts.cumsum(-1)
        if read_value(documents.any()) is not False:
            given["document_ids"] = documents.expand(batch, -1)
            starts[:, 0] = True
            if read_value((positions[starts.expand_as(positions)] == 0).all()) is True:
                del given["positions"]  # those of the documents, which schemes without positions support too
    return Places(given, columns)


def _as_bool(mask: Tensor) -> Tensor:
    """An additive mask [B 1 T S] of zeros and very negative numbers as a bool one; any other as it is."""
    if not mask.is_floating_point():
        return mask
    visible, hidden = mask == 0, mask <= torch.finfo(mask.dtype).min / 2
    return visible if read_value((visible | hidden).all()) is True else mask


def _positions(position_ids: Tensor | None, batch: int, length: int) -> Tensor | None:
    """[T], [B|1 T] or [A B|1 T] -> [1 T], [B|1 T] or [B|1 T A]. Raises InputError for another shape."""
    if position_ids is None:
        return None
    rows, tokens = (1, *position_ids.shape)[-2:]
    if tokens != length or rows not in (1, batch):
        raise InputError(
            f"position_ids have shape {list(position_ids.shape)}, but must have {batch} rows and {length} columns."
        )
    if position_ids.ndim < 3:
        return position_ids.reshape(-1, length)
    return position_ids.movedim(0, -1)


def _follows(
    positions: Tensor, columns: Tensor | None, attention_mask: Tensor | None, cache: XPositionalCache | None
) -> bool:
    """Whether positions are those that the model counts anyway, so that it need not be given any. Forces a device sync."""
    kv = None if cache is None else cache.kv
    if positions.ndim != 2 or (attention_mask is not None and attention_mask.ndim != 2):
        return False
    if kv is not None and kv.state.following is not None:
        return False
    start = 0 if kv is None else kv.starts()
    start = start if isinstance(start, int) else start.to(positions.device)[:, None]
    counted = torch.arange(positions.shape[1], device=positions.device) if columns is None else _counted(columns)
    same = positions == start + counted
    return read_value((same if columns is None else same | ~columns).all()) is True


def _counted(columns: Tensor) -> Tensor:
    """[B T] bool -> the number of tokens before each place of a row."""
    return columns.long().cumsum(-1) - 1


def given_cache(past_key_values: Cache | None, cache: Cache | None) -> Cache | None:
    """The cache that a call was given, by its old or new name in transformers. Raises CacheError for two of them."""
    if past_key_values is not None and cache is not None and past_key_values is not cache:
        raise CacheError("past_key_values and cache are two names of one argument. Pass one of them.")
    return past_key_values if cache is None else cache


def own_cache(cache: Cache | None, layers: Any, batch: int) -> tuple[XPositionalCache | None, KVCache | None]:
    """The cache of a call, and the one of the model in it, which is made for the first call.

    Raises:
        CacheError: For a cache of another class.
        PositionError: Where cached keys would go stale.
    """
    if cache is None:
        return None, None
    if not isinstance(cache, XPositionalCache):
        raise CacheError(
            f"the cache is a {type(cache).__name__}, which holds keys and values alone. Pass an "
            "x_positional.hf.XPositionalCache(), or leave it out: calls in eval mode return one."
        )
    kv = cache.kv
    return cache, layers.new_cache(batch) if kv is None else kv
