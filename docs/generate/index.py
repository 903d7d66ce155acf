"""Renders the list of pages in docs/index.md from the navigation of the site, which GitHub does not show.

Run from the repository root: PYTHONPATH=. python docs/generate/index.py
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

DOCS = Path(__file__).parents[1]
PAGE = DOCS / "index.md"
NAVIGATION = DOCS.parent / "mkdocs.yml"
BEGIN, END = "<!-- pages: begin -->", "<!-- pages: end -->"


def navigation() -> list[Any]:
    """The nav of mkdocs.yml."""
    text = re.sub(r"!!python\S+", "", NAVIGATION.read_text("utf-8"))
    return yaml.safe_load(text)["nav"]


def pages_of(entry: Any, title: str | None = None) -> Iterator[tuple[str, str | None]]:
    """Pages of a part of the navigation, with the titles that it gives."""
    if isinstance(entry, str):
        yield entry, title
    elif isinstance(entry, dict):
        for name, part in entry.items():
            yield from pages_of(part, name if isinstance(part, str) else None)
    else:
        for part in entry:
            yield from pages_of(part)


def title_of(page: str) -> str:
    """The heading of a page, or of a notebook."""
    text = (DOCS / page).read_text("utf-8")
    if page.endswith(".ipynb"):
        text = "".join(json.loads(text)["cells"][0]["source"])
    return text.split("\n")[0].removeprefix("# ")


def links(entries: list[Any]) -> str:
    """Links to pages, one after another."""
    found = [(page, title) for page, title in pages_of(entries) if (DOCS / page).exists() and page != PAGE.name]
    return " · ".join(f"[{title or title_of(page)}]({page})" for page, title in found)


def listing() -> Iterator[str]:
    """A paragraph for each section, and one for each part of it that has a name."""
    for section in navigation():
        [(name, entries)] = section.items()
        plain = [one for one in entries if isinstance(one, str) or isinstance(next(iter(one.values())), str)]
        if found := links(plain):
            yield f"**{name}**: {found}\n"
        for part in entries:
            if part not in plain:
                [(title, inner)] = part.items()
                yield f"**{name}, {title}**: {links(inner)}\n"


def render(text: str) -> str:
    """The page with its list replaced."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{chr(10).join(listing())}{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text("utf-8")), encoding="utf-8")
