"""The page of a comparison: schemes trained alike, their losses by length with intervals, their cost and their settings."""

from collections.abc import Callable, Mapping, Sequence

import yaml

from x_positional.errors import counted
from x_positional.evidence.comparison.results import Cell as Trained
from x_positional.evidence.comparison.results import Comparison
from x_positional.evidence.evaluation.results import Evaluation
from x_positional.evidence.report.answer import answers
from x_positional.evidence.report.charts import INTEGER, Axis, Chart, Lines, Mark, Row, Scatter, times
from x_positional.evidence.report.losses import OVER_SEEDS, evaluation_sections, loss_chart, protocols
from x_positional.evidence.report.page import Page, Section, render
from x_positional.evidence.report.pictures import Pictures
from x_positional.evidence.report.schemes import scheme_sections
from x_positional.evidence.report.series import (
    DIGITS,
    Series,
    Unit,
    difference,
    estimate,
    interval_text,
    lengths_of,
    of_comparison,
    unit_of,
)
from x_positional.evidence.report.tables import EMPTY, Cell, Html, folded, listing, paragraph, quantity, settings, table
from x_positional.plotting.words import number
from x_positional.training.config import flat

MIB = 2**20
CURVE_POINTS = 200


def comparison_html(comparison: Comparison, beside: Comparison | None, pictures: Mapping[str, Pictures]) -> str:
    """The page; with `beside` two runs next to each other."""
    series = of_comparison(comparison)
    unit = unit_of([*series, *(of_comparison(beside) if beside else [])])
    trained = comparison.trained_length
    marks = [Mark(float(trained), f"trained length {trained:,}")]
    known = [entry.label for entry in comparison.entries]
    sections = [
        *(_beside(comparison, beside, unit) if beside else []),
        *evaluation_sections(series, marks, trained, unit),
        cost_section(comparison, series, unit),
        curve_section(comparison, unit),
        *(one for label in pictures if label in known for one in scheme_sections(pictures[label], label)),
        cell_section(comparison),
        settings_section(comparison),
        method_section(comparison),
    ]
    labels = [*known]
    if beside is not None:
        labels += [entry.label for entry in beside.entries if entry.label not in labels]
    sentences = answers(series, trained, unit)
    failed = [cell for cell in comparison.cells if cell.status != "done"]
    if failed:
        sentences.append(
            f"{counted(len(failed), 'cell')} of {len(comparison.cells)} gave no complete result; see Cells."
        )
    title = f"Comparison: {comparison.name}"
    return render(Page(title, sections, facts(comparison), sentences, labels, "Schemes"))


def facts(comparison: Comparison) -> str:
    """The grid in one line."""
    schemes, seeds = counted(len(comparison.entries), "scheme"), counted(len(comparison.seeds), "seed")
    tokens = [cell.tokens for cell in comparison.cells if cell.tokens]
    if comparison.equal == "time":
        each = (
            f"{number(comparison.budget_seconds / 60)} minutes for the grid, shared equally"
            if comparison.budget_seconds
            else ""
        )
    elif tokens and min(tokens) == max(tokens):
        each = f"{counted(tokens[0], 'token')} each"
    else:
        each = "the same number of tokens each"
    return f"{schemes}, {seeds}, trained at {counted(comparison.trained_length, 'token')}, equal {comparison.equal}" + (
        f": {each}." if each else "."
    )


def cost_section(comparison: Comparison, series: Sequence[Series], unit: Unit) -> Section:
    """Speed and memory against loss, and a table of them."""
    charts = [
        chart
        for title, read in (
            ("Loss and training speed", lambda cell: cell.tokens_per_second),
            ("Loss and decoding speed", lambda cell: cell.decode_tokens_per_second),
        )
        if (chart := _cost_chart(comparison, series, unit, title, read)) is not None
    ]
    return Section("Cost and quality", [charts, cost_table(comparison)] if charts else [cost_table(comparison)])


