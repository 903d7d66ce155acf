"""x_positional's cache behind the interface of transformers' caches.

B rows, C columns: tokens and padding, as transformers counts them.
"""

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from x_positional.attention.cache import KVCache
from x_positional.errors import CacheError

CACHE_NAME = "cache" if any(f.name == "cache" for f in fields(BaseModelOutputWithPast)) else "past_key_values"
"""The name of a cache in outputs and in `generate` of transformers: "cache" from 5.24 on."""


class XPositionalCache(Cache):
    """Keys and values of a model of x_positional. Empty until the first call of the model fills it.

    transformers counts columns of a padded batch; x_positional counts the tokens of each row. This keeps both.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.kv: KVCache | None = None
        """The cache of the model."""
        self.columns: list[tuple[int, Tensor | None]] = []
        """For each call, how many columns it added, and which of them hold a token, [B C]; None where all do."""

    def added(self, kv: KVCache, count: int, tokens: Tensor | None) -> None:
        """Note a call of the model. tokens: [B C] bool, None where every column holds a token."""
        self.kv = kv
        self.columns.append((count, tokens))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns so far, padding included."""
        return sum(count for count, _ in self.columns)

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: it grows."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        """Columns of the mask of the next call, and the first one."""
        return self.get_seq_length() + query_length, 0

    def __len__(self) -> int:
        """Layers that hold keys."""
        return 0 if self.kv is None else len(self.kv.windows)

    @property
    def is_linear(self) -> list[bool]:  # type: ignore[override]
        """False for each layer, one before the first call: none keeps a running state in place of keys."""
        return [False] * max(1, len(self))

    @property
    def is_compileable(self) -> bool:
        """False: transformers' own graphs need tensors of a fixed size."""
        return False

    @property
    def batch_size(self) -> int:
        """Rows; -1 before the first call."""
        return -1 if self.kv is None else self.kv.batch_size

    @property
    def is_initialized(self) -> bool:
        """Whether it holds keys."""
        return self.kv is not None

    @property
    def is_croppable(self) -> bool:
        """Whether `crop` can undo any call."""
        return self.kv is None or all(window.kept is None for window in self.kv.windows)

    def crop(self, tokens_to_remove: int) -> None:
        """Remove the last columns of every row.

        Args:
            tokens_to_remove: below 0, how many columns to remove; above 0, how many to keep, as in transformers before 5.13.

        Raises:
            CacheError: there are fewer, or a window has overwritten tokens that would be visible again.
        """
        total = self.get_seq_length()
        removed = -tokens_to_remove if tokens_to_remove <= 0 else max(0, total - tokens_to_remove)
        if removed > total:
            raise CacheError(f"crop({tokens_to_remove}): this cache holds only {total} columns.")
        if not removed or self.kv is None:
            return
        kept, tail = _split(self.columns, total - removed)
        self.kv.crop(_lengths_without(self.kv, tail))
        self.columns = kept

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Row i continues as row beam_idx[i] did."""
        self.batch_select_indices(beam_idx)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, in that order."""
        if self.kv is not None:
            self.kv.reorder(indices)
            self.columns = [(n, None if m is None else m[indices.to(m.device)]) for n, m in self.columns]

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row, next to each other."""
        if self.kv is not None:
            self.kv.repeat(repeats)
            self.columns = [(n, None if m is None else m.repeat_interleave(repeats, 0)) for n, m in self.columns]

    def reset(self) -> None:
        """Forget everything."""
        self.kv, self.columns = None, []

    def update(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Raises CacheError: the layers write keys themselves."""
        raise CacheError("an XPositionalCache is filled by a model of x_positional, and by no other.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.batch_size} rows, {self.get_seq_length()} columns)"


Columns = list[tuple[int, Tensor | None]]


def _split(columns: Columns, length: int) -> tuple[Columns, Columns]:
    """The first `length` columns, and those after them."""
    first: Columns = []
    last: Columns = []
    for count, tokens in columns:
        kept = min(count, length)
        length -= kept
        if kept:
            first.append((kept, None if tokens is None else tokens[:, :kept]))
        if count > kept:
            last.append((count - kept, None if tokens is None else tokens[:, kept:]))
    return first, last


def _lengths_without(kv: KVCache, tail: Columns) -> int | Tensor:
    """What to crop: the same number of tokens of every row, below 0, or how many each row keeps, [B]."""
    if all(tokens is None for _, tokens in tail):
        return -sum(count for count, _ in tail)
    starts = kv.starts()
    held = torch.full((kv.batch_size,), starts, device=kv.device) if isinstance(starts, int) else starts
    for count, tokens in tail:
        held = held - (count if tokens is None else tokens.sum(-1).to(held.device))
    return held
