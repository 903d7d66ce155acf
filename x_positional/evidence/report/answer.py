"""The result in a few sentences: which series is lowest at the trained length and at the longest, and which are as good."""

from collections.abc import Sequence

from x_positional.evidence.comparison.statistics import Interval
from x_positional.evidence.report.series import DIGITS, Series, Unit, difference, estimate, interval_text, lengths_of
from x_positional.plotting.words import number

MOST_NAMES = 8


def answers(series: Sequence[Series], trained: int | None, unit: Unit) -> list[str]:
    """A sentence for the trained length and one for the longest."""
    lengths = lengths_of(series)
    if not lengths:
        return ["No losses were measured."]
    within = [length for length in lengths if trained is None or length <= trained]
    first = within[-1] if within and trained is not None else lengths[0]
    return [_answer(series, length, trained, unit) for length in dict.fromkeys([first, lengths[-1]])]


def lowest(series: Sequence[Series], length: int, unit: Unit) -> tuple[Series, Interval] | None:
    """The series with the lowest mean loss at a length; None where nothing was measured."""
    found = [(one, mean) for one in series if (mean := estimate(one.losses(length, unit))) is not None]
    return min(found, key=lambda pair: pair[1].mean) if found else None


def as_good(series: Sequence[Series], best: Series, length: int, unit: Unit) -> tuple[list[str], list[str]]:
    """Labels whose difference from the best has an interval with 0 in it, and labels without an interval."""
    same, unknown = [], []
    reference = best.losses(length, unit)
    for one in series:
        values = one.losses(length, unit)
        if one is best or not values:
            continue
        gap = difference(values, reference)
        if gap is None or gap.half is None:
            unknown.append(one.label)
        elif not gap.excludes_zero:
            same.append(one.label)
    return same, unknown


def _answer(series: Sequence[Series], length: int, trained: int | None, unit: Unit) -> str:
    at = f"At {_in_words(length, trained)}"
    found = lowest(series, length, unit)
    if found is None:
        return f"{at}, nothing could be measured."
    best, mean = found
    value = f"{number(mean.mean, DIGITS)} {unit.name}"
    measured = [one for one in series if one.losses(length, unit)]
    if len(series) == 1:
        return f"{at}, the loss is {value}{_spread(best, mean)}."
    text = f"{at}, {_quoted(best.label)} has the lowest loss: {value}{_spread(best, mean)}."
    missing = [one.label for one in series if one not in measured]
    return " ".join([text, *_rest(series, best, length, unit), *_missing(missing)])


def _spread(best: Series, mean: Interval) -> str:
    return f" (95 % interval {interval_text(mean, best.over)})" if mean.half is not None else f" (1 {best.over})"


def _rest(series: Sequence[Series], best: Series, length: int, unit: Unit) -> list[str]:
    """Sentences about the others."""
    same, unknown = as_good(series, best, length, unit)
    others = [one for one in series if one is not best and one.losses(length, unit)]
    sentences = []
    if not others:
        return ["Nothing else could be measured there."]
    if same:
        sentences.append(f"Not distinguishable from it: {_names(same)}.")
    if unknown:
        sentences.append(
            f"Differences from {_names(unknown)} have no interval: that takes two {best.over}s that both have."
        )
    if not same and not unknown:
        gaps = {one.label: difference(one.losses(length, unit), best.losses(length, unit)) for one in others}
        label, gap = min(((k, v) for k, v in gaps.items() if v is not None), key=lambda pair: pair[1].mean)
        by = f"{number(gap.mean, 3)} ({number(gap.low or 0, 3)} to {number(gap.high or 0, 3)})"
        sentences.append(f"The next, {_quoted(label)}, is higher by {by}, which is distinguishable.")
    return sentences


def _missing(labels: Sequence[str]) -> list[str]:
    return [f"Not measured there: {_names(labels)}; the table gives the reasons."] if labels else []


def _names(labels: Sequence[str]) -> str:
    more, labels = len(labels) - MOST_NAMES, [_quoted(label) for label in labels]
    if more > 0:
        return f"{', '.join(labels[:MOST_NAMES])} and {more} more"
    return labels[0] if len(labels) == 1 else f"{', '.join(labels[:-1])} and {labels[-1]}"


def _quoted(label: str) -> str:
    """A label that reads as one in a sentence: `none` is a scheme."""
    return f"“{label}”"


def _in_words(length: int, trained: int | None) -> str:
    if trained is None:
        return f"{length:,} tokens"
    if length == trained:
        return f"the trained length of {length:,} tokens"
    return f"{length:,} tokens, {number(length / trained)} times the trained length"
