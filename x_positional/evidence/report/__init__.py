"""Reports for eyes: one self-contained HTML page of an evaluation, a comparison, an extension, or of what schemes do."""

import os
from collections.abc import Mapping
from pathlib import Path

from x_positional.errors import import_extra
from x_positional.evidence.comparison.results import Comparison


def comparison_page(comparison: Comparison, *, beside: Comparison | None = None) -> str:
    """The page of a comparison; with `beside`, of two runs side by side. Raises MissingExtra."""
    _require()
    from x_positional.evidence.report.comparisons import comparison_html

    return comparison_html(comparison, beside)


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
