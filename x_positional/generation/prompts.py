"""Prompts in any form -> one right-padded batch and its mask.

B batch, P prepended places, T longest prompt, E width of the token embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from x_positional.attention.cache import KVCache
from x_positional.attention.embeds import Checks, arguments_of
from x_positional.attention.inputs import INTEGERS, as_tensor
from x_positional.attention.masks import index_of
from x_positional.attention.visibility import check_prefix_len, check_starts
from x_positional.errors import InputError
from x_positional.generation.sampling import is_integer

PromptsLike = Tensor | Sequence[int] | Sequence[Tensor | Sequence[int]] | None
EmbedsLike = Tensor | Sequence[Tensor] | None


@dataclass(frozen=True)
class Prompts:
    """A batch of prompts. A row has P + T places: embeddings, then tokens."""

    tokens: Tensor
    """[B T], right-padded with 0."""
    mask: Tensor | None
    """[B P+T] bool, True = a token or an embedding; None if all rows are equally long."""
    single: bool
    """The caller passed one prompt [T], and gets one row back."""
    embeds: Tensor | None = None
    """[B P E] before the tokens, right-padded with 0."""

    @property
    def prepended(self) -> int:
        """P."""
        return 0 if self.embeds is None else self.embeds.shape[1]

    @property
    def places(self) -> int:
        """P + T."""
        return self.prepended + self.tokens.shape[1]

    @property
    def lengths(self) -> Tensor | int:
        """Tokens and embeddings of each row [B]; one number if all rows are equally long."""
        return self.places if self.mask is None else self.mask.sum(dim=-1)

    @property
    def token_mask(self) -> Tensor | None:
        """[B T] bool, True = a token; None if every place is one."""
        return None if self.mask is None else self.mask[:, self.prepended :]

    def ends(self) -> Tensor:
        """[B] the last place of each row that is no padding."""
        if self.mask is not None:
            return last_places(self.mask)
        return torch.full((len(self.tokens),), self.places - 1, device=self.tokens.device)

    def prefix(self, prefix_len: Any, cache: KVCache | None) -> int | Tensor | None:
        """How many first tokens of each prompt see each other: one number, or [B]; "prompt" is all of them. Raises InputError."""
        if prefix_len is None:
            return None
        batch, length = len(self.tokens), self.places
        if not length:
            raise InputError(
                "prefix_len was given, but prompts=None adds no tokens that could see each other. Leave it out."
            )
        if isinstance(prefix_len, str):
            if prefix_len != "prompt":
                raise InputError(f"prefix_len={prefix_len!r} must be an integer, one a row, 'prompt' or None.")
            lengths = self.lengths
        else:
            lengths = check_prefix_len(prefix_len, batch, length, None if self.mask is None else index_of(self.mask))
        check_starts(lengths, cache)
        return lengths

    @classmethod
    def of_rows(cls, tokens: Tensor, lengths: Tensor) -> "Prompts":
        """Rows [B T] with these lengths [B], right-padded. Forces a device sync."""
        return cls(tokens, _mask(lengths, tokens.shape[1]), single=False)

    def last(self, x: Tensor) -> Tensor:
        """[B P+T M] -> [B M]: at each row's last token."""
        return at_last_places(x, self.mask)

    def cut(self, start: int, stop: int) -> "Prompts":
        """Places start .. stop - 1."""
        first = self.prepended
        return replace(
            self,
            tokens=self.tokens[:, max(start - first, 0) : max(stop - first, 0)],
            mask=None if self.mask is None else self.mask[:, start:stop],
            embeds=None if self.embeds is None else self.embeds[:, start:stop],
        )

    def arguments(self) -> tuple[Tensor | None, dict[str, Tensor]]:
        """As `arguments_of`."""
        return arguments_of((self.tokens,) if self.embeds is None else (self.embeds, self.tokens))


def last_places(mask: Tensor) -> Tensor:
    """[B T] bool, True = a token -> [B] the last place of each row that holds one."""
    return torch.where(mask, torch.arange(mask.shape[1], device=mask.device), 0).amax(-1)


