"""One self-contained HTML page: sections of tables and charts, with the charting library inside it."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files
from typing import Any

import jinja2
import vl_convert

from x_positional import __version__
from x_positional.evidence.report.charts import Chart
from x_positional.evidence.report.palette import DARK, DASHES, LIGHT, PATHS, SHAPES, THEMES
from x_positional.evidence.report.tables import Html, escaped

VEGA_LITE = "6.1"
"""In 6.4 the tooltip of the nearest point has undefined values (https://github.com/vega/vega-lite/pull/9707)."""

Block = Html | Chart | Sequence[Chart]
"""HTML, a chart, or charts beside each other."""


@dataclass(frozen=True)
class Section:
    """A section of a page."""

    title: str
    blocks: Sequence[Block]
    series: str | None = None
    """The only series it is about; hidden with it."""


@dataclass(frozen=True)
class Page:
    """A page before it is rendered."""

    title: str
    sections: Sequence[Section]
    subtitle: str = ""
    answer: Sequence[str] = ()
    """The result in a few sentences."""
    labels: Sequence[str] = ()
    """All series, in the order of their colours."""
    legend: str = "Schemes"
    """What the series are."""


def render(page: Page) -> str:
    """The HTML. Texts are escaped."""
    charts: list[dict[str, Any]] = []
    sections = [
        {
            "title": section.title,
            "anchor": f"section-{index}",
            "series": section.series,
            "blocks": [_block(block, charts) for block in section.blocks],
        }
        for index, section in enumerate((one for one in page.sections if one.blocks), 1)
    ]
    marks = {
        "colours": {"light": LIGHT, "dark": DARK},
        "shapes": SHAPES,
        "dashes": [" ".join(map(str, one)) for one in DASHES],
        "paths": PATHS,
    }
    data = {"labels": list(page.labels), "charts": charts, "themes": THEMES, "marks": marks}
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(_asset("page.html")).render(
        page=page,
        sections=sections,
        css=Html(_asset("page.css")),
        script=Html(_asset("page.js")),
        bundle=Html(_bundle()),
        data=Html(embedded_json(data)),
        version=__version__,
    )


def embedded_json(value: Any) -> str:
    """JSON that can stand in a script element. Raises ValueError for a number that is not finite."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _block(block: Block, charts: list[dict[str, Any]]) -> Html:
    """The HTML of a block; its charts are appended to `charts`."""
    if isinstance(block, Html):
        return block
    if isinstance(block, Chart):
        return _figure(block, charts)
    return Html(f'<div class="grid">{"".join(_figure(chart, charts) for chart in block)}</div>')


def _figure(chart: Chart, charts: list[dict[str, Any]]) -> Html:
    file = re.sub(r"[^a-z0-9]+", "-", chart.title.lower()).strip("-")
    charts.append({"spec": chart.spec, "panel": chart.panel, "heavy": chart.heavy, "file": file})
    owner = "" if chart.series is None else f' data-series="{escaped(chart.series)}"'
    kind = "" if chart.panel is None else ' class="panels"'
    caption = f"<figcaption>{escaped(chart.caption)}</figcaption>" if chart.caption else ""
    return Html(
        f'<figure data-chart="{len(charts) - 1}"{kind}{owner}><h3>{escaped(chart.title)}</h3>'
        f'<div class="plot"></div>{caption}</figure>'
    )


def _asset(name: str) -> str:
    return (files("x_positional.evidence.report") / "template" / name).read_text("utf-8")


@lru_cache(maxsize=1)
def _bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed in one script."""
    script = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;", VEGA_LITE)
    return re.sub("</(script)", r"<\\/\1", script, flags=re.IGNORECASE)
