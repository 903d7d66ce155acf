"""Sections that every page with evaluations has: loss by length and by position, passkey retrieval, and trained tasks."""

import math
from collections.abc import Sequence
from itertools import pairwise

from x_positional.errors import counted
from x_positional.evidence.comparison.statistics import (
    PAIRED_METHOD,
    PAIRED_WINDOWS_METHOD,
    T_METHOD,
    WINDOWS_METHOD,
)
from x_positional.evidence.evaluation.results import Evaluation, PositionLoss
from x_positional.evidence.report.answer import as_good, lowest
from x_positional.evidence.report.charts import INTEGER, Axis, Chart, Lines, Mark, Row, heat_map, ticks_of, times
from x_positional.evidence.report.page import Section
from x_positional.evidence.report.series import DIGITS, Series, Unit, estimate, interval_text, lengths_of
from x_positional.evidence.report.tables import Cell, Html, escaped, paragraph, table
from x_positional.plotting.words import number

TOKENS = "context length (tokens, log scale)"


def loss_section(series: Sequence[Series], marks: Sequence[Mark], trained: int | None, unit: Unit) -> Section:
    """Loss by context length: the chart, and the table with reasons where a loss is missing."""
    over = series[0].over if series else "seed"
    if not any(one.losses(length, unit) for one in series for length in lengths_of([one])):
        problems = [Html(f"<li>{escaped(f'{one.label}: {why}')}</li>") for one in series for why in one.problems]
        return Section(
            "Loss by context length", [paragraph("No loss was measured."), Html(f"<ul>{''.join(problems)}</ul>")]
        )
    chart = loss_chart(series, marks, trained, unit)
    note = (
        f"Bands and second lines: 95 % interval by Student's t over {over}s. Bold: lowest at this length, and all that are not "
        f"distinguishable from it (paired by {over}, not corrected for the number of comparisons)."
    )
    return Section("Loss by context length", [chart, loss_table(series, trained, unit), paragraph(note, "note")])


def loss_chart(
    series: Sequence[Series],
    marks: Sequence[Mark],
    trained: int | None,
    unit: Unit,
    *,
    title: str = "Loss by context length",
    labels: Sequence[str] | None = None,
    domain: tuple[float, float] | None = None,
) -> Chart:
    """Loss by context length, with bands."""
    rows = [row for one in series for row in _length_rows(one, trained, unit)]
    lengths = lengths_of(series)
    ends = (float(min(lengths)), float(max(lengths))) if len(lengths) > 1 else None
    x = Axis(TOKENS, "log2", ticks_of(lengths), trained, domain=ends)
    tooltip = {"series": "series", "length": "context length", "value": unit.name, "interval": "95 % interval"}
    shown = None if domain else frame(rows)
    y = Axis(f"loss ({unit.name})", domain=domain, frame=shown, cut=None if domain else _cut(rows, trained))
    spec = Lines(rows, x, y, labels or [one.label for one in series], marks, tooltip=tooltip).spec()
    caption = "Lower is better. Hover over a point for its values; click a name above to hide or show it."
    return Chart(title, spec, caption if shown is None else f"{caption} {BEYOND}")


def frame(rows: Sequence[Row]) -> tuple[float, float] | None:
    """The range of the means and half of it on either side, where a band is wider than that: it would flatten every line."""
    means = [row["y"] for row in rows]
    if not means:
        return None
    low, high = min(means), max(means)
    room = max((high - low) / 2, 0.02 * abs(high))
    wide = any(row["low"] < low - room or row["high"] > high + room for row in rows if "low" in row)
    return (low - room, high + room) if wide else None


def _cut(rows: Sequence[Row], trained: int | None) -> float | None:
    """Where to end the loss axis to see the lowest curves: twice the range within the trained length; None if all fits."""
    inside = [row["y"] for row in rows if trained is not None and row["x"] <= trained]
    if not inside:
        return None
    end = max(inside) + max(max(inside) - min(inside), 0.02 * max(inside))
    return end if max(row["y"] for row in rows) > end + (end - min(inside)) else None


def _length_rows(one: Series, trained: int | None, unit: Unit) -> list[Row]:
    rows: list[Row] = []
    for length in lengths_of([one]):
        mean = estimate(one.losses(length, unit))
        if mean is not None:
            row = {"series": one.label, "x": length, "y": mean.mean, "length": times(length, trained)}
            row |= {"value": number(mean.mean, DIGITS), "interval": interval_text(mean, one.over)}
            rows.append(row | ({} if mean.half is None else {"low": mean.low, "high": mean.high}))
    return rows


