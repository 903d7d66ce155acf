"""Reports for eyes: one self-contained HTML page of an evaluation, a comparison, an extension, or of what schemes do."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from x_positional.errors import ArgumentError, import_extra
from x_positional.evidence.comparison.results import Comparison
from x_positional.evidence.evaluation.results import Evaluation
from x_positional.evidence.extension.results import Extension
from x_positional.evidence.report.pictures import Pictures, measure, pictures_of

__all__ = [
    "Pictures",
    "comparison_page",
    "evaluation_page",
    "extension_page",
    "measure",
    "pictures_of",
    "plot_page",
    "write_page",
]


def evaluation_page(evaluations: Sequence[Evaluation]) -> str:
    """The page of one or several models. Raises MissingExtra, ArgumentError."""
    _require()
    if not evaluations:
        raise ArgumentError("no evaluations to show; give at least one")
    from x_positional.evidence.report.evaluations import evaluation_html

    return evaluation_html(evaluations)


def extension_page(extension: Extension) -> str:
    """The page of an extension. Raises MissingExtra."""
    _require()
    from x_positional.evidence.report.extensions import extension_html

    return extension_html(extension)


def comparison_page(
    comparison: Comparison, *, beside: Comparison | None = None, pictures: Mapping[str, Pictures] | None = None
) -> str:
    """The page of a comparison.

    Args:
        comparison: The grid; cells may be missing.
        beside: A second one, for two runs side by side.
        pictures: What each scheme does (`pictures_of`), by the label of its entry.

    Raises:
        MissingExtra: A package of the `report` extra is not installed.
    """
    _require()
    from x_positional.evidence.report.comparisons import comparison_html

    return comparison_html(comparison, beside, pictures or {})


def plot_page(pictures: Pictures, *, title: str) -> str:
    """The page of the position schemes of a model. Raises MissingExtra."""
    _require()
    from x_positional.evidence.report.schemes import plot_html

    return plot_html(pictures, title)


def write_page(path: Path, html: str) -> None:
    """Write a page; an existing file is replaced atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.write_text(html, encoding="utf-8")
    os.replace(staged, path)


def _require() -> None:
    """Raises MissingExtra if a package that pages need is not installed."""
    for module in ("altair", "vl_convert", "jinja2"):
        import_extra(module, "reports need", "report")