def at_last_places(x: Tensor, mask: Tensor | None) -> Tensor:
    """[B T M] -> [B M] at each row's last token. mask: [B T] bool; None where no row is padded."""
    return x[:, -1] if mask is None else x[torch.arange(len(x), device=x.device), last_places(mask)]


def as_ids(tokens: Tensor) -> Tensor:
    """Integers of any width as int64; any other dtype unchanged, for `check_tokens` to reject."""
    return tokens.long() if tokens.dtype in INTEGERS else tokens


def read_prompts(
    prompts: PromptsLike,
    prompt_lens: Any,
    cache: KVCache | None,
    device: torch.device,
    embeds: EmbedsLike = None,
    check: Checks | None = None,
) -> Prompts:
    """Prompts in any form as one batch.

    Args:
        prompts: [T], [B T] (right-padded, with `prompt_lens` [B]), a list of ragged prompts, or None to continue from the cache or
            from embeddings alone. Numpy arrays are taken like tensors, and a list of ids like [T].
        prompt_lens: [B].
        cache: to continue from.
        device: of the model.
        embeds: [B P E] before the tokens, or a list of [P E], one a row; None is none. Needs `check`, of the model.

    Raises:
        InputError: prompts that are empty, of another shape or dtype, or that do not fit their lengths; embeddings that do not fit.
    """
    if embeds is not None and check is not None:
        rows, kept = _padded_embeds(embeds, check)
        if prompts is None and prompt_lens is None:
            return Prompts(torch.empty(len(rows), 0, dtype=torch.long, device=device), kept, False, rows)
        found = read_prompts(prompts, prompt_lens, cache, device)
        check(rows, "prepend_embeds", len(found.tokens))
        if kept is not None or found.mask is not None:
            kept = rows.new_ones(rows.shape[:2], dtype=torch.bool) if kept is None else kept
            own = torch.ones_like(found.tokens, dtype=torch.bool) if found.mask is None else found.mask
            kept = torch.cat([kept, own], 1)
        return replace(found, mask=kept, embeds=rows)
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
    mask = None if prompt_lens is None else mask_of_lengths(as_tensor(prompt_lens, "prompt_lens"), tokens)
    return Prompts(tokens, mask, single)


def _padded_embeds(embeds: Any, check: Checks) -> tuple[Tensor, Tensor | None]:
    """[B P E] or a list of [P E] -> [B P E], right-padded with 0, and its mask, None if all rows are equally long."""
    if not isinstance(embeds, list | tuple):
        return check(embeds, "prepend_embeds", None), None
    if not embeds:
        raise InputError("the list of prepend_embeds is empty. Give embeddings [places, width] for each row, or None.")
    rows = [
        check(row[None] if isinstance(row, Tensor) and row.ndim == 2 else row, f"prepend_embeds[{i}]", 1)[0]
        for i, row in enumerate(embeds)
    ]
    lengths = torch.tensor([len(row) for row in rows], device=rows[0].device)
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return padded, _mask(lengths, padded.shape[1])


def _no_new_tokens(cache: KVCache | None) -> Prompts:
    """A batch of empty prompts: the cache already predicts the next token. Raises InputError if it does not."""
    if cache is None:
        raise InputError("prompts=None continues from a cache, and none was given. Pass a prompt or cache=.")
    if cache.state.ending is None or cache.state.ending[0] != cache.span:
        reason = "its last tokens came from elsewhere, or it was cropped" if cache.span else "this cache is empty"
        raise InputError(
            f"prompts=None continues where generate, stream or prefill left a cache, but {reason}. Pass at least one new token "
            "per row."
        )
    ids = torch.empty(cache.batch_size, 0, dtype=torch.long, device=cache.device)
    return Prompts(ids, None, False)


def mask_of_lengths(lengths: Tensor, tokens: Tensor) -> Tensor | None:
    """The lengths [B] of right-padded rows [B T ...] -> [B T] bool; None where no row is padded. Raises InputError."""
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
