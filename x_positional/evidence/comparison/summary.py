"""The numbers that a comparison's tables and pictures show: means over seeds with intervals, and paired differences."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

from x_positional.errors import counted
from x_positional.evidence.comparison.results import Cell, Comparison
from x_positional.evidence.comparison.statistics import PAIRED_METHOD, T_METHOD, Interval
from x_positional.evidence.report.series import difference, estimate, of_comparison, unit_of


@dataclass(frozen=True)
class AtLength:
    """One scheme at one context length."""

    label: str
    length: int
    loss: Interval | None
    """In the unit of the comparison, over the seeds that have a loss; None where none has."""
    difference: Interval | None
    """Minus the loss of the first scheme, paired by seed; None for the first scheme, and where no seed has both."""
    reason: str | None = None
    """Why a seed has no loss."""


@dataclass(frozen=True)
class Cost:
    """What one scheme costs, the median over seeds; None where nothing was measured."""

    label: str
    tokens: int | None
    """Trained on."""
    seconds: float | None
    """Of training."""
    train_speed: float | None
    """Tokens per second."""
    decode_speed: float | None
    """Tokens per second."""
    peak_bytes: int | None


def unit(comparison: Comparison) -> str:
    """`bits per byte` where the text of every cell is known, otherwise `bits per token`."""
    return unit_of(of_comparison(comparison)).name


def losses(comparison: Comparison) -> dict[str, dict[int, dict[int, float]]]:
    """Every loss by scheme, length and seed, in the unit of the comparison."""
    series = of_comparison(comparison)
    shown = unit_of(series)
    return {one.label: {length: one.losses(length, shown) for length in comparison.lengths} for one in series}


def by_length(comparison: Comparison) -> list[AtLength]:
    """Every scheme at every length, in the order of the comparison."""
    series, found = of_comparison(comparison), []
    first, shown = series[0], unit_of(series)
    for one in series:
        for length in comparison.lengths:
            own = one.losses(length, shown)
            paired = None if one is first else difference(own, first.losses(length, shown))
            found.append(AtLength(one.label, length, estimate(own), paired, next(iter(one.missing(length)), None)))
    return found


def costs(comparison: Comparison) -> list[Cost]:
    """What every scheme costs."""

    def middle(label: str, read: Callable[[Cell], float | None]) -> float | None:
        values = [value for cell in _cells(comparison, label) if (value := read(cell)) is not None]
        return statistics.median(values) if values else None

    return [
        Cost(
            label=entry.label,
            tokens=_whole(middle(entry.label, lambda cell: cell.tokens or None)),
            seconds=middle(entry.label, lambda cell: cell.seconds or None),
            train_speed=middle(entry.label, lambda cell: cell.tokens_per_second),
            decode_speed=middle(entry.label, lambda cell: cell.decode_tokens_per_second),
            peak_bytes=_whole(middle(entry.label, lambda cell: cell.peak_bytes)),
        )
        for entry in comparison.entries
    ]


def notes(comparison: Comparison) -> list[str]:
    """How the numbers were made, and what is missing."""
    lines = []
    if len(comparison.seeds) == 1:
        lines.append(
            "One seed: no intervals. Differences between schemes may be chance; --seeds 3 or more shows by how much."
        )
    else:
        lines.append(f"Intervals: {T_METHOD}. Differences: {PAIRED_METHOD}; * marks those whose interval excludes 0.")
    protocol = next((cell.evaluation.protocol for cell in comparison.cells if cell.evaluation is not None), None)
    if protocol is not None:
        lines.append(f"Loss: {protocol}.")
    budget = (
        "" if comparison.budget_seconds is None else f" (training budget of the grid {comparison.budget_seconds:g} s)"
    )
    equal = f"{comparison.steps:,} steps" if comparison.steps is not None else "the same training time"
    lines.append(f"Every cell: {equal}{budget}, trained at {comparison.trained_length} tokens.")
    missing = len(comparison.entries) * len(comparison.seeds) - len(comparison.cells)
    if missing:
        lines.append(f"{counted(missing, 'cell is', 'cells are')} not done; the same command continues.")
    for cell in comparison.cells:
        if cell.status != "done":
            lines.append(f"{cell.label}, seed {cell.seed}: {cell.status}: {cell.reason}")
    return lines + _missing_lengths(comparison)


def _missing_lengths(comparison: Comparison) -> list[str]:
    """Which schemes have no loss at which lengths, with the first reason."""
    missing: dict[str, list[AtLength]] = {}
    for place in by_length(comparison):
        if place.reason is not None:
            missing.setdefault(place.label, []).append(place)
    return [
        f"{label} has no loss at {', '.join(f'{place.length:,}' for place in places)}: {places[0].reason}"
        for label, places in missing.items()
    ]


def _cells(comparison: Comparison, label: str) -> list[Cell]:
    return [cell for cell in comparison.cells if cell.label == label]


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