def loss_table(series: Sequence[Series], trained: int | None, unit: Unit) -> Html:
    """One row a series, one column a length; reasons where a loss is missing."""
    lengths = lengths_of(series)
    bold = {length: _bold(series, length, unit) for length in lengths}
    rows = [
        (one.label, [_loss_cell(one, length, one.label in bold[length], unit) for length in lengths]) for one in series
    ]
    return table([f"{unit.name} at", *(times(length, trained) for length in lengths)], rows)


def _bold(series: Sequence[Series], length: int, unit: Unit) -> set[str]:
    found = lowest(series, length, unit)
    return set() if found is None else {found[0].label, *as_good(series, found[0], length, unit)[0]}


def _loss_cell(one: Series, length: int, bold: bool, unit: Unit) -> Cell:
    mean, reasons = estimate(one.losses(length, unit)), "; ".join(one.reasons(length))
    if mean is None:
        return Cell("not measured", why=reasons or "no result at this length", kind="missing")
    kind, text = "number best" if bold else "number", number(mean.mean, DIGITS, zeros=True)
    return Cell(text, detail=interval_text(mean, one.over), why=reasons, value=mean.mean, kind=kind)


def position_section(series: Sequence[Series], marks: Sequence[Mark], unit: Unit) -> Section:
    """Loss by position inside the long window."""
    measured = [(one, e.positions) for one in series for e in one.evaluations.values() if e.positions is not None]
    lengths = sorted({positions.length for _, positions in measured})
    charts = [_position_chart(series, length, marks, unit) for length in lengths]
    return Section("Loss by position in the window", charts)


def _position_chart(series: Sequence[Series], length: int, marks: Sequence[Mark], unit: Unit) -> Chart:
    rows = [row for one in series for row in _position_rows(one, length, unit)]
    ends = (float(min(row["x"] for row in rows)), float(max(row["x"] for row in rows))) if rows else None
    x = Axis("position of the predicted token (log scale)", "log2", format=INTEGER, domain=ends)
    tooltip = {"series": "series", "where": "positions", "value": unit.name, "interval": "95 % interval"}
    inside = [mark for mark in marks if ends and ends[0] < mark.at < ends[1]]
    y = Axis(f"loss ({unit.name})", frame=frame(rows))
    spec = Lines(rows, x, y, [one.label for one in series], inside, points=False, tooltip=tooltip).spec()
    caption = "Mean loss of the tokens in each bin of positions. A rise past the trained length is where a model fails."
    caption = caption if y.frame is None else f"{caption} {BEYOND}"
    return Chart(f"Loss by position in windows of {length:,} tokens", spec, caption)


def _position_rows(one: Series, length: int, unit: Unit) -> list[Row]:
    found: dict[int, PositionLoss] = {
        seed: e.positions
        for seed, e in one.evaluations.items()
        if e.positions is not None and e.positions.length == length
    }
    rows: list[Row] = []
    edges = next((positions.edges for positions in found.values()), ())
    for index, (low, high) in enumerate(pairwise(edges)):
        losses = {seed: p.loss[index] for seed, p in found.items() if p.edges == edges}
        values = {seed: unit.of(loss, one.evaluations[seed]) for seed, loss in losses.items() if loss is not None}
        mean = estimate(values)
        if mean is None:
            continue
        row = {"series": one.label, "x": math.sqrt(max(low, 1) * max(high - 1, 1)), "y": mean.mean}
        row |= {"where": f"{low:,}" if high - low == 1 else f"{low:,} to {high - 1:,}"}
        row |= {"value": number(mean.mean, DIGITS), "interval": interval_text(mean, "seed")}
        rows.append(row | ({} if mean.half is None else {"low": mean.low, "high": mean.high}))
    return rows


def passkey_section(series: Sequence[Series]) -> Section:
    """A heat map a series: how often a hidden number was repeated, by length and depth."""
    charts = [_passkey_chart(one) for one in series if any(e.passkey for e in one.evaluations.values())]
    note = paragraph(
        "A number is hidden in filler text, and the model is asked for it. "
        "Cells: how many percent of the trials repeated it exactly. Depth 0 % is the start of the prompt, 100 % its end.",
        "note",
    )
    return Section("Passkey retrieval", [note, charts] if charts else [])


