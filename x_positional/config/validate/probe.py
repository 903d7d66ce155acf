"""How wide queries and keys are after rotation: found by rotating one token.

With values, as the meta device would import torch's compiler, which takes seconds; the schemes in a report have none.
"""

import copy
from typing import Literal
from weakref import WeakKeyDictionary

import torch

from x_positional.schemes.base import PositionScheme

_KNOWN: WeakKeyDictionary[PositionScheme, dict[tuple[str, int, int], int | None]] = WeakKeyDictionary()
"""What was found, as the layers of a stack share schemes."""


def rotated_width(scheme: PositionScheme, which: Literal["q", "k"], heads: int, width: int) -> int | None:
    """The width of queries or keys that are `width` wide before; None where the scheme does not run on them."""
    if not scheme.overrides(f"rotate_{which}"):
        return width
    known = _KNOWN.setdefault(scheme, {})
    if (which, heads, width) not in known:
        known[which, heads, width] = _rotate(scheme, which, heads, width)
    return known[which, heads, width]


@torch.no_grad()
def _rotate(scheme: PositionScheme, which: str, heads: int, width: int) -> int | None:
    position = torch.zeros(1, 1, dtype=torch.long, device="cpu")
    given = torch.zeros(1, heads, 1, width, device="cpu")
    try:
        scheme = _with_values(scheme)
        tables = scheme.length_tables(position, position + 1)
        rotated = scheme.rotate_q(given, tables) if which == "q" else scheme.rotate_k(given, tables)
    except Exception:  # too narrow for it, or whatever a user's scheme raises
        return None
    return rotated.shape[-1]


def _with_values(scheme: PositionScheme) -> PositionScheme:
    """A copy with zeros in place of parameters on the meta device; the scheme itself where it has none."""
    if not any(parameter.is_meta for parameter in scheme.parameters()):
        return scheme
    filled = copy.deepcopy(scheme).to_empty(device="cpu")
    for parameter in filled.parameters():
        parameter.zero_()
    return filled
