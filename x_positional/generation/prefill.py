"""Prefill: the prompts are read into the cache, at once or in chunks.

B batch, T prompt tokens, M model dim.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from x_positional.errors import InputError
from x_positional.generation.prompts import Prompts
from x_positional.schemes.base import PositionScheme

Read = Callable[[Prompts, Tensor | None], Tensor]
"""(Some places of the prompts, their positions [B N] or None) -> hidden states [B N M]: one forward pass over new tokens."""


def read_in_chunks(read: Read, prompts: Prompts, positions: Tensor | None, size: int | None) -> Tensor:
    """Read the prompts, `size` tokens a pass -> [B M] of each row's last token.

    Args:
        read: the forward pass, which keeps what it reads in a cache.
        prompts: may be ragged; a row that has ended takes part in later passes without tokens.
        positions: [B P+T] or [B P+T A] of all places, if they were given.
        size: None reads everything in one pass.
    """
    places = prompts.places
    if size is None or size >= places:
        return prompts.last(read(prompts, positions))
    ends = prompts.ends()
    rows = torch.arange(len(ends), device=ends.device)
    found = []
    for start in range(0, places, size):
        part = prompts.cut(start, start + size)
        x = read(part, None if positions is None else positions[:, start : start + size])
        found.append(x[rows, (ends - start).clamp(0, x.shape[1] - 1)])
    return torch.stack(found)[ends // size, rows]


def check_chunks(size: int | None, width: int, total: int, length_dependent: Sequence[PositionScheme]) -> None:
    """Raises InputError where keys of a chunk would depend on tokens that come after it.

    Args:
        size: tokens a chunk; None reads everything in one pass.
        width: places of the longest prompt.
        total: the largest length, in positions, that a row of this call comes to.
        length_dependent: schemes whose keys change with the length of the sequence.
    """
    if size is None or size >= width:
        return
    changing = [s for s in length_dependent if len({s.cache_key(length) for length in range(1, total + 1)}) > 1]
    if changing:
        names = ", ".join(dict.fromkeys(type(scheme).__name__ for scheme in changing))
        raise InputError(
            f"prefill_chunk_size={size} cannot be used here: {names} rotates all keys by the length of the whole sequence, which "
            f"passes the trained length within this call ({total} positions), so the keys of a chunk depend on tokens after "
            "it. Leave prefill_chunk_size out, or build the model with length_policy='fixed'."
        )
