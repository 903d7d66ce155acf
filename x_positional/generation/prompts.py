"""Prompts in any form -> one right-padded batch and its mask. B batch, T longest prompt."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from x_positional.attention.cache import KVCache
from x_positional.errors import InputError

PromptsLike = Tensor | Sequence[Tensor | Sequence[int]] | None


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts."""

    tokens: Tensor
    """[B T], right-padded with 0."""
    mask: Tensor | None
    """[B T] bool, True = a token; None if all rows are equally long."""
    single: bool
    """The caller passed one prompt [T], and gets one row back."""

    def last(self, x: Tensor) -> Tensor:
        """[B T M] -> [B M]: at each row's last token."""
        if self.mask is None:
            return x[:, -1]
        ends = self.mask.sum(-1) - 1
        return x[torch.arange(len(x), device=x.device), ends]


def as_ids(tokens: Tensor) -> Tensor:
    """Integers of any width as int64; any other dtype unchanged, for `check_tokens` to reject."""
    rejected = tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool
    return tokens if rejected else tokens.long()


def read_prompts(
    prompts: PromptsLike, prompt_lens: Tensor | None, cache: KVCache | None, device: torch.device
) -> Prompts:
    """[T], [B T] (right-padded, with `prompt_lens` [B]), a list of ragged prompts, or None to continue from the cache.

    Raises InputError for prompts that are empty, of another shape or dtype, or that do not fit their lengths.
    """
    if prompts is None:
        return _no_new_tokens(cache)
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
            "Give at least one token per row, such as a start token; prompts=None continues from a cache."
        )
    mask = None if prompt_lens is None else _mask_of_lengths(prompt_lens, tokens)
    return Prompts(tokens, mask, prompts.ndim == 1)


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
    if lengths.shape != (len(tokens),) or lengths.is_floating_point():
        raise InputError(
            f"prompt_lens must be {len(tokens)} integers, one per row; these are {list(lengths.shape)} of {lengths.dtype}."
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
        raise InputError(
            "prompt_lens is only for a padded tensor; a list of prompts already has lengths. Leave it out."
        )
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
