"""Tables as HTML."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from html import escape
from typing import Any

import yaml

from x_positional.plotting.words import number


class Html(str):
    """HTML that is not escaped again."""

    def __html__(self) -> str:
        return self


@dataclass(frozen=True)
class Cell:
    """One entry of a table."""

    text: str
    _: KW_ONLY
    detail: str = ""
    """A second line in small letters."""
    why: str = ""
    """Why something is missing, below it."""
    value: float | None = None
    """What the column is sorted by; by default the text."""
    kind: str = ""
    """CSS classes: `number`, `best`, `missing`."""
    code: bool = False
    """Monospaced, with its line breaks."""

    def html(self) -> str:
        """The cell as a td element."""
        value = "" if self.value is None else f' data-value="{self.value!r}"'
        if "missing" in self.kind:
            value = ' data-value=""'  # sorted last
        text = f"<code>{escaped(self.text)}</code>" if self.code and self.text else escaped(self.text)
        detail = f"<small>{escaped(self.detail)}</small>" if self.detail else ""
        why = f'<small class="why">{escaped(self.why)}</small>' if self.why else ""
        return f'<td class="{self.kind}"{value}>{text}{detail}{why}</td>'


EMPTY = Cell("–", value=None, kind="number missing")


def escaped(text: str) -> str:
    """Text as HTML."""
    return escape(text, quote=True)


def paragraph(text: str, kind: str = "") -> Html:
    """A paragraph of text."""
    return Html(f'<p class="{kind}">{escaped(text)}</p>' if kind else f"<p>{escaped(text)}</p>")


def table(columns: Sequence[str], rows: Iterable[tuple[str, Sequence[Cell]]], *, series: bool = True) -> Html:
    """A table sorted by a click on a column. The first cell of a row is its name, by default that of a series."""
    rows = list(rows)
    kinds = [
        {cell.kind.split()[0] if cell.kind else "" for cell in column}
        for column in zip(*(row for _, row in rows), strict=True)
    ]
    numbers = [bool(rows) and kind <= {"number", "missing"} for kind in kinds or [set()] * (len(columns) - 1)]
    heads = "".join(
        f'<th scope="col"{" class=number" if numeric else ""}><button type="button">{escaped(column)}</button></th>'
        for column, numeric in zip(columns, [False, *numbers], strict=True)
    )
    body = "\n".join(_row(name, cells, series) for name, cells in rows)
    return Html(f'<div class="scroll"><table><thead><tr>{heads}</tr></thead>\n<tbody>{body}</tbody></table></div>')


def _row(name: str, cells: Sequence[Cell], series: bool) -> str:
    owner = f' data-series="{escaped(name)}"' if series else ""
    return f'<tr{owner}><th scope="row">{escaped(name)}</th>{"".join(cell.html() for cell in cells)}</tr>'


def quantity(value: float | None, unit: str = "", digits: int = 3) -> Cell:
    """A number with its unit; a dash where there is none."""
    if value is None:
        return EMPTY
    return Cell(f"{number(value, digits)}{unit}", value=value, kind="number")


def settings(fields: Mapping[str, Any]) -> Cell:
    """Settings as YAML."""
    text = yaml.safe_dump(dict(fields), sort_keys=False, allow_unicode=True, default_flow_style=None, width=70)
    return Cell(text.strip() if fields else "", code=True)


def listing(title: str, text: str) -> Html:
    """A folded block of text."""
    return folded(title, Html(f"<pre>{escaped(text)}</pre>"))


def folded(title: str, inside: Html) -> Html:
    """HTML that is shown by a click on its title."""
    return Html(f"<details><summary>{escaped(title)}</summary>{inside}</details>")
