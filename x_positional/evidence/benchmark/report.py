"""Rows, targets and profiles as tables: on a console, and in Markdown for docs/performance.md."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from x_positional.evidence.benchmark.models import OURS
from x_positional.evidence.benchmark.profiling import Profile
from x_positional.evidence.benchmark.record import Measured, RowRecord
from x_positional.evidence.benchmark.targets import Target, Verdict


@dataclass(frozen=True)
class Sheet:
    """A table: a heading for each column, and lines of as many cells."""

    headings: Sequence[str]
    lines: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """The first column to the left, the others to the right."""
        rule = ["---", *["---:" for _ in self.headings[1:]]]
        return "\n".join(f"| {' | '.join(line)} |" for line in (self.headings, rule, *self.lines))

    def show(self, console: Console) -> None:
        """On a console."""
        table = Table(box=None, pad_edge=False, header_style="bold")
        for index, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if index == 0 else "right")
        for line in self.lines:
            table.add_row(*line)
        console.print(table)


HEADINGS = ("row", "side", "time", "tokens/s", f"÷ {OURS}", "of the limit", "machine reads", "agrees", "first call")
BANDWIDTH = HEADINGS.index("machine reads")


def sheet(rows: Sequence[RowRecord]) -> Sheet:
    """A line for each side of each row of a group: how x_positional compares, the share of the limit, whether outputs agree.
    Columns that are empty in every line are left out."""
    lines = [_line(row, name, side) for row in rows for name, side in row.sides.items() if side.samples]
    used = [index for index in range(len(HEADINGS)) if index < 2 or any(line[index] for line in lines)]
    headings = ["memory" if h == "time" and rows[0].group == "memory" else h for h in HEADINGS]
    return Sheet([headings[index] for index in used], [[line[index] for index in used] for line in lines])


def _line(row: RowRecord, name: str, side: Measured) -> list[str]:
    median, work, memory = side.median or 0.0, row.spec["work"], row.group == "memory"
    decode = work["kind"] == "decode"
    tokens = work["batch"] * (1 if decode else work["length"])
    against = None if name == OURS else row.ratio(name, OURS)
    return [
        row.title,
        name,
        mebibytes(median) if memory else duration(median),
        "" if memory else f"{tokens / median:,.0f}",
        "" if against is None else f"{against.median:.2f} ({against.low:.2f} to {against.high:.2f})",
        "" if side.fraction is None else f"{side.fraction:.0%}",
        _bandwidth(row) if name == next(iter(row.sides)) else "",
        _agrees(side.agrees, decode),
        "" if side.first is None else duration(side.first),
    ]


def _bandwidth(row: RowRecord) -> str:
    """The median of the rounds, and the range."""
    found = [rate / 1e9 for rate in row.limits.get("bandwidth", ())]
    return f"{statistics.median(found):.1f} GB/s ({min(found):.1f} to {max(found):.1f})" if found else ""


def _agrees(value: float | None, decode: bool) -> str:
    if value is None:
        return ""
    return f"{value:.0%} of tokens" if decode else f"{value:.0e}" if value else "equal"


def show_row(row: RowRecord, console: Console) -> None:
    """The table of a row under its title and the machine's bandwidth, and one line for each side that did not run."""
    reads = f", the machine reads {_bandwidth(row)}" if row.limits else ""
    console.print(row.title + reads, style="bold", markup=False, highlight=False)
    found = sheet([row])
    kept = [index for index, heading in enumerate(found.headings) if index and heading != HEADINGS[BANDWIDTH]]
    Sheet([found.headings[i] for i in kept], [[line[i] for i in kept] for line in found.lines]).show(console)
    for line in row.failures():
        console.print(f"  not measured: {line}", markup=False, highlight=False, soft_wrap=True)
    console.print()


def targets_of(found: Sequence[tuple[Target, Verdict]]) -> Sheet:
    """A line a target."""
    return Sheet(["work", "target", "measured", ""], [[t.work, t.wanted(), v.value, v.word] for t, v in found])


def count(found: Sequence[tuple[Target, Verdict]]) -> str:
    """How many targets are met, missed, and not measured."""
    words = [verdict.word for _, verdict in found]
    return ", ".join(f"{words.count(word)} {word}" for word in ("met", "missed", "not measured"))


def profiles(found: Mapping[str, Profile]) -> Sheet:
    """A line a part of a token's time, and its share; a column a side."""
    names = list(dict.fromkeys(part.name for profile in found.values() for part in profile.parts))
    lines = [["a token", *(duration(profile.seconds) for profile in found.values())]]
    for name in names:
        cells = []
        for profile in found.values():
            part = next((part for part in profile.parts if part.name == name), None)
            calls = "" if part is None or not part.calls else f", {part.calls:.0f} calls"
            cells.append(
                "" if part is None else f"{part.seconds / profile.seconds:.0%} ({duration(part.seconds)}{calls})"
            )
        lines.append([name, *cells])
    return Sheet(["where a token's time goes", *found], lines)


def largest(found: Iterable[tuple[str, Profile]]) -> Sheet:
    """The operators that take longest by themselves."""
    lines = [
        [f"{side}: {part.name}", duration(part.seconds), f"{part.calls:.1f}"]
        for side, profile in found
        for part in profile.largest
    ]
    return Sheet(["largest operators", "a token", "calls a token"], lines)


def duration(seconds: float) -> str:
    """With three digits: 1.41 s, 12.6 ms, 85.0 µs."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"


def mebibytes(count: float) -> str:
    """1234 MiB."""
    return f"{count / 2**20:,.0f} MiB"
