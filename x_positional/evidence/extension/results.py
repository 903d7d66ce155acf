"""Results of extending a model, as data."""

from typing import Any, Literal

from x_positional.evidence.evaluation.results import Evaluation, Record


class Attempt(Record):
    """One method, without or with fine-tuning."""

    label: str
    """The method in short: `none`, `yarn x4`."""
    settings: dict[str, Any]
    """The scheme's config, as in a config file."""
    evaluation: Evaluation | None
    reason: str | None = None
    """Why it could not be evaluated."""
    inside: float | None = None
    """Loss at the trained length, minus that of the unchanged model there, in nats per token: what the method costs."""
    outside: float | None = None
    """Loss at the target length, in nats per token."""
    tuned_tokens: int = 0
    """Tokens of fine-tuning; 0 is none."""


class Extension(Record):
    """Everything that `x-positional extend` measures."""

    kind: Literal["extension"] = "extension"
    name: str
    trained_length: int
    target: int
    attempts: tuple[Attempt, ...]
    """The unchanged model first, then by rank."""
    chosen: str | None
    """Label of the attempt with the lowest loss at the target length, or of the one that was asked for."""
    weights: str | None = None
    """Identifies the weights and their dtype, so that a later session knows what was measured."""
    folder: str | None = None
    """The folder it was written to."""
    format: Literal["hf", "native"] | None = None
    """`hf`: transformers reads the folder. `native`: x_positional alone does."""
    format_reason: str | None = None
    """Why transformers cannot read it."""