def _cost_chart(
    comparison: Comparison,
    series: Sequence[Series],
    unit: Unit,
    title: str,
    read: Callable[[Trained], float | None],
) -> Chart | None:
    rows: list[Row] = []
    trained = comparison.trained_length
    lengths = lengths_of(series)
    for one in series:
        speed = _mean([read(cell) for cell in comparison.cells if cell.label == one.label])
        for length in lengths:
            mean = estimate(one.losses(length, unit))
            if speed is None or mean is None:
                continue
            row = {"series": one.label, "x": speed, "y": mean.mean, "choice": times(length, trained)}
            row |= {"speed": f"{number(speed)} tokens/s", "loss": f"{number(mean.mean, DIGITS)} {unit.name}"}
            row |= {"interval": interval_text(mean, one.over)}
            rows.append(row | ({} if mean.half is None else {"low": mean.low, "high": mean.high}))
    if not rows:
        return None
    x = Axis("tokens per second", format=",.3~r")
    tooltip = {
        "series": "series",
        "speed": "speed",
        "loss": "loss",
        "choice": "context length",
        "interval": "95 % interval",
    }
    choices = [times(length, trained) for length in lengths]
    first = times(trained, trained) if trained in lengths else choices[0]
    spec = Scatter(rows, x, Axis(f"loss ({unit.name})"), [one.label for one in series], tooltip, choices, first).spec()
    return Chart(title, spec, "Further right is faster, lower is better. Bars: 95 % interval over seeds.")


def cost_table(comparison: Comparison) -> Html:
    """Speed, memory and work of each scheme, the mean over seeds."""
    rows = []
    for entry in comparison.entries:
        cells = [cell for cell in comparison.cells if cell.label == entry.label]
        memory = _mean([cell.peak_bytes for cell in cells])
        rows.append(
            (
                entry.label,
                [
                    quantity(_mean([cell.tokens_per_second for cell in cells])),
                    quantity(_mean([cell.decode_tokens_per_second for cell in cells])),
                    quantity(None if memory is None else memory / MIB),
                    quantity(_mean([cell.tokens or None for cell in cells]), digits=4),
                    quantity(_mean([cell.seconds or None for cell in cells])),
                ],
            )
        )
    columns = [
        "scheme",
        "training (tokens/s)",
        "decoding (tokens/s)",
        "memory of a step (MiB)",
        "tokens trained on",
        "training (s)",
    ]
    return table(columns, rows)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [float(value) for value in values if value is not None]
    return sum(known) / len(known) if known else None


