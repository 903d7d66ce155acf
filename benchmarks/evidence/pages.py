"""The page of the leaderboard, from the JSON files: ranking by length, verdicts, how stable the ranking is."""

import shlex
import statistics
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from benchmarks.evidence.claims import CLAIMS
from benchmarks.evidence.grid import CONFIG, PROBED, TASKS, text_of
from benchmarks.evidence.store import Evidence
from benchmarks.evidence.verdicts import Part, Verdict
from x_positional.errors import ArgumentError
from x_positional.evidence.comparison.statistics import Correlation, Interval, spearman, t_interval

MARKS = {True: "holds", False: "fails", None: "open"}


def verdicts(evidence: Evidence) -> list[Verdict]:
    """One a claim."""
    return [Verdict(claim, tuple(claim.measure(evidence))) for claim in CLAIMS]


def interval(found: Interval | None, digits: int = 3, sign: bool = False) -> str:
    """A mean with its 95 % interval: `2.513 ± 0.021`."""
    if found is None:
        return "–"
    value = f"{found.mean:{'+' if sign else ''}.{digits}f}"
    return value if found.half is None else f"{value} ± {found.half:.{digits}f}"


def ranked(evidence: Evidence) -> list[str]:
    """Labels by the mean loss over all lengths past the trained one; those without such a loss by the loss at it, last."""
    lengths = evidence.comparison.lengths

    def key(label: str) -> tuple[int, float]:
        means = [mean for length in lengths if (mean := _mean(evidence.bits(label, length))) is not None]
        return (len(lengths) - len(means), sum(means[1:] or means) / max(1, len(means[1:] or means)))

    return sorted((label for label in evidence.labels if _measured(evidence, label)), key=key)


def _measured(evidence: Evidence, label: str) -> bool:
    return any(cell.label == label for cell in evidence.comparison.cells)


def _mean(values: dict[int, float]) -> float | None:
    return sum(values.values()) / len(values) if values else None


def leaderboard(evidence: Evidence) -> list[str]:
    """The table of losses, in bits per byte."""
    comparison = evidence.comparison
    head = [f"{n:,}" for n in comparison.lengths]
    rows = [
        f"| scheme | {' | '.join(head)} | training step | decoded token |",
        f"|---|{'---:|' * (len(head) + 2)}",
    ]
    for label in ranked(evidence):
        losses = [evidence.bits(label, length) for length in comparison.lengths]
        shown = [interval(t_interval(list(found.values())) if found else None) for found in losses]
        rows.append(
            f"| {label} | {' | '.join(shown)} | {_multiple(_steps(evidence), label)} | {_multiple(decoding(evidence), label)} |"
        )
    return rows


def _multiple(times: Mapping[str, float], label: str) -> str:
    """A time as a multiple of that of the fastest scheme."""
    return f"{times[label] / min(times.values()):.2f}" if label in times else "–"


def _steps(evidence: Evidence) -> Mapping[str, float]:
    return {} if evidence.cost is None else evidence.cost.step_seconds


def decoding(evidence: Evidence) -> dict[str, float]:
    """The median time of a decoded token, in seconds."""
    rounds = {} if evidence.cost is None else evidence.cost.decode_seconds
    return {label: statistics.median(times) for label, times in rounds.items()}


def missing(evidence: Evidence) -> Iterator[str]:
    """Why losses are missing, a line a scheme: its seeds or lengths, and the first reason."""
    found: dict[str, dict[str, str]] = {}
    for cell in evidence.comparison.cells:
        reasons = found.setdefault(cell.label, {})
        if cell.status != "done":
            reasons[f"seed {cell.seed}"] = cell.reason or cell.status
        for row in cell.evaluation.lengths if cell.evaluation else ():
            if row.loss is None:
                reasons[f"{row.length:,}"] = row.reason or "no reason given"
    for label, reasons in found.items():
        if reasons:
            yield f"- {label} ({', '.join(reasons)}): {next(iter(reasons.values())).splitlines()[0]}"


def verdict_table(found: Sequence[Verdict]) -> list[str]:
    """Claims with their statistics and verdicts."""
    rows = ["| claim | paper | measured here, with 95 % interval | verdict |", "|---|---|---|---|"]
    for verdict in found:
        claim = verdict.claim
        note = f"<br>*{claim.note}*" if claim.note else ""
        parts = "<br>".join(_part_words(part) for part in verdict.parts)
        rows.append(f"| **{claim.name}**. {claim.text}{note} | {claim.paper} | {parts} | **{verdict.word}** |")
    return rows


def _part_words(part: Part) -> str:
    if part.found is None:
        return f"{part.statistic}: {part.reason or 'not measured'}"
    shown = f"{part.statistic}: {interval(part.found, sign=True)}"
    claimed = f"claimed {part.side} {part.bound:g}"
    reason = f"; {part.reason}" if part.reason else ""
    return f"{shown} ({claimed}: {MARKS[part.holds]}{reason})"


def rankings(evidence: Evidence, length: int) -> dict[tuple[int, int], Correlation | None]:
    """The rank correlation of two seeds, for each pair of them, over the schemes that both have a loss of."""
    found = {}
    for one, other in combinations(evidence.comparison.seeds, 2):
        both = [bits for label in evidence.labels if {one, other} <= (bits := evidence.bits(label, length)).keys()]
        try:
            found[one, other] = spearman([bits[one] for bits in both], [bits[other] for bits in both])
        except ArgumentError:
            found[one, other] = None
    return found


def correlation(found: Correlation | None) -> str:
    """`0.93 (0.86 to 0.97)`."""
    if found is None:
        return "–"
    bounds = "" if found.low is None or found.high is None else f" ({found.low:.2f} to {found.high:.2f})"
    return f"{found.value:.2f}{bounds}"


def stability(evidence: Evidence) -> list[str]:
    """The table of rank correlations between seeds."""
    pairs = list(combinations(evidence.comparison.seeds, 2))
    names = " | ".join(f"seeds {one} and {other}" for one, other in pairs)
    rows = [f"| length | {names} | schemes |", f"|---:|{'---|' * len(pairs)}---:|"]
    for length in evidence.comparison.lengths:
        found = rankings(evidence, length)
        counts = [item.count for item in found.values() if item]
        cells = " | ".join(correlation(found[pair]) for pair in pairs)
        rows.append(f"| {length:,} | {cells} | {min(counts, default=0)} |")
    return rows


def task_table(evidence: Evidence, task: str) -> list[str]:
    """Accuracy by length, with intervals over seeds; exact answers are in the JSON files."""
    lengths = evidence.task_lengths
    rows = [f"| {task} | {' | '.join(map(str, lengths))} |", f"|---|{'---:|' * len(lengths)}"]
    for label in PROBED:
        found = [evidence.accuracy(label, task, length) for length in lengths]
        shown = [interval(t_interval(list(values.values())), 2) if values else "–" for values in found]
        rows.append(f"| {label} | {' | '.join(shown)} |")
    return rows


def commands(label: str, seed: int) -> list[str]:
    """What measures one cell again."""
    scheme = shlex.quote(text_of(label))
    return [
        f"python -m benchmarks.evidence --only {shlex.quote(label)} --seed {seed} --folder again",
        f"x-positional compare {CONFIG} --schemes {scheme} --seeds {seed},{seed}",
    ]


def probed(evidence: Evidence) -> list[str]:
    """The tables of all tasks, or a line that there are none."""
    if not evidence.probes:
        return ["Not measured yet."]
    return [line for task in TASKS for line in (*task_table(evidence, task), "")]
