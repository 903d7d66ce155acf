"""What is measured: schemes, seeds, lengths, and the schemes that are also tried on tasks."""

from x_positional.errors import UserError, listed
from x_positional.evidence.comparison.entries import read_entries
from x_positional.evidence.comparison.results import Entry

SEEDS = (0, 1, 2)
LENGTHS = (256, 512, 1024, 2048, 4096)
WINDOWS, TARGETS = 8, 128
"""Scored windows of the validation text and targets in each, the same at every length and for every scheme."""
CONFIG = "configs/evidence.yaml"

SCHEMES = (
    "none",
    "absolute",
    "sinusoidal",
    "rope",
    "xpos",
    "polar",
    "alibi",
    "kerple",
    "fire={kind: fire, threshold: 64.0}",
    "sandwich",
    "t5",
    "gated_t5",
    "relative_logits={kind: relative_logits, extent: 128}",
    "dynamic",
    "forgetting",
    "forgetting+rope",
    "cable",
    "cope",
    "shaw",
    "transformer_xl",
    "ssmax+rope",
    "alibi+rope",
    "rope and none every 3rd={pattern: [{position: rope}, {position: rope}, {position: none}]}",
    "windowed rope and none={pattern: [{position: rope, window: 64}, {position: rope, window: 64}, {position: none}]}",
)
"""Entries as `x-positional compare --schemes` reads them. FIRE's threshold starts at a quarter of the trained length: its default,
512, is more than the trained length. DeBERTa is left out: a cell takes over 90 s."""


def entries() -> tuple[Entry, ...]:
    """The schemes as data. Raises UserError with every entry that cannot be read."""
    found, problems = read_entries(SCHEMES)
    if problems:
        raise UserError(listed("the grid cannot be read:", problems))
    return tuple(found)


def text_of(label: str) -> str:
    """The entry with this label, as on the command line."""
    return next(text for text in SCHEMES if text.split("=")[0] == label)


PROBED = ("none", "sinusoidal", "rope", "xpos", "alibi", "kerple", "fire", "t5")
"""Schemes that are also trained on tasks."""
TASKS = ("copy", "one_symbol", "repeat")
EXACT = {"one_symbol"}
"""Tasks that are scored by exact answers: given the right tokens before it, any but the end of a repeated symbol is trivial."""
