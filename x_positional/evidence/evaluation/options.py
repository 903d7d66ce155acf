"""The options of an evaluation that have a syntax or a default, without anything that measures."""

import re
from collections.abc import Sequence
from typing import Literal

from x_positional.errors import UserError, listed

DEFAULT = "1x,2x,4x,8x"
"""Lengths."""
TOLERANCE = 0.02
"""The rise of the loss that a usable length allows, in nats per token: 2 % of perplexity."""
Protocol = Literal["same-targets", "sliding"]
_MULTIPLE = re.compile(r"(\d+(?:\.\d+)?)x")


def length_in_tokens(part: str, trained_length: int | None) -> int | None:
    """`2x` or `512` -> tokens, a multiple being of the trained length; None where that is unknown, or for anything else."""
    multiple = _MULTIPLE.fullmatch(part)
    if multiple is not None:
        return None if trained_length is None else round(float(multiple[1]) * trained_length)
    return int(part) if part.isdecimal() else None


def parse_lengths(text: str, trained_length: int | None) -> tuple[int, ...]:
    """`1x,2x,512` -> lengths in tokens, sorted, each one once. Multiples are of the trained length.

    Raises:
        UserError: With every part that is no length.
    """
    problems: list[str] = []
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        length = length_in_tokens(part, trained_length)
        if length is not None:
            found.add(length)
        elif _MULTIPLE.fullmatch(part):
            problems.append(f"{part}: the trained length is unknown; give tokens, or --trained-length")
        else:
            problems.append(f"{part}: give a multiple of the trained length (2x, 0.5x) or a number of tokens (1024)")
    if not found and not problems:
        problems.append("it is empty; give lengths, as 1x,2x,4x")
    if any(length < 2 for length in found):
        problems.append("a length is below 2 tokens, which leaves nothing to predict")
    if problems:
        raise UserError(listed(f"--lengths {text!r}:", problems))
    return tuple(sorted(found))


def windows_for(lengths: Sequence[int], most: int = 32, tokens: int = 1 << 19, least: int = 8) -> int:
    """How many windows to score: `most`, and fewer of very long ones, so that the longest length reads about `tokens` tokens."""
    return max(least, min(most, tokens // max(lengths)))
