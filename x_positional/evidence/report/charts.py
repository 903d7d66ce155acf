"""The charts that several pages share: lines with bands, scatters and heat maps, as Vega-Lite specs.

Every chart has the parameter `shown`, the labels of the series that are drawn; the page sets it. Colours come from the theme of
the page (`palette.py`), so a spec has none.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import altair as alt

from x_positional.evidence.report.palette import DASHES, SHAPES
from x_positional.plotting.words import number

Row = dict[str, Any]
HEIGHT = 320
INTEGER, READABLE = ",d", ",.4~r"
"""d3 formats of axes: neither writes an exponent."""


@dataclass(frozen=True)
class Chart:
    """A chart with its texts."""

    title: str
    spec: dict[str, Any]
    caption: str = ""
    series: str | None = None
    """The only series it shows; the figure is hidden with it."""
    panel: int | None = None
    """Width of a panel in pixels: the page sets the number of columns to what fits."""
    heavy: bool = False
    """Drawn when it is scrolled into view, on a canvas."""


@dataclass(frozen=True)
class Axis:
    """A quantity on an axis."""

    title: str
    """With its unit."""
    scale: Literal["linear", "log2", "log"] = "linear"
    ticks: tuple[float, ...] = ()
    multiples_of: int | None = None
    """Ticks have a second line: how many times this length."""
    format: str = READABLE
    domain: tuple[float, float] | None = None
    frame: tuple[float, float] | None = None
    """Where the axis ends, although bands go on."""
    cut: float | None = None
    """With the parameter `zoom`, the axis ends here."""

    def channel(self, kind: type, name: str, **more: Any) -> Any:
        """The Altair channel of a field."""
        scale: dict[str, Any] = {"zero": False, "nice": self.scale == "linear" and self.domain is None}
        if self.scale != "linear":
            scale = {"type": "log", "base": 2 if self.scale == "log2" else 10, "nice": False}
        if self.domain is not None:
            scale["domain"] = list(self.domain)
        else:
            scale |= self._ends()
        axis: dict[str, Any] = {
            "format": self.format,
            "labelOverlap": "greedy",
            "labelSeparation": 6,
            "titlePadding": 8,
        }
        if self.scale == "linear":
            axis["tickCount"] = 8
        if self.ticks:
            axis["values"] = list(self.ticks)
        if self.multiples_of:
            axis["labelExpr"] = f"[format(datum.value, ',d'), format(datum.value / {self.multiples_of}, '.3~r') + '×']"
        return kind(f"{name}:Q", title=self.title, scale=alt.Scale(**scale), axis=alt.Axis(**axis), **more)

    @property
    def clip(self) -> Any:
        """Whether marks end where the axis does."""
        return True if self.frame is not None else alt.expr("zoom") if self.cut is not None else False

    def _ends(self) -> dict[str, Any]:
        """Where the axis ends; what is missing follows from the data."""
        ends: dict[str, Any] = {} if self.frame is None else {"domainMin": self.frame[0], "domainMax": self.frame[1]}
        if self.cut is not None:
            ends["domainMax"] = {
                "expr": f"zoom ? {self.cut!r} : {'null' if self.frame is None else repr(self.frame[1])}"
            }
        return ends


@dataclass(frozen=True)
class Mark:
    """A labelled vertical line."""

    at: float
    text: str


@dataclass(frozen=True)
class Lines:
    """A line a series: rows with `series`, `x`, `y`, and where there is an interval `low` and `high`."""

    rows: Sequence[Row]
    x: Axis
    y: Axis
    labels: Sequence[str]
    """All series of the page, which fixes their colours."""
    marks: Sequence[Mark] = ()
    points: bool = True
    tooltip: Mapping[str, str] = field(default_factory=dict)
    """Fields of the rows, formatted, and their names."""
    height: int = HEIGHT

    def spec(self) -> dict[str, Any]:
        """The layers: bands, lines, points with tooltips, marked lengths."""
        near = alt.selection_point(
            fields=["series"], on="pointerover", nearest=True, clear="pointerout", empty=False, name="near"
        )
        clip = self.y.clip
        base = of_series().encode(self.x.channel(alt.X, "x"), color=colour(self.labels), detail="series:N")
        band = base.mark_area(opacity=0.16, clip=clip).encode(self.y.channel(alt.Y, "low"), y2="high:Q")
        line = base.mark_line(clip=clip).encode(
            self.y.channel(alt.Y, "y"),
            strokeDash=dash(self.labels),
            strokeWidth=alt.condition(near, alt.value(4), alt.value(2)),
        )
        size = 64 if self.points else 24
        dots = base.mark_point(filled=True, size=size, opacity=1 if self.points else 0, clip=clip).encode(
            self.y.channel(alt.Y, "y"), shape=shape(self.labels), tooltip=tooltips(self.tooltip)
        )
        layers: list[Any] = []
        if any("low" in row for row in self.rows):
            layers.append(band.transform_filter("isValid(datum.low)"))
        chart = alt.layer(*layers, line, dots.add_params(near), *marked(self.marks, self.x))
        if self.y.cut is not None:
            chart = chart.add_params(
                alt.param(name="zoom", value=False, bind=alt.binding_checkbox(name="Zoom in on the lowest "))
            )
        return finish(chart, self.rows, self.labels, height=self.height)


@dataclass(frozen=True)
class Scatter:
    """One point a series: rows with `series`, `x`, `y`, `low` and `high`, and `choice` where there is one to pick from."""

    rows: Sequence[Row]
    x: Axis
    y: Axis
    labels: Sequence[str]
    tooltip: Mapping[str, str]
    choices: Sequence[str] = ()
    """The values of `choice`."""
    first: str | None = None
    """The choice at the start."""
    height: int = HEIGHT

    def spec(self) -> dict[str, Any]:
        """The layers: intervals and points."""
        chart = of_series()
        if self.choices:
            options = alt.binding_select(options=list(self.choices), name="Length: ")
            choice = alt.param(name="choice", bind=options, value=self.first)
            chart = chart.add_params(choice).transform_filter("datum.choice === choice")
        base = chart.encode(self.x.channel(alt.X, "x"), color=colour(self.labels))
        span = base.mark_rule(strokeWidth=1.5).encode(self.y.channel(alt.Y, "low"), y2="high:Q")
        dots = base.mark_point(filled=True, size=140, opacity=1).encode(
            self.y.channel(alt.Y, "y"), shape=shape(self.labels), tooltip=tooltips(self.tooltip)
        )
        layers = [span.transform_filter("isValid(datum.low)")] if any("low" in row for row in self.rows) else []
        return finish(alt.layer(*layers, dots), self.rows, self.labels, height=self.height)


def of_series() -> alt.Chart:
    """The rows of the series that are shown. A filter of the layers' parent would not apply where a layer has its own data."""
    return alt.Chart(alt.NamedData("rows")).transform_filter("indexof(shown, datum.series) >= 0")


