"""Prompts in any form -> one right-padded batch and its mask. B batch, T longest prompt."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from x_positional.attention.cache import KVCache
from x_positional.attention.inputs import INTEGERS, as_tensor
from x_positional.errors import InputError
from x_positional.generation.sampling import is_integer

PromptsLike = Tensor | Sequence[int] | Sequence[Tensor | Sequence[int]] | None


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts."""

    tokens: Tensor
    """[B T], right-padded with 0."""
    mask: Tensor | None
    """[B T] bool, True = a token; None if all rows are equally long."""
    single: bool
    """The caller passed one prompt [T], and gets one row back."""

    @classmethod
    def of_rows(cls, tokens: Tensor, lengths: Tensor) -> "Prompts":
        """Rows [B T] with these lengths [B], right-padded. Forces a device sync."""
        return cls(tokens, _mask(lengths, tokens.shape[1]), single=False)

    def last(self, x: Tensor) -> Tensor:
        """[B T M] -> [B M]: at each row's last token."""
        if self.mask is None:
            return x[:, -1]
        ends = self.mask.sum(-1) - 1
        return x[torch.arange(len(x), device=x.device), ends]


def as_ids(tokens: Tensor) -> Tensor:
    """Integers of any width as int64; any other dtype unchanged, for `check_tokens` to reject."""
    return tokens.long() if tokens.dtype in INTEGERS else tokens


def read_prompts(prompts: PromptsLike, prompt_lens: Any, cache: KVCache | None, device: torch.device) -> Prompts:
    """[T], [B T] (right-padded, with `prompt_lens` [B]), a list of ragged prompts, or None to continue from the cache.

    Numpy arrays are taken like tensors, and a list of ids like [T].

    Raises InputError for prompts that are empty, of another shape or dtype, or that do not fit their lengths.
    """
    if prompts is None:
        if prompt_lens is not None:
            raise InputError("prompt_lens was given without prompts. Leave it out.")
        return _no_new_tokens(cache)
    if isinstance(prompts, list | tuple) and not prompts:
        raise InputError("the list of prompts is empty. Give at least one prompt.")
    if isinstance(prompts, list | tuple) and not all(is_integer(token) for token in prompts):
        return _ragged(prompts, prompt_lens, device)
    tokens = as_tensor(prompts, "prompts")
    if tokens.ndim not in (1, 2):
        raise InputError(
            f"prompts must be [tokens], [batch, tokens] or a list of them; these are {list(tokens.shape)}."
        )
    if 0 in tokens.shape:
        raise InputError(
            f"the prompt is empty (shape {list(tokens.shape)}): there is nothing to continue. "
            "Give at least one token per row, such as a start token; prompts=None continues from a cache."
        )
    single = tokens.ndim == 1
    tokens = as_ids(torch.atleast_2d(tokens).to(device))
    mask = None if prompt_lens is None else _mask_of_lengths(as_tensor(prompt_lens, "prompt_lens"), tokens)
    return Prompts(tokens, mask, single)


def _no_new_tokens(cache: KVCache | None) -> Prompts:
    """A batch of empty prompts: the cache already predicts the next token. Raises InputError if it does not."""
    if cache is None:
        raise InputError("prompts=None continues from a cache, and none was given. Pass a prompt or cache=.")
    if cache.state.ending is None or cache.state.ending[0] != cache.span:
        raise InputError(
            "prompts=None continues where generate or stream left this cache, but its last tokens came from elsewhere. "
            "Pass at least one new token per row."
        )
    ids = torch.empty(cache.batch_size, 0, dtype=torch.long, device=cache.device)
    return Prompts(ids, None, False)


def _mask_of_lengths(lengths: Tensor, tokens: Tensor) -> Tensor | None:
    if lengths.shape != (len(tokens),) or lengths.dtype not in INTEGERS:
        raise InputError(
            f"prompt_lens must be {len(tokens)} integers, one per row; these are {list(lengths.shape)} of {lengths.dtype}."
        )
    lengths = lengths.long()
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > tokens.shape[1]:
        raise InputError(
            f"prompt_lens must be from 1 to {tokens.shape[1]}, the width of prompts; they go from {low} to {high}."
        )
    return _mask(lengths.to(tokens.device), tokens.shape[1])


def _mask(lengths: Tensor, width: int) -> Tensor | None:
    mask = torch.arange(width, device=lengths.device) < lengths[:, None]
    return None if bool(mask.all()) else mask


def _ragged(prompts: Sequence[Any], prompt_lens: Any, device: torch.device) -> Prompts:
    if prompt_lens is not None:
        raise InputError(
            "prompt_lens is only for a padded tensor; a list of prompts already has lengths. Leave it out."
        )
    rows = [as_tensor(p, f"prompts[{i}]").to(device) for i, p in enumerate(prompts)]
    bad = [i for i, row in enumerate(rows) if row.ndim != 1 or not len(row)]
    if bad:
        raise InputError(f"each prompt of a list must be one row of at least one token; prompts {bad} are not.")
    floats = [i for i, row in enumerate(rows) if row.dtype not in INTEGERS]
    if floats:
        raise InputError(f"prompts must be integer ids; prompts {floats} are not.")
    lengths = torch.tensor([len(row) for row in rows], device=device)
    tokens = torch.nn.utils.rnn.pad_sequence([row.long() for row in rows], batch_first=True)
    return Prompts(tokens, _mask(lengths, tokens.shape[1]), False)