def curve_section(comparison: Comparison, unit: Unit) -> Section:
    """Training loss by step, the mean over seeds."""
    rows: list[Row] = []
    for entry in comparison.entries:
        cells = [cell for cell in comparison.cells if cell.label == entry.label and cell.curve]
        by_step: dict[int, list[float]] = {}
        for cell in cells:
            for step, loss in cell.curve:
                by_step.setdefault(step, []).append(unit.of(loss, cell.evaluation or _any_evaluation(comparison)))
        points = sorted(by_step.items())
        for step, losses in points[:: -(-len(points) // CURVE_POINTS) or 1]:
            mean = sum(losses) / len(losses)
            row = {"series": entry.label, "x": step, "y": mean, "step": f"{step:,}", "value": number(mean, DIGITS)}
            rows.append(row | {"seeds": counted(len(losses), "seed")})
    if not rows:
        return Section("Training", [])
    labels = [entry.label for entry in comparison.entries]
    tooltip = {"series": "series", "step": "step", "value": unit.name, "seeds": "mean over"}
    x, y = Axis("optimizer step", format=INTEGER), Axis(f"training loss ({unit.name})")
    spec = Lines(rows, x, y, labels, points=False, tooltip=tooltip).spec()
    return Section("Training", [Chart("Training loss by step", spec, "Mean over seeds, not smoothed.")])


def _any_evaluation(comparison: Comparison) -> Evaluation | None:
    """The evaluation of any cell: all have the same text, so a failed cell has its bytes per token."""
    return next((cell.evaluation for cell in comparison.cells if cell.evaluation is not None), None)


def cell_section(comparison: Comparison) -> Section:
    """Every cell with its status and reason; those without a complete result first."""
    columns = ["scheme", "seed", "status", "reason", "steps", "loss does not rise up to (tokens)", "run"]
    failed = [cell for cell in comparison.cells if cell.status != "done" or cell.reason]
    blocks = [table(columns, map(_cell_row, failed))] if failed else [paragraph("Every cell has a complete result.")]
    rest = table(columns, map(_cell_row, comparison.cells))
    return Section("Cells", [*blocks, folded(f"All {counted(len(comparison.cells), 'cell')}", rest)])


def _cell_row(cell: Trained) -> tuple[str, list[Cell]]:
    usable = None if cell.evaluation is None else cell.evaluation.usable
    cells = [
        Cell(str(cell.seed), value=cell.seed, kind="number"),
        Cell(cell.status, kind="" if cell.status == "done" else "bad"),
        Cell(cell.reason or ""),
        quantity(cell.steps or None, digits=6),
        quantity(None if usable is None else usable.length, digits=9),
        Cell(cell.run or "", code=True),
    ]
    return cell.label, cells


def settings_section(comparison: Comparison) -> Section:
    """What each scheme changes, and the config that all share."""
    rows = []
    for entry in comparison.entries:
        cell = next((c for c in comparison.cells if c.label == entry.label and c.evaluation is not None), None)
        model = None if cell is None or cell.evaluation is None else cell.evaluation.model
        differ = Cell("") if model is None else settings(model.settings)
        parameters = quantity(None if model is None else model.parameters, digits=9)
        rows.append((entry.label, [settings(entry.layers), differ, parameters]))
    shared = yaml.safe_dump(comparison.config, sort_keys=False, allow_unicode=True)
    blocks = [table(["scheme", "model.layers", "differs from its defaults in", "parameters"], rows)]
    return Section("Settings", [*blocks, listing("The config that all cells share", shared)])


def method_section(comparison: Comparison) -> Section:
    """Protocols and statistics."""
    evaluations = [cell.evaluation for cell in comparison.cells if cell.evaluation is not None]
    return Section("Method", [*map(paragraph, protocols(evaluations)), paragraph(OVER_SEEDS)])


def _beside(comparison: Comparison, other: Comparison, unit: Unit) -> list[Section]:
    """Loss by length of both runs on the same scale, and the difference where both have the scheme."""
    runs = [comparison, other]
    both = [of_comparison(run) for run in runs]
    labels = list(dict.fromkeys(one.label for series in both for one in series))
    means = [
        mean.mean if bound is None else bound
        for series in both
        for one in series
        for length in lengths_of([one])
        if (mean := estimate(one.losses(length, unit))) is not None
        for bound in (mean.low, mean.high)
    ]
    domain = (min(means), max(means)) if means and min(means) < max(means) else None
    charts = [
        loss_chart(
            series,
            [Mark(float(run.trained_length), f"trained length {run.trained_length:,}")],
            run.trained_length,
            unit,
            title=run.name,
            labels=labels,
            domain=domain,
        )
        for run, series in zip(runs, both, strict=True)
        if lengths_of(series)
    ]
    heads = [paragraph(f"{run.name}: {facts(run)}") for run in runs]
    return [Section("Two runs side by side", [*heads, charts, *_differences(runs, both, unit), *_config_changes(runs)])]


def _differences(runs: Sequence[Comparison], both: Sequence[Sequence[Series]], unit: Unit) -> list[Html]:
    """The loss of the second run minus that of the first, of every scheme and length that both have."""
    rows = []
    for one in both[0]:
        other = next((series for series in both[1] if series.label == one.label), Series(one.label, {}))
        for length in lengths_of([one]):
            first, second = one.losses(length, unit), other.losses(length, unit)
            means, gap = [estimate(first), estimate(second)], difference(second, first)
            if means[0] is None or means[1] is None:
                continue
            cells = [
                Cell(f"{length:,}", value=length, kind="number"),
                *(quantity(m.mean, digits=DIGITS) for m in means if m),
            ]
            apart = "number best" if gap is not None and gap.excludes_zero else "number"
            if gap is None:
                cells.append(EMPTY)
            else:
                detail = interval_text(gap, "seed", 3)
                cells.append(Cell(number(gap.mean), detail=detail, value=gap.mean, kind=apart))
            rows.append((one.label, cells))
    columns = ["scheme", "context length", *(run.name for run in runs), f"difference ({unit.name})"]
    note = "Differences are paired by seed; bold where the 95 % interval does not contain 0."
    return [table(columns, rows), paragraph(note, "note")] if rows else []


def _config_changes(runs: Sequence[Comparison]) -> list[Html]:
    """Keys of the shared config that differ."""
    one, two = (flat(run.config) for run in runs)
    rows = [
        (key, [Cell(str(one.get(key, "–")), code=True), Cell(str(two.get(key, "–")), code=True)])
        for key in dict.fromkeys([*one, *two])
        if one.get(key) != two.get(key)
    ]
    return [table(["config key that differs", *(run.name for run in runs)], rows, series=False)] if rows else []
