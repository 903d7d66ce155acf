"""Lengths and protocols as they are written on the command line."""

import re
from collections.abc import Sequence

from x_positional.errors import UserError, listed

DEFAULT = "1x,2x,4x,8x"
_MULTIPLE = re.compile(r"(\d+(?:\.\d+)?)x")


def parse_lengths(text: str, trained_length: int | None) -> tuple[int, ...]:
    """`1x,2x,512` -> lengths in tokens, sorted, each one once. Multiples are of the trained length.

    Raises:
        UserError: With every part that is no length.
    """
    problems: list[str] = []
    found: set[int] = set()
    for part in filter(None, (part.strip() for part in text.split(","))):
        multiple = _MULTIPLE.fullmatch(part)
        if multiple is not None and trained_length is None:
            problems.append(f"{part}: the trained length is unknown; give tokens, or --trained-length")
        elif multiple is not None and trained_length is not None:
            found.add(round(float(multiple[1]) * trained_length))
        elif part.isdigit():
            found.add(int(part))
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
