"""Charts of what position schemes do: biases by distance and by query and key, rotations, similarities of embeddings.

Stages of training (before, after) are drawn on the same scale.
"""

from collections.abc import Sequence
from itertools import groupby
from typing import Any

import altair as alt

from x_positional.errors import counted
from x_positional.evidence.report.charts import INTEGER, READABLE, Chart, Row, finish, tooltips
from x_positional.evidence.report.page import Page, Section, render
from x_positional.evidence.report.pictures import Bias, Map, Pictures, Rotation, SchemePicture, Values
from x_positional.evidence.report.tables import paragraph
from x_positional.plotting.words import number

PANEL = 128
"""Width of the map of a head, in pixels."""
NOTHING = "This scheme changes no embeddings, queries, keys or scores: there is nothing to plot."


def plot_html(pictures: Pictures, title: str) -> str:
    """A page about the schemes of one model."""
    return render(Page(title, scheme_sections(pictures), pictures.facts))


def scheme_sections(pictures: Pictures, series: str | None = None) -> list[Section]:
    """A section a scheme. With `series`, they belong to this series of the page."""
    sections = []
    for name, found in groupby(pictures.schemes, key=lambda picture: picture.section):
        stages = list(found)
        problems = [paragraph(f"Could not be measured: {one.problem}", "warning") for one in stages if one.problem]
        charts = scheme_charts(stages, series)
        blocks = [
            paragraph(stages[0].summary, "facts"),
            *problems,
            *(charts or ([] if problems else [paragraph(NOTHING)])),
        ]
        title = name if series is None or series == name else f"{series}: {name}"
        sections.append(Section(f"What {title} does", blocks, series))
    return sections


def scheme_charts(stages: Sequence[SchemePicture], series: str | None = None) -> list[Chart | list[Chart]]:
    """All charts of one scheme; those of its stages beside each other."""
    biases = [(_when(one), one.bias) for one in stages if one.bias is not None]
    rotations = [(_when(one), one.rotation) for one in stages if one.rotation is not None]
    similar = [(_when(one), one.similarity) for one in stages if one.similarity is not None]
    trained, charts = stages[0].trained_length, []
    if biases:
        charts += [_bias_curves(biases, trained), _bias_maps(biases)]
    if rotations:
        charts.append([_products(rotations, trained)])
        if rotations[0][1].channels:
            charts[-1].append(_wavelengths(rotations, trained))
            charts.append([_angles(when, rotation) for when, rotation in rotations])
    if similar:
        charts.append([_similarity(when, table) for when, table in similar])
    return charts


def _when(picture: SchemePicture) -> str:
    """The stage; empty for a scheme whose parameters do not change."""
    return picture.stage or ""


def _titled(title: str, when: str) -> str:
    return f"{title}, {when}" if when else title


def _bias_curves(biases: Sequence[tuple[str, Bias]], trained: int) -> Chart:
    """A line a head and stage; a click on the legend picks heads."""
    rows: list[Row] = [
        {"head": f"{head}", "stage": when, "x": x, "y": y, "distance": f"{x:,}", "value": f"{number(y, 4)} logits"}
        for when, bias in biases
        for head, values in zip(bias.heads, bias.values, strict=True)
        for x, y in zip(bias.distances, values, strict=True)
        if y is not None
    ]
    heads, stages = [f"{head}" for head in biases[0][1].heads], [when for when, _ in biases]
    picked = alt.selection_point(name="picked", fields=["head"], bind="legend", toggle="true")
    colour = alt.Color(
        "head:N", sort=heads, title="head (click to pick)", legend=_below(columns=8), scale=alt.Scale(domain=heads)
    )
    chart = _by_distance(rows, "bias added to the score (logits)", trained).encode(
        color=colour,
        strokeDash=_dashes(stages),
        opacity=alt.condition(picked, alt.value(1), alt.value(0.08)),
        detail=["head:N", "stage:N"],
        tooltip=tooltips({"head": "head", "stage": "stage", "distance": "distance", "value": "bias"}),
    )
    spec = finish(_with_trained(chart.add_params(picked), trained, rows), rows, [], height=300)
    shown = f"{len(heads)} of {biases[0][1].of_heads} heads. " if len(heads) < biases[0][1].of_heads else ""
    caption = f"One line a head; the distance axis is linear near 0 and logarithmic beyond. {shown}{biases[-1][1].note}"
    return Chart("Bias by distance", spec, caption.strip())


