"""What a chart compares: schemes, models or methods, each with one evaluation a seed, and their means and intervals."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from x_positional.errors import counted
from x_positional.evidence.comparison.results import Comparison
from x_positional.evidence.comparison.statistics import Interval, paired_interval, t_interval
from x_positional.evidence.evaluation.results import Evaluation, LengthLoss
from x_positional.evidence.extension.results import Extension
from x_positional.plotting.words import number

DIGITS = 4
"""Significant digits of a loss."""


@dataclass(frozen=True)
class Unit:
    """The unit of losses on a page: bits per byte where the bytes of every text are known, otherwise bits per token."""

    name: str
    per_byte: bool

    def of(self, nats: float, evaluation: Evaluation | None) -> float:
        """A loss in nats per token, in this unit."""
        size = None if evaluation is None else evaluation.data.bytes_per_token
        return nats / math.log(2) / (size if self.per_byte and size else 1.0)


@dataclass(frozen=True)
class Series:
    """One scheme, model or method."""

    label: str
    evaluations: Mapping[int, Evaluation]
    """By seed."""
    problems: tuple[str, ...] = ()
    """Why seeds are missing."""
    over: Literal["seed", "window"] = "seed"
    """What intervals are over: seeds, or the windows of text of a single model."""

    def entries(self, length: int) -> dict[int, LengthLoss]:
        """What each seed has at a length."""
        found = {seed: one for seed, e in self.evaluations.items() for one in e.lengths if one.length == length}
        return dict(sorted(found.items()))

    def losses(self, length: int, unit: Unit) -> dict[int, float]:
        """The loss of each seed that has one, or of each window."""
        if self.over == "window":
            return {
                window: unit.of(loss, self.evaluations[seed])
                for seed, entry in self.entries(length).items()
                if entry.loss is not None
                for window, loss in enumerate(entry.windows or (entry.loss,))
            }
        return {
            seed: unit.of(entry.loss, self.evaluations[seed])
            for seed, entry in self.entries(length).items()
            if entry.loss is not None
        }

    def missing(self, length: int) -> tuple[str, ...]:
        """Why evaluations have no loss at a length, each reason once."""
        return tuple(dict.fromkeys(e.reason or "no loss" for e in self.entries(length).values() if e.loss is None))

    def reasons(self, length: int) -> tuple[str, ...]:
        """Why seeds have no loss at a length, those without an evaluation first, each reason once."""
        return tuple(dict.fromkeys([*self.problems, *self.missing(length)]))


def unit_of(series: Iterable[Series]) -> Unit:
    """The unit that every evaluation has."""
    evaluations = [evaluation for one in series for evaluation in one.evaluations.values()]
    known = bool(evaluations) and all(evaluation.data.bytes_per_token for evaluation in evaluations)
    return Unit("bits per byte", True) if known else Unit("bits per token", False)


def lengths_of(series: Iterable[Series]) -> list[int]:
    """All lengths that were measured, in order."""
    return sorted({loss.length for one in series for e in one.evaluations.values() for loss in e.lengths})


def of_comparison(comparison: Comparison) -> list[Series]:
    """One series a scheme, in the order of the entries."""
    return [
        Series(
            entry.label,
            {c.seed: c.evaluation for c in comparison.cells if c.label == entry.label and c.evaluation is not None},
            tuple(
                f"seed {cell.seed} {cell.status}: {cell.reason or 'no reason was recorded'}"
                for cell in comparison.cells
                if cell.label == entry.label and cell.evaluation is None
            ),
        )
        for entry in comparison.entries
    ]


def of_evaluations(evaluations: Sequence[Evaluation]) -> list[Series]:
    """One series a model. Equal names are numbered."""
    labels = _distinct([evaluation.model.name for evaluation in evaluations])
    return [Series(label, {0: one}, over="window") for label, one in zip(labels, evaluations, strict=True)]


def of_extension(extension: Extension) -> list[Series]:
    """One series a method."""
    labels = _distinct([attempt.label for attempt in extension.attempts])
    return [
        Series(
            label,
            {} if attempt.evaluation is None else {0: attempt.evaluation},
            (attempt.reason,) if attempt.evaluation is None and attempt.reason else (),
            over="window",
        )
        for label, attempt in zip(labels, extension.attempts, strict=True)
    ]


def _distinct(names: Sequence[str]) -> list[str]:
    seen: list[str] = []
    for name in names:
        again = sum(label == name or label.startswith(f"{name} (") for label in seen)
        seen.append(f"{name} ({again + 1})" if again else name)
    return seen


def estimate(values: Mapping[int, float]) -> Interval | None:
    """The mean over seeds with its interval; None without values."""
    return t_interval(list(values.values())) if values else None


def difference(values: Mapping[int, float], reference: Mapping[int, float]) -> Interval | None:
    """The mean difference over the seeds that both have, with its interval; None where they share none."""
    shared = [seed for seed in values if seed in reference]
    return paired_interval([values[s] for s in shared], [reference[s] for s in shared]) if shared else None


def interval_text(interval: Interval, over: str, digits: int = DIGITS) -> str:
    """`1.80 to 1.86, 3 seeds`, or why there is no interval."""
    if interval.low is None or interval.high is None:
        return f"1 {over}: no interval"
    return f"{bounds(interval, digits)}, {counted(interval.count, over)}"


def bounds(interval: Interval, digits: int = DIGITS) -> str:
    """`1.80 to 1.86`."""
    return f"{number(interval.low or 0.0, digits, zeros=True)} to {number(interval.high or 0.0, digits, zeros=True)}"
