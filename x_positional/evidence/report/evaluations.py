"""The page of one or several evaluations."""

from collections.abc import Sequence

from x_positional.errors import counted
from x_positional.evidence.evaluation.results import Evaluation
from x_positional.evidence.report.answer import answers
from x_positional.evidence.report.charts import Mark
from x_positional.evidence.report.losses import OVER_WINDOWS, evaluation_sections, protocols
from x_positional.evidence.report.page import Page, Section, render
from x_positional.evidence.report.series import Series, of_evaluations, unit_of
from x_positional.evidence.report.tables import Cell, paragraph, quantity, settings, table
from x_positional.plotting.words import number


def evaluation_html(evaluations: Sequence[Evaluation]) -> str:
    """The page."""
    series = of_evaluations(evaluations)
    unit, labels = unit_of(series), [one.label for one in series]
    lengths = {evaluation.model.trained_length for evaluation in evaluations}
    trained = next(iter(lengths)) if len(lengths) == 1 else None
    marks = [Mark(float(length), f"trained length {length:,}") for length in sorted(one for one in lengths if one)][:3]
    sentences = [*answers(series, trained, unit), *(_usable(one, evaluations[i]) for i, one in enumerate(series))]
    sections = [
        *evaluation_sections(series, marks, trained, unit),
        _models(series, evaluations),
        Section(
            "Method",
            [*map(paragraph, protocols(evaluations)), paragraph(OVER_WINDOWS)],
        ),
    ]
    title = f"Evaluation: {labels[0]}" if len(labels) == 1 else f"Evaluation of {counted(len(labels), 'model')}"
    return render(Page(title, sections, _facts(evaluations), [one for one in sentences if one], labels, "Models"))


def _usable(one: Series, evaluation: Evaluation) -> str:
    usable = evaluation.usable
    if usable is None:
        return ""
    rule = usable.rule.strip().rstrip(".")
    return f"{one.label}: the loss does not rise up to {counted(usable.length, 'token')} ({rule})."


def _facts(evaluations: Sequence[Evaluation]) -> str:
    texts = list(dict.fromkeys(evaluation.data.name for evaluation in evaluations))
    seconds = sum(evaluation.seconds for evaluation in evaluations)
    return f"Text: {', '.join(texts)}. Measured in {number(seconds)} s."


def _models(series: Sequence[Series], evaluations: Sequence[Evaluation]) -> Section:
    rows = [
        (
            one.label,
            [
                Cell(evaluation.model.position),
                settings(evaluation.model.settings),
                quantity(evaluation.model.trained_length, digits=9),
                quantity(evaluation.model.parameters, digits=12),
                quantity(None if evaluation.usable is None else evaluation.usable.length, digits=9),
            ],
        )
        for one, evaluation in zip(series, evaluations, strict=True)
    ]
    columns = [
        "model",
        "position scheme",
        "settings that differ from the defaults",
        "trained length (tokens)",
        "parameters",
        "loss does not rise up to (tokens)",
    ]
    return Section("Models and settings", [table(columns, rows)])
