"""Results of a comparison as data: one cell a scheme and seed."""

from typing import Any, Literal

from x_positional.evidence.evaluation.results import Evaluation, Record


class Cell(Record):
    """One scheme trained with one seed."""

    label: str
    """The scheme as the user wrote it, in short."""
    seed: int
    status: Literal["done", "failed", "not finite"]
    reason: str | None = None
    """Why there is no evaluation, or why some of it is missing."""
    steps: int = 0
    tokens: int = 0
    """Tokens trained on."""
    seconds: float = 0.0
    """Time of training."""
    tokens_per_second: float | None = None
    """Of training, the median over steps."""
    decode_tokens_per_second: float | None = None
    """Of sampling with the cache (without where there is none), one sequence."""
    peak_bytes: int | None = None
    """Largest memory of a training step above that before it; None where it cannot be measured."""
    curve: tuple[tuple[int, float], ...] = ()
    """Step and training loss in nats per token."""
    evaluation: Evaluation | None = None
    run: str | None = None
    """The run folder, relative to the comparison's."""


class Entry(Record):
    """A scheme of the comparison."""

    label: str
    layers: dict[str, Any]
    """What it changes in `model.layers`, as in a config file."""
    module: str | None = None
    """The Python module that registers a scheme of your own."""


class Comparison(Record):
    """A whole grid."""

    kind: Literal["comparison"] = "comparison"
    name: str
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    lengths: tuple[int, ...]
    trained_length: int
    equal: Literal["tokens", "time"]
    steps: int | None
    """Optimizer steps of every cell; None with equal time."""
    budget_seconds: float | None
    config: dict[str, Any]
    """The training config that all cells share."""
    cells: tuple[Cell, ...]
