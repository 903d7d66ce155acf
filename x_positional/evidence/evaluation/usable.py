"""The usable length: up to which length the loss does not rise, by a rule that windows scored at every length allow."""

import math
from collections.abc import Sequence

from x_positional.evidence.evaluation.options import TOLERANCE
from x_positional.evidence.evaluation.results import LengthLoss, UsableLength

ERRORS = 2.0
"""Standard errors of a rise that count as noise."""


def paired(one: LengthLoss, other: LengthLoss) -> tuple[float, float | None]:
    """The mean over windows of the loss of `one` minus that of `other`, and its standard error; None for a single window.

    Both must have losses of the same windows.
    """
    return mean_and_error([a - b for a, b in zip(one.windows, other.windows, strict=True)])


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and its standard error; None for a single value."""
    count = len(values)
    mean = math.fsum(values) / count
    if count == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (count - 1) / count)


def usable_length(lengths: Sequence[LengthLoss], tolerance: float = TOLERANCE) -> UsableLength | None:
    """The longest length at which the loss does not rise, and at all shorter ones; None where the shortest has no loss.

    Args:
        lengths: In ascending order, of the same windows.
        tolerance: The rise allowed, in nats per token.
    """
    usable: LengthLoss | None = None
    best: LengthLoss | None = None
    for entry in lengths:
        if entry.loss is None or (best is not None and rises(entry, best, tolerance)):
            break
        usable = entry
        best = entry if best is None or best.loss is None or entry.loss < best.loss else best
    return None if usable is None else UsableLength(length=usable.length, tolerance=tolerance, rule=rule(tolerance))


def rises(entry: LengthLoss, best: LengthLoss, tolerance: float) -> bool:
    """Whether the loss is above that of a shorter length by more than the tolerance, and by more than noise."""
    rise, error = paired(entry, best)
    return rise > max(tolerance, 0.0 if error is None else ERRORS * error)


def rule(tolerance: float) -> str:
    """The rule in words."""
    return (
        "the longest length whose mean loss, and that of every shorter length measured, exceeds the lowest loss of the lengths "
        f"below it by at most {tolerance:g} nats per token, or by at most {ERRORS:g} standard errors of the difference paired "
        "over windows"
    )
