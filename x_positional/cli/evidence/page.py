"""The HTML pages that the commands write beside their tables."""

from collections.abc import Callable
from pathlib import Path

from x_positional.errors import MissingExtra
from x_positional.evidence.report import write_page


def page_line(path: Path, draw: Callable[[], str]) -> str:
    """Write the page that `draw` makes; the line that names it, or the extra that it needs."""
    try:
        write_page(path, draw())
    except MissingExtra as error:
        return f"no page: {error}"
    return f"page {path}"