def colour(labels: Sequence[str]) -> alt.Color:
    """Of a series, from the theme of the page."""
    return alt.Color("series:N", scale=alt.Scale(domain=list(labels)), legend=None)


def dash(labels: Sequence[str]) -> alt.StrokeDash:
    """Of a series; with the colour and shape it tells more of them apart than colours alone."""
    scale = alt.Scale(domain=list(labels), range=[DASHES[i % len(DASHES)] for i in range(len(labels))])
    return alt.StrokeDash("series:N", scale=scale, legend=None)


def shape(labels: Sequence[str]) -> alt.Shape:
    """Of a series."""
    scale = alt.Scale(domain=list(labels), range=[SHAPES[i % len(SHAPES)] for i in range(len(labels))])
    return alt.Shape("series:N", scale=scale, legend=None)


def tooltips(fields: Mapping[str, str]) -> list[alt.Tooltip]:
    """Formatted fields with their names."""
    return [alt.Tooltip(f"{name}:N", title=title) for name, title in fields.items()]


def marked(marks: Sequence[Mark], x: Axis) -> list[Any]:
    """A dashed line at each mark, its text above the plot, one line higher for each."""
    layers = []
    for row, mark in enumerate(marks):
        base = alt.Chart(alt.Data(values=[{"x": mark.at, "text": mark.text}])).encode(x.channel(alt.X, "x"))
        left = x.domain is None or _share(mark.at, x) < 0.5
        text = base.mark_text(align="left" if left else "right", baseline="bottom", fontSize=11, style="mark")
        layers.append(base.mark_rule(strokeDash=[4, 3], style="mark"))
        layers.append(text.encode(y=alt.value(-4 - 14 * row), text="text:N"))
    return layers


def _share(value: float, axis: Axis) -> float:
    """Where a value is on an axis: 0 is the left end, 1 the right one."""
    ends = axis.domain or (value, value + 1)
    place = math.log if axis.scale != "linear" else float
    low, high = map(place, ends)
    return (place(value) - low) / (high - low) if high > low else 0.0


def finish(chart: Any, rows: Sequence[Row], labels: Sequence[str], *, height: int | None = None) -> dict[str, Any]:
    """The spec with the data `rows`, as wide as its figure, with the parameter `shown`."""
    if labels:
        chart = chart.add_params(alt.param(name="shown", value=list(labels)))
    if height is not None:
        chart = chart.properties(width="container", height=height)
    spec = chart.to_dict(validate=False)  # the tests validate
    spec.pop("config", None)  # the theme of the page sets it
    spec.pop("$schema", None)
    spec["datasets"] = spec.get("datasets", {}) | {"rows": list(rows)}
    return spec


def ticks_of(lengths: Sequence[int], most: int = 12) -> tuple[float, ...]:
    """The lengths measured, thinned evenly."""
    step = max(1, math.ceil(len(lengths) / most))
    return tuple(float(length) for length in [*lengths][::step])


def times(length: int, trained: int | None) -> str:
    """`1,024 (4×)`."""
    return f"{length:,}" if not trained else f"{length:,} ({number(length / trained)}×)"


def heat_map(rows: Sequence[Row], x: str, y: str, xs: Sequence[str], ys: Sequence[str]) -> dict[str, Any]:
    """Cells of shares from 0 to 1 with their text; grey where there is no value. Rows have x, y, value, text, where, result."""
    base = alt.Chart(alt.NamedData("rows")).encode(
        alt.X("x:N", title=x, scale=alt.Scale(domain=list(xs)), axis=alt.Axis(labelAngle=0, labelOverlap="greedy")),
        alt.Y("y:N", title=y, scale=alt.Scale(domain=list(ys))),
        tooltip=tooltips({"where": "prompt", "result": "result"}),
    )
    scale = alt.Scale(domain=[0, 1], scheme="blues")
    shares = (
        base.transform_filter("isValid(datum.value)").mark_rect().encode(alt.Color("value:Q", scale=scale, legend=None))
    )
    missing = base.transform_filter("!isValid(datum.value)").mark_rect(color="#8888")
    words = alt.condition("datum.value > 0.55", alt.value("#ffffff"), alt.value("#1b1f24"))
    text = base.mark_text(fontSize=11).encode(text="text:N", color=words)
    return finish(missing + shares + text, rows, [], height=max(120, 28 * len(ys)))