def _by_distance(rows: Sequence[Row], title: str, trained: int) -> Any:
    """Lines over the distance."""
    scale = alt.Scale(type="symlog", constant=8, nice=False)
    far = max((abs(row["x"]) for row in rows), default=1)
    ticks = [0, *(2**i for i in range(1, 24, 2) if 2**i <= far)]
    ticks = sorted({*ticks, *(-tick for tick in ticks if any(row["x"] <= -tick for row in rows))})
    axis = alt.Axis(format=INTEGER, labelOverlap="greedy", values=ticks, titlePadding=8)
    return (
        alt.Chart(alt.NamedData("rows"))
        .mark_line(strokeWidth=2)
        .encode(
            alt.X("x:Q", title="distance (query position - key position, tokens)", scale=scale, axis=axis),
            alt.Y("y:Q", title=title, scale=alt.Scale(zero=False), axis=alt.Axis(format=READABLE)),
        )
    )


def _with_trained(chart: Any, trained: int, rows: Sequence[Row]) -> Any:
    """The chart with a line at the trained length, where the axis reaches it."""
    if not any(row["x"] >= trained for row in rows):
        return chart
    base = alt.Chart(alt.Data(values=[{"x": trained, "text": f"trained length {trained:,}"}])).encode(alt.X("x:Q"))
    text = base.mark_text(align="right", baseline="bottom", fontSize=11, style="mark")
    rule = base.mark_rule(strokeDash=[4, 3], style="mark")
    return alt.layer(chart, rule, text.encode(y=alt.value(-4), text="text:N"))


def _dashes(stages: Sequence[str]) -> alt.StrokeDash:
    """The last stage is solid, earlier ones are dashed."""
    patterns = [*[[5, 4], [2, 3]][: len(stages) - 1], [1, 0]]
    legend = _below() if len(stages) > 1 else None
    return alt.StrokeDash(
        "stage:N",
        sort=list(stages),
        title="parameters",
        legend=legend,
        scale=alt.Scale(domain=list(stages), range=patterns),
    )


def _below(columns: int = 1) -> alt.Legend:
    return alt.Legend(orient="bottom", direction="horizontal", columns=columns, labelLimit=0, symbolStrokeWidth=2.5)


def _bias_maps(biases: Sequence[tuple[str, Bias]]) -> list[Chart]:
    """A panel a head, each with its own colours, the same at every stage."""
    ends = [_ends([bias.map.values[i] for _, bias in biases]) for i in range(len(biases[0][1].heads))]
    charts = []
    for when, bias in biases:
        names = [
            f"head {head}: {number(low)} to {number(high)}" for head, (low, high) in zip(bias.heads, ends, strict=True)
        ]
        title = _titled("Bias by query and key", when)
        note = "Each head has its own colours" + (", the same before and after training" if len(biases) > 1 else "")
        caption = (
            f"{note}; its range is in its title, in logits. Every {counted_step(bias.map.step)}; masked keys are empty."
        )
        spec = _maps(bias.map, names, ends, "bias (logits)")
        charts.append(Chart(title, spec, caption, panel=PANEL, heavy=True))
    return charts


def counted_step(step: int) -> str:
    """`token`, `4 tokens`."""
    return "token" if step == 1 else f"{step} tokens"


def _similarity(when: str, table: Map) -> Chart:
    ends = _ends(table.values)
    low, high = ends
    names = [f"{number(low)} to {number(high)}"]
    spec = _maps(
        table, names, [ends], "cosine similarity", x="position (tokens)", y="position (tokens)", size=2 * PANEL
    )
    caption = (
        f"Cosine similarity of what is added to the embeddings at two positions. Every {counted_step(table.step)}."
    )
    return Chart(_titled("Similarity of position embeddings", when), spec, caption, panel=2 * PANEL, heavy=True)


def _ends(values: Sequence[Values]) -> tuple[float, float]:
    known = [value for row in values for value in row if value is not None]
    return (min(known), max(known)) if known else (0.0, 0.0)


def _panel_rows(table: Map, names: Sequence[str], ends: Sequence[tuple[float, float]], signs: bool) -> list[Row]:
    """A row a panel: its values, and the first value and span of its colours."""
    rows: list[Row] = []
    for name, values, (low, high) in zip(names, table.values, ends, strict=True):
        far = max(-low, high) or 1.0
        first, last = (-far, far) if signs else (low, high)
        rows.append({"panel": name, "values": list(values), "first": first, "span": (last - first) or 1.0})
    return rows


