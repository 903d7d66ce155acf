"""The table of docs/doors.md: models of several schemes in every tool, and the page that shows it."""

import importlib.util
from pathlib import Path

import pytest

from tests.support.doc_pages import ROOT, generator
from tests.support.doors import DOORS, NEEDS, ROWS, TESTED, Cell, model_of, open_door
from tests.support.draws import draws

PAGE = (ROOT / "docs" / "doors.md").read_text("utf-8")
TABLE: dict[tuple[str, str], Cell] = generator("doors").read(PAGE)
COSTLY: dict[str, list[str]] = {"ONNX": [], "FSDP": [], "torch.export": ["pattern: rope in a window, none"]}
"""Columns that take seconds a cell: the rows that every run measures. tests/generation and tests/training test them too."""
CELLS = draws(
    [(row, column) for column in DOORS for row in COSTLY.get(column, TESTED)],
    [(row, column) for column in DOORS for row in ROWS],
)


@pytest.mark.parametrize(("row", "column"), CELLS)
def test_a_cell_holds(row: str, column: str, tmp_path: Path) -> None:
    package = NEEDS.get(column)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed, so the column is not measured")
    cell, shown = open_door(column, model_of(row), tmp_path), TABLE[row, column]
    assert (cell.difference is None, cell.note) == (shown.difference is None, shown.note), "run make docs"


def test_the_page_is_what_the_generator_renders() -> None:
    doors = generator("doors")
    assert set(TABLE) == {(row, column) for row in ROWS for column in DOORS}
    assert doors.render(TABLE, doors.read_versions(PAGE)) == PAGE, "run make docs"


def test_what_is_refused_has_a_reason() -> None:
    assert [cell for cell in TABLE.values() if cell.difference is None and not cell.note] == []
