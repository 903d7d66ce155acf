"""The tables of the published checkpoint: longer contexts without training, beside transformers; windows without first tokens."""

from collections.abc import Iterator, Sequence

from benchmarks.evidence.claims import windows_of
from benchmarks.evidence.pages import interval
from benchmarks.evidence.store import Evidence
from x_positional.evidence.comparison.statistics import Interval, paired_interval, t_interval
from x_positional.evidence.extension.attempts import at
from x_positional.evidence.extension.results import Attempt, Extension

SINK_ROWS = {
    "all": "every token",
    "window": "the last {window:,}",
    "window-and-first": "the first {first} and the last {rest:,}",
}


def extended(evidence: Evidence) -> Iterator[str]:
    """A row a method: losses at the trained and the target length, and how far transformers' are from them."""
    extension = evidence.extension
    if extension is None:
        yield "Not measured yet."
        return
    lengths = (extension.trained_length, extension.target)
    head = " | ".join(f"{length:,}" for length in lengths)
    yield f"| method | {head} | cost at {lengths[0]:,} | transformers |"
    yield "|---|---:|---:|---:|---:|"
    unchanged = extension.attempts[0]
    for attempt in extension.attempts:
        if attempt.evaluation is None or attempt.tuned_tokens:
            continue
        losses = [_loss(attempt, length) for length in lengths]
        cost = "" if attempt is unchanged else interval(_paired(attempt, unchanged, lengths[0]), sign=True)
        yield f"| {attempt.label} | {' | '.join(losses)} | {cost} | {_apart(evidence, attempt, lengths)} |"


def in_float32_with_first_tokens(evidence: Evidence) -> Iterator[str]:
    """A row a method, without transformers, which has no `keep_first`."""
    found = evidence.streaming
    if found is None:
        return
    lengths = (found.trained_length, found.target)
    yield (
        f"\n`keep_first`, a window of the trained length with the first tokens, in float32 on {windows_text(found)}, "
        "beside two rows of the table above:\n"
    )
    yield f"| method | {' | '.join(f'{length:,}' for length in lengths)} |"
    yield "|---|---:|---:|"
    for attempt in found.attempts:
        yield f"| {attempt.label} | {' | '.join(_loss(attempt, length) for length in lengths)} |"


def _loss(attempt: Attempt, length: int) -> str:
    found = at(attempt, length)
    return "–" if found is None else f"{found.loss:.3f}"


def _paired(one: Attempt, other: Attempt, length: int) -> Interval | None:
    """The interval of one loss minus another over windows."""
    first, second = (at(attempt, length) for attempt in (one, other))
    if first is None or second is None:
        return None
    return paired_interval(first.windows, second.windows)


def _apart(evidence: Evidence, attempt: Attempt, lengths: Sequence[int]) -> str:
    """`within 0.12 %`; empty where transformers lacks the method."""
    found = apart(evidence, attempt, lengths)
    return "" if found is None else f"within {100 * found:.2f} %"


def apart(evidence: Evidence, attempt: Attempt, lengths: Sequence[int]) -> float | None:
    """The largest relative difference of mean losses, over the windows that transformers was measured on.

    None where transformers lacks the method or was not measured.
    """
    theirs = {} if evidence.reference is None else evidence.reference.losses.get(attempt.label, {})
    found = []
    for length in lengths:
        ours = at(attempt, length)
        windows = theirs.get(length, ())
        if ours is None or not windows:
            return None
        found.append(abs(sum(windows) / sum(ours.windows[: len(windows)]) - 1))
    return max(found)


def in_float32(evidence: Evidence) -> Iterator[str]:
    """What becomes of the difference without the rounding of bfloat16."""
    found = None if evidence.reference is None else evidence.reference.float32
    if found is not None and evidence.extension is not None:
        yield (
            f"\nUnchanged, the loss at {evidence.extension.target:,} depends on the rounding of bfloat16. In float32 it is "
            f"{found['x_positional']:.5f} in the first window, and {found['transformers']:.5f} in transformers."
        )


def windows_text(extension: Extension) -> str:
    """`8 windows of text, scored on the last 256 tokens of each`."""
    row = at(extension.attempts[0], extension.trained_length)
    if row is None or not row.targets or not row.windows:
        return "windows of text"
    return f"{len(row.windows)} windows of text, scored on the last {row.targets // len(row.windows)} tokens of each"


def streamed(evidence: Evidence, window: int, first: int) -> Iterator[str]:
    """A row for what attention sees: losses at each length."""
    if not evidence.sinks:
        yield "Not measured yet."
        return
    lengths = [row.length for row in next(iter(evidence.sinks.values())).lengths]
    yield f"| attention sees | {' | '.join(f'{length:,}' for length in lengths)} |"
    yield f"|---|{'---:|' * len(lengths)}"
    for name, text in SINK_ROWS.items():
        found = evidence.sinks.get(name)
        if found is not None:
            losses = (windows_of(found, length) for length in lengths)
            shown = " | ".join(interval(t_interval(list(row))) if row else "–" for row in losses)
            yield f"| {text.format(window=window, first=first, rest=window - first)} | {shown} |"
