"""Prompts as users give them -> one right-padded batch and its mask. B batch, T longest prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from x_positional.attention.cache import KVCache
from x_positional.errors import InputError


@dataclass(frozen=True)
class Prompts:
    """tokens [B T], right-padded with 0; mask [B T], None where no row is shorter; single: the caller gave one row."""

    tokens: Tensor
    mask: Tensor | None
    single: bool

    def last(self, x: Tensor) -> Tensor:
        """[B T M] -> [B M]: at each row's last token."""
        if self.mask is None:
            return x[:, -1]
        ends = self.mask.sum(-1) - 1
        return x[torch.arange(len(x), device=x.device), ends]


def as_ids(tokens: Tensor) -> Tensor:
    """Integers of any width as int64; anything else as it is, for `check_tokens` to refuse."""
    refused = tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool
    return tokens if refused else tokens.long()


def nothing_new(cache: KVCache | None) -> Prompts:
    """No new token: what is drawn next follows from the cache. Raises InputError where it does not know."""
    if cache is None:
        raise InputError("prompts=None goes on from a cache, and none was given. Give a prompt, or cache=.")
    if cache.ending is None or cache.ending[0] != cache.span:
        raise InputError(
            "prompts=None goes on where a call of generate or stream left this cache, and the last tokens in it came "
            "from elsewhere. Give at least one new token a row."
        )
    ids = torch.empty(cache.batch_size, 0, dtype=torch.long, device=cache.device)
    return Prompts(ids, None, False)


def read_prompts(
    prompts: Tensor | Sequence[Tensor | Sequence[int]], prompt_lens: Tensor | None, device: torch.device
) -> Prompts:
    """[T], [B T] (with `prompt_lens` [B] if right-padded), or a list of ragged prompts. Raises InputError."""
    if not isinstance(prompts, Tensor):
        return _ragged(prompts, prompt_lens, device)
    if prompts.ndim not in (1, 2):
        raise InputError(
            f"prompts must be [tokens], [batch, tokens] or a list of them; these are {list(prompts.shape)}."
        )
    tokens = as_ids(torch.atleast_2d(prompts).to(device))
    if 0 in tokens.shape:
        raise InputError(
            f"the prompt is empty (shape {list(prompts.shape)}): there is nothing to continue. "
            "Give at least one token a row, a start token if need be; prompts=None goes on from a cache."
        )
    mask = None if prompt_lens is None else _mask_of_lengths(prompt_lens, tokens)
    return Prompts(tokens, mask, prompts.ndim == 1)


def _mask_of_lengths(lengths: Tensor, tokens: Tensor) -> Tensor | None:
    if lengths.shape != (len(tokens),) or lengths.is_floating_point():
        raise InputError(
            f"prompt_lens must be {len(tokens)} integers, one a row; these are {list(lengths.shape)} of {lengths.dtype}."
        )
    low, high = int(lengths.min()), int(lengths.max())
    if low < 1 or high > tokens.shape[1]:
        raise InputError(
            f"prompt_lens must be from 1 to {tokens.shape[1]}, the width of prompts; they go from {low} to {high}."
        )
    return _mask(lengths.to(tokens.device), tokens.shape[1])


def _mask(lengths: Tensor, width: int) -> Tensor | None:
    mask = torch.arange(width, device=lengths.device) < lengths[:, None]
    return None if bool(mask.all()) else mask


def _ragged(prompts: Sequence[Tensor | Sequence[int]], prompt_lens: Tensor | None, device: torch.device) -> Prompts:
    if prompt_lens is not None:
        raise InputError("prompt_lens follow from a list of prompts. Leave them out.")
    rows = [torch.as_tensor(p, device=device) for p in prompts]
    if not rows:
        raise InputError("the list of prompts is empty. Give at least one prompt.")
    bad = [i for i, row in enumerate(rows) if row.ndim != 1 or not len(row)]
    if bad:
        raise InputError(f"each prompt of a list must be one row of at least one token; prompts {bad} are not.")
    floats = [i for i, row in enumerate(rows) if row.is_floating_point() or row.dtype == torch.bool]
    if floats:
        raise InputError(f"prompts must be integer ids; prompts {floats} are not.")
    lengths = torch.tensor([len(row) for row in rows], device=device)
    tokens = torch.nn.utils.rnn.pad_sequence([row.long() for row in rows], batch_first=True)
    return Prompts(tokens, _mask(lengths, tokens.shape[1]), False)
