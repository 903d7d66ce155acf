"""One self-contained HTML page with every plot embedded, for light and dark browsers."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from x_positional.plotting.canvas import Picture

STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; padding: 1.5rem; max-width: 62rem; font: 16px/1.5 system-ui, sans-serif;
       background: #fbfbfa; color: #1c1c1c; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: 6px;
       box-sizing: border-box; border: 1px solid #d8d8d8; }
figcaption { margin-top: .4rem; } .facts { color: #555; }
@media (prefers-color-scheme: dark) { body { background: #17181a; color: #e8e8e6; } .facts { color: #b0b0ae; }
       img { border-color: #3a3a3c; } }
"""


@dataclass(frozen=True)
class Section:
    """One scheme on the page."""

    title: str
    summary: str
    """One line about the scheme."""
    pictures: Sequence[Picture]
    note: str = ""
    """How to read the plots, or why there are none."""


def render(title: str, facts: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    body = "\n".join(_section(section) for section in sections)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="facts">{escape(facts)}</p>\n{body}\n</body>\n</html>\n'
    )


def _section(section: Section) -> str:
    pictures = "\n".join(_figure(picture) for picture in section.pictures)
    note = f"<p>{escape(section.note)}</p>" if section.note else ""
    return f'<h2>{escape(section.title)}</h2>\n<p class="facts">{escape(section.summary)}</p>\n{note}{pictures}'


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    return (
        f"<figure>\n<h3>{escape(picture.title)}</h3>\n"
        f'<img alt="{escape(picture.title)}: {escape(picture.caption)}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{escape(picture.caption)}</figcaption>\n</figure>"
    )