def _passkey_chart(one: Series) -> Chart:
    scores: dict[tuple[int, float], list] = {}
    for evaluation in one.evaluations.values():
        for score in evaluation.passkey:
            scores.setdefault((score.length, score.depth), []).append(score)
    rows: list[Row] = []
    for (length, depth), found in sorted(scores.items()):
        correct, trials = sum(s.correct for s in found), sum(s.trials for s in found)
        row = {
            "x": f"{length:,}",
            "y": f"{number(100 * depth)} %",
            "where": f"{length:,} tokens, depth {number(100 * depth)} %",
        }
        reason = next((s.reason for s in found if s.reason), None)
        share = correct / trials if trials else None
        row |= {"value": share, "text": "–" if share is None else f"{round(100 * share)}"}
        row["result"] = f"{correct} of {counted(trials, 'trial')}" if trials else reason or "not tried"
        rows.append(row)
    lengths = [f"{length:,}" for length in sorted({length for length, _ in scores})]
    depths = [f"{number(100 * depth)} %" for depth in sorted({depth for _, depth in scores})]
    spec = heat_map(rows, "prompt length (tokens)", "depth of the number", lengths, depths)
    return Chart(f"Passkey: {one.label}", spec, series=one.label)


def task_section(series: Sequence[Series]) -> Section:
    """Accuracy by length of each trained task."""
    names = list(dict.fromkeys(t.task for one in series for e in one.evaluations.values() for t in e.tasks))
    reasons = [
        (
            one.label,
            [Cell(score.task), Cell(f"{score.length:,}", value=score.length, kind="number"), Cell(score.reason)],
        )
        for one in series
        for e in one.evaluations.values()
        for score in e.tasks
        if score.reason
    ]
    blocks: list = [[_task_chart(series, name) for name in names]] if names else []
    if reasons:
        blocks.append(table(["not measured", "task", "length", "reason"], reasons))
    return Section("Trained tasks", blocks)


def _task_chart(series: Sequence[Series], task: str) -> Chart:
    rows: list[Row] = []
    scores = [(one, t) for one in series for e in one.evaluations.values() for t in e.tasks if t.task == task]
    lengths = sorted({score.length for _, score in scores})
    trained = [score.length for _, score in scores if score.trained]
    for one in series:
        for length in lengths:
            found = {i: s for i, (owner, s) in enumerate(scores) if owner is one and s.length == length}
            mean = estimate({i: 100 * s.accuracy for i, s in found.items() if s.accuracy is not None})
            exact = estimate({i: 100 * s.exact for i, s in found.items() if s.exact is not None})
            if mean is None:
                continue
            row = {"series": one.label, "x": length, "y": mean.mean, "length": f"{length:,} tokens"}
            row |= {"value": f"{number(mean.mean)} %", "exact": "–" if exact is None else f"{number(exact.mean)} %"}
            row |= {"interval": interval_text(mean, "seed", 3)}
            rows.append(
                row
                | (
                    {}
                    if mean.half is None
                    else {"low": max(0.0, mean.low or 0.0), "high": min(100.0, mean.high or 0.0)}
                )
            )
    ends = (float(lengths[0]), float(lengths[-1])) if len(lengths) > 1 else None
    x = Axis("input length (tokens, log scale)", "log2", ticks_of(lengths, 8), format=INTEGER, domain=ends)
    marks = [Mark(float(max(trained)), f"trained up to {max(trained):,}")] if trained else []
    tooltip = {
        "series": "series",
        "length": "input",
        "value": "tokens right",
        "exact": "answers right",
        "interval": "95 % interval",
    }
    y = Axis("answer tokens right (%)", domain=(0.0, 100.0))
    spec = Lines(rows, x, y, [one.label for one in series], marks, tooltip=tooltip, height=260).spec()
    return Chart(f"Task: {task}", spec)


def evaluation_sections(
    series: Sequence[Series], marks: Sequence[Mark], trained: int | None, unit: Unit
) -> list[Section]:
    """All sections about evaluations."""
    return [
        loss_section(series, marks, trained, unit),
        position_section(series, marks, unit),
        passkey_section(series),
        task_section(series),
    ]


def protocols(evaluations: Sequence[Evaluation]) -> list[str]:
    """Each protocol and text once, in words."""
    words = []
    for evaluation in evaluations:
        data = evaluation.data
        per_token = data.bytes_per_token
        size = "" if per_token is None else f", {number(per_token)} byte{'' if per_token == 1 else 's'} per token"
        scored = evaluation.protocol.rstrip(".")
        words.append(f"Scored: {scored}. Text: {data.name}, {counted(data.tokens, 'token')}{size}.")
    return list(dict.fromkeys(words))


BEYOND = "Bands that leave the picture go on beyond it."
OVER_SEEDS = f"Means: {T_METHOD}. Differences: {PAIRED_METHOD}."
OVER_WINDOWS = f"Means: {WINDOWS_METHOD}. Differences: {PAIRED_WINDOWS_METHOD}."
"""The named methods of the intervals of a page."""
