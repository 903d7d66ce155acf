"""The page of an extension: what each method saves past the trained length, and what it costs inside."""

from collections.abc import Sequence

from x_positional.errors import counted
from x_positional.evidence.extension.results import Attempt, Extension
from x_positional.evidence.report.charts import Axis, Chart, Mark, Row, Scatter, times
from x_positional.evidence.report.losses import OVER_WINDOWS, evaluation_sections, protocols
from x_positional.evidence.report.page import Page, Section, render
from x_positional.evidence.report.series import DIGITS, Series, Unit, estimate, interval_text, of_extension, unit_of
from x_positional.evidence.report.tables import EMPTY, Cell, Html, paragraph, quantity, settings, table
from x_positional.plotting.words import number


def extension_html(extension: Extension) -> str:
    """The page."""
    series = of_extension(extension)
    unit, trained, target = unit_of(series), extension.trained_length, extension.target
    marks = [Mark(float(trained), f"trained length {trained:,}")]
    if target != trained:
        marks.append(Mark(float(target), f"target {target:,}"))
    evaluations = [attempt.evaluation for attempt in extension.attempts if attempt.evaluation is not None]
    sections = [
        Section("Methods by rank", [_ranking(extension, series, unit), *_tradeoff(extension, series, unit)]),
        *evaluation_sections(series, marks, trained, unit),
        Section("Settings", [table(["method", "position scheme"], _settings(series, extension.attempts))]),
        Section(
            "Method",
            [*map(paragraph, protocols(evaluations)), paragraph(OVER_WINDOWS)],
        ),
    ]
    facts = (
        f"Trained on {counted(trained, 'token')}, extended to {target:,}: {number(target / trained)} times the length."
    )
    labels = [one.label for one in series]
    return render(
        Page(f"Extension: {extension.name}", sections, facts, _answer(extension, series, unit), labels, "Methods")
    )


def _answer(extension: Extension, series: Sequence[Series], unit: Unit) -> list[str]:
    """What the unchanged model does at the target, and what the best method does."""
    target, trained = extension.target, extension.trained_length
    sentences = []
    if series:
        sentences.append(_unchanged(series[0], trained, target, unit))
    means = [(one, mean) for one in series[1:] if (mean := estimate(one.losses(target, unit))) is not None]
    if means:
        best, mean = min(means, key=lambda pair: pair[1].mean)
        cost = _cost(best, series[0], trained, unit)
        inside = "" if cost is None else f" Inside the trained length it changes the loss by {_signed(cost)}."
        sentences.append(
            f"{best.label} has the lowest loss there: {number(mean.mean, DIGITS)} {unit.name} "
            f"(95 % interval {interval_text(mean, best.over)}).{inside}"
        )
    elif len(series) > 1:
        sentences.append("No method could be measured at the target length.")
    if extension.folder:
        sentences.append(f"{extension.chosen} was written to {extension.folder}.")
    return sentences


def _unchanged(one: Series, trained: int, target: int, unit: Unit) -> str:
    inside, outside = estimate(one.losses(trained, unit)), estimate(one.losses(target, unit))
    if outside is None:
        reasons = "; ".join(one.reasons(target)) or "no result"
        return f"Unchanged, the model could not be measured at {target:,} tokens: {reasons}."
    text = f"Unchanged, the loss at {target:,} tokens is {number(outside.mean, DIGITS)} {unit.name}"
    return text + (
        "." if inside is None else f", against {number(inside.mean, DIGITS)} at the trained length of {trained:,}."
    )


def _cost(one: Series, unchanged: Series, trained: int, unit: Unit) -> float | None:
    with_method, without = estimate(one.losses(trained, unit)), estimate(unchanged.losses(trained, unit))
    return None if with_method is None or without is None else with_method.mean - without.mean


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{number(value)}"


def _ranking(extension: Extension, series: Sequence[Series], unit: Unit) -> Html:
    """One row a method: what it costs, what it saves, how much it was tuned."""
    trained, target = extension.trained_length, extension.target
    rows, chosen = [], "written" if extension.folder else "yes"
    for one, attempt in zip(series, extension.attempts, strict=True):
        cost, mean = _cost(one, series[0], trained, unit), estimate(one.losses(target, unit))
        reasons = "; ".join(dict.fromkeys([*one.reasons(target), *([attempt.reason] if attempt.reason else [])]))
        outside = Cell("not measured", why=reasons or "no result at this length", kind="missing")
        if mean is not None:
            text, detail = number(mean.mean, DIGITS, zeros=True), interval_text(mean, one.over)
            outside = Cell(text, detail=detail, why=reasons, value=mean.mean, kind="number")
        rows.append(
            (
                one.label,
                [
                    outside,
                    EMPTY if cost is None else Cell(_signed(cost), value=cost, kind="number"),
                    quantity(attempt.tuned_tokens, digits=9),
                    Cell(chosen if attempt.label == extension.chosen else ""),
                ],
            )
        )
    columns = [
        "method",
        f"{unit.name} at {times(target, trained)}",
        f"change at the trained length of {trained:,}",
        "tokens of fine-tuning",
        "chosen",
    ]
    return table(columns, rows)


def _tradeoff(extension: Extension, series: Sequence[Series], unit: Unit) -> list[Chart]:
    """The loss at the target against the change inside the trained length."""
    trained, target = extension.trained_length, extension.target
    rows: list[Row] = []
    for one in series:
        cost, mean = _cost(one, series[0], trained, unit), estimate(one.losses(target, unit))
        if cost is None or mean is None:
            continue
        row = {
            "series": one.label,
            "x": cost,
            "y": mean.mean,
            "cost": _signed(cost),
            "value": number(mean.mean, DIGITS),
        }
        row |= {"interval": interval_text(mean, one.over)}
        rows.append(row | ({} if mean.half is None else {"low": mean.low, "high": mean.high}))
    if len(rows) < 2:
        return []
    x = Axis(f"change at the trained length ({unit.name})")
    y = Axis(f"loss at {target:,} tokens ({unit.name})")
    tooltip = {"series": "method", "cost": "change inside", "value": "loss at the target", "interval": "95 % interval"}
    spec = Scatter(rows, x, y, [one.label for one in series], tooltip).spec()
    return [
        Chart(
            "What each method costs and saves", spec, "Lower is better past the trained length, further left inside it."
        )
    ]


def _settings(series: Sequence[Series], attempts: Sequence[Attempt]) -> list[tuple[str, list[Cell]]]:
    return [(one.label, [settings(attempt.settings)]) for one, attempt in zip(series, attempts, strict=True)]