def _maps(
    table: Map,
    names: Sequence[str],
    ends: Sequence[tuple[float, float]],
    what: str,
    *,
    x: str = "key position (tokens)",
    y: str = "query position (tokens)",
    size: int = PANEL,
) -> dict[str, Any]:
    """Panels of cells, coloured from each panel's lowest to its highest value, or around 0 where there are both signs."""
    signs = any(low < 0 < high for low, high in ends)
    rows = _panel_rows(table, names, ends, signs)
    places = [i * table.step for i in range(table.side)]
    ticks = alt.Axis(
        values=places[:: max(1, table.side // 4)], labelAngle=0, labelFontSize=10, format=INTEGER, titleFontSize=11
    )
    panel = (
        _cells(table)
        .encode(
            alt.X("key:O", title=x, axis=ticks, scale=alt.Scale(domain=places)),
            alt.Y("query:O", title=y, axis=ticks, scale=alt.Scale(domain=places)),
            _map_colour(what, signs),
            tooltip=[
                alt.Tooltip("query:Q", format=INTEGER),
                alt.Tooltip("key:Q", format=INTEGER),
                alt.Tooltip("value:Q", title=what, format=READABLE),
            ],
        )
        .properties(width=size, height=size)
    )
    header = alt.Header(labelExpr="split(datum.label, ': ')")
    facet = alt.Facet("panel:N", sort=None, title=None, header=header)
    return finish(panel.facet(facet=facet, columns=4, data=alt.NamedData("rows")), rows, [])


def _cells(table: Map) -> alt.Chart:
    """A rectangle for each cell of a panel that has a value: its row and column are counted in the browser."""
    side, step = table.side, table.step
    place = f"datum.row - datum.column + {side - 1}" if table.by_distance else "datum.cell"
    return (
        alt.Chart()
        .transform_calculate(cell=f"sequence({side * side})")
        .transform_flatten(["cell"])
        .transform_calculate(row=f"floor(datum.cell / {side})", column=f"datum.cell % {side}")
        .transform_calculate(value=f"datum.values[{place}]", query=f"datum.row * {step}", key=f"datum.column * {step}")
        .transform_filter("isValid(datum.value)")
        .transform_calculate(share="(datum.value - datum.first) / datum.span")
        .mark_rect()
    )


def _map_colour(what: str, signs: bool) -> alt.Color:
    """Colours of the share of a panel's range, and their legend."""
    labels = "['largest negative', '0', 'largest positive']" if signs else "['lowest', 'middle', 'highest']"
    legend = alt.Legend(
        orient="bottom",
        values=[0, 0.5, 1],
        labelExpr=f"{labels}[2 * datum.value]",
        gradientLength=220,
        title=f"{what} in each panel",
    )
    scale = alt.Scale(domain=[0, 1], scheme="purpleorange" if signs else "viridis")
    return alt.Color("share:Q", scale=scale, legend=legend)


def _products(rotations: Sequence[tuple[str, Rotation]], trained: int) -> Chart:
    rows: list[Row] = [
        {"stage": when, "x": x, "y": y, "distance": f"{x:,}", "value": number(y, 4)}
        for when, rotation in rotations
        for x, y in zip(rotation.distances, rotation.products, strict=True)
        if y is not None
    ]
    stages = [when for when, _ in rotations]
    chart = _by_distance(rows, "query · key", trained).encode(
        strokeDash=_dashes(stages),
        color=_stage_colour(stages),
        tooltip=tooltips({"stage": "stage", "distance": "distance", "value": "query · key"}),
    )
    spec = finish(_with_trained(chart, trained, rows), rows, [], height=280)
    caption = "Product of an equal query and key of unit length (in the head that varies most): how a match decays with distance."
    return Chart("Product of query and key by distance", spec, caption)


def _stage_colour(stages: Sequence[str]) -> alt.Color:
    return alt.Color(
        "stage:N",
        sort=list(stages),
        title="parameters",
        legend=_below() if len(stages) > 1 else None,
        scale=alt.Scale(domain=list(stages)),
    )


def _wavelengths(rotations: Sequence[tuple[str, Rotation]], trained: int) -> Chart:
    """Positions per turn of each pair; before RoPE scaling too."""
    rows: list[Row] = []
    for when, rotation in rotations:
        rows += _waves(
            _titled("with scaling", when) if rotation.unscaled else when, rotation.channels, rotation.wavelengths
        )
    rows += _waves("before scaling", rotations[0][1].channels, rotations[0][1].unscaled)
    kinds = list(dict.fromkeys(row["stage"] for row in rows))
    base = alt.Chart(alt.NamedData("rows")).mark_point(filled=True, size=60, opacity=0.9)
    chart = base.encode(
        alt.X(
            "x:Q",
            title="first channel of the pair",
            axis=alt.Axis(format=INTEGER, tickMinStep=1, tickCount=8),
            scale=alt.Scale(nice=False, padding=10),
        ),
        alt.Y(
            "y:Q",
            title="wavelength (tokens per turn, log scale)",
            scale=alt.Scale(type="log", nice=False, padding=8),
            axis=alt.Axis(format=READABLE, values=[10**power for power in range(12)]),
        ),
        color=_stage_colour(kinds),
        shape=alt.Shape(
            "stage:N",
            sort=kinds,
            title="parameters",
            legend=_below() if len(kinds) > 1 else None,
            scale=alt.Scale(domain=kinds, range=["circle", "diamond", "square", "triangle-up"]),
        ),
        tooltip=tooltips(
            {
                "stage": "stage",
                "channel": "first channel",
                "value": "wavelength",
                "turns": "turns within the trained length",
            }
        ),
    )
    for row in rows:
        row["turns"] = number(trained / row["y"])
    mark = alt.Chart(alt.Data(values=[{"y": trained, "text": f"trained length {trained:,}"}])).encode(alt.Y("y:Q"))
    text = mark.mark_text(align="left", baseline="bottom", dx=4, fontSize=11, style="mark").encode(
        x=alt.value(0), text="text:N"
    )
    spec = finish(alt.layer(chart, mark.mark_rule(strokeDash=[4, 3], style="mark"), text), rows, [], height=280)
    caption = "Pairs above the line do not complete a turn within the trained length: beyond it, they reach angles never trained."
    return Chart("Wavelengths of the rotated pairs", spec, caption)


def _waves(stage: str, channels: Sequence[int], waves: Values) -> list[Row]:
    return [
        {"stage": stage, "x": x, "y": y, "channel": str(x), "value": f"{number(y)} tokens"}
        for x, y in zip(channels, waves, strict=bool(waves))
        if y is not None
    ]


def _angles(when: str, rotation: Rotation) -> Chart:
    """Pair by position: the cosine of the angle."""
    rows = [
        {"x": str(channel), "values": list(row)}
        for channel, row in zip(rotation.shown_channels, rotation.cosines, strict=True)
    ]
    positions, colours = list(rotation.positions), alt.Scale(domain=[-1, 1], scheme="purpleorange")
    ticks = alt.Axis(values=positions[:: max(1, len(positions) // 4)], labelAngle=0, format=INTEGER)
    legend = alt.Legend(orient="bottom", values=[-1, 0, 1], gradientLength=220, title="cosine of the angle")
    chart = (
        alt.Chart(alt.NamedData("rows"))
        .transform_calculate(cell=f"sequence({len(positions)})")
        .transform_flatten(["cell"])
        .transform_calculate(
            value="datum.values[datum.cell]", position=f"datum.cell * {positions[1] if len(positions) > 1 else 1}"
        )
        .mark_rect(stroke=alt.expr("scale('color', datum.value)"), strokeWidth=0.7)  # over the seams between cells
        .encode(
            alt.X("position:O", title="position (tokens)", axis=ticks),
            alt.Y("x:N", sort=None, title="first channel of the pair", axis=alt.Axis(labelOverlap="greedy")),
            alt.Color("value:Q", scale=colours, legend=legend),
            tooltip=[
                alt.Tooltip("x:N", title="first channel"),
                alt.Tooltip("position:Q", format=INTEGER),
                alt.Tooltip("value:Q", title="cosine", format=READABLE),
            ],
        )
    )
    spec = finish(chart, rows, [], height=max(120, 10 * len(rows)))
    return Chart(
        _titled("Angles by position", when),
        spec,
        f"Rotation of each pair relative to position 0. {counted(len(rows), 'pair')}.",
        heavy=True,
    )
