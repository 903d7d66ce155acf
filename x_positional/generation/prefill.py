"""Prefill: the prompts are read into the cache, at once or in chunks.

B batch, T prompt tokens, M model dim.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from x_positional.errors import InputError
from x_positional.generation.prompts import Prompts
from x_positional.schemes.base import PositionScheme, lowest_limit

Read = Callable[[Prompts, Tensor | None, int | Tensor | None], Tensor]
"""(Some places of the prompts, their positions [B N] or None, prefix lengths or None) -> hidden states [B N M]: one forward pass
over new tokens."""


def read_in_chunks(
    read: Read, prompts: Prompts, positions: Tensor | None, size: int | None, prefix: int | Tensor | None = None
) -> Tensor:
    """Read the prompts, `size` tokens a pass -> [B M] of each row's last token.

    Args:
        read: the forward pass, which keeps what it reads in a cache.
        prompts: may be ragged; a row that has ended takes part in later passes without tokens.
        positions: [B P+T] or [B P+T A] of all places, if they were given.
        size: None reads everything in one pass.
        prefix: how many first tokens of each row see each other; all of them are read in the first pass.
    """
    places = prompts.places
    if size is None or size >= places:
        return prompts.last(read(prompts, positions, prefix))
    ends = prompts.ends()
    rows = torch.arange(len(ends), device=ends.device)
    found = []
    for start in range(0, places, size):
        part = prompts.cut(start, start + size)
        at = None if positions is None else positions[:, start : start + size]
        x = read(part, at, None if start else prefix)
        found.append(x[rows, (ends - start).clamp(0, x.shape[1] - 1)])
    return torch.stack(found)[ends // size, rows]


def check_limits(schemes: Sequence[PositionScheme], total: int, max_seq_len: int | None) -> None:
    """Raises InputError where a row of this call comes to more tokens than its positions are defined for."""
    limit = lowest_limit(schemes)
    if limit is not None and total > limit:
        raise InputError(
            f"prompt and seq_len come to {total} tokens, but this model's positions end at {limit} (max_seq_len={max_seq_len}). "
            "Generate fewer tokens, or use a scheme without a table (rope, alibi, ...)."
        )


def check_chunks(
    size: int | None,
    width: int,
    total: int,
    length_dependent: Sequence[PositionScheme],
    prefix: int | Tensor | None = None,
) -> None:
    """Raises InputError where keys of a chunk would depend on tokens that come after it.

    Args:
        size: tokens a chunk; None reads everything in one pass.
        width: places of the longest prompt.
        total: the largest length, in positions, that a row of this call comes to.
        length_dependent: schemes whose keys change with the length of the sequence.
        prefix: how many first tokens of each row see each other.
    """
    if size is None or size >= width:
        return
    longest = 0 if prefix is None else int(prefix.max()) if isinstance(prefix, Tensor) else prefix
    if size < longest:
        raise InputError(
            f"prefill_chunk_size={size} would cut a prefix of {longest} tokens, which see each other, so they must be read in one "
            f"pass. Leave prefill_chunk_size out, or pass {longest} or more."
        )
    lengths = range(total, 1, -1)  # the largest first: the one most likely to differ
    changing = [s for s in length_dependent if any(s.cache_key(length) != s.cache_key(1) for length in lengths)]
    if changing:
        names = ", ".join(dict.fromkeys(type(scheme).__name__ for scheme in changing))
        raise InputError(
            f"prefill_chunk_size={size} cannot be used here: {names} rotates all keys by the length of the whole sequence, which "
            f"passes the trained length within this call ({total} positions), so the keys of a chunk depend on tokens after "
            "it. Leave prefill_chunk_size out, or build the model with length_policy='fixed'."
        )
