"""Which plots a scheme gets, by the hooks it overrides, and the files they are written to: pictures, and one self-contained
HTML page with all of them, for light and dark browsers."""

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path

from x_positional.config.layers import LayersConfig
from x_positional.errors import counted
from x_positional.plotting.biases import adds_bias
from x_positional.plotting.canvas import Picture, figure
from x_positional.plotting.draw_biases import draw_curves, draw_map
from x_positional.plotting.draw_embeddings import draw_similarity, draw_table, embeds
from x_positional.plotting.draw_products import draw_bound, draw_products
from x_positional.plotting.draw_rotation import draw_cos_sin, draw_wavelengths
from x_positional.plotting.rotation import rotates
from x_positional.plotting.schemes import PlottedScheme, Stage, plotted_schemes
from x_positional.progress import Track, silent

PAGE = "index.html"
STYLE = """
:root { color-scheme: light dark; }
body { margin: 0 auto; padding: 1.5rem; max-width: 62rem; font: 16px/1.5 system-ui, sans-serif;
       background: #fbfbfa; color: #1c1c1c; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.25rem; margin-top: 2.5rem; } h3 { font-size: 1rem; }
figure { margin: 1.5rem 0; } img { max-width: 100%; height: auto; background: #fff; border-radius: 6px; padding: 6px;
       box-sizing: border-box; border: 1px solid #d8d8d8; }
figcaption { margin-top: .4rem; } .beside { display: grid; grid-template-columns: 1fr 1fr; gap: 1rem; } .facts { color: #555; }
@media (prefers-color-scheme: dark) { body { background: #17181a; color: #e8e8e6; } .facts { color: #b0b0ae; }
       img { border-color: #3a3a3c; } }
"""
NOTHING = "This scheme changes no embeddings, queries, keys or scores: there is nothing to plot."

Draw = Callable[[PlottedScheme], Picture | None]
DRAWN: tuple[tuple[Callable[[PlottedScheme], bool], tuple[Draw, ...]], ...] = (
    (embeds, (draw_table, draw_similarity)),
    (lambda plotted: rotates(plotted.scheme), (draw_products, draw_bound, draw_cos_sin, draw_wavelengths)),
    (lambda plotted: adds_bias(plotted.scheme), (draw_map, draw_curves)),
)
"""What a scheme does, and the plots that show it."""


@dataclass(frozen=True)
class Section:
    """One scheme on the page."""

    title: str
    summary: str
    """One line about the scheme."""
    pictures: Sequence[Sequence[Picture]]
    """Rows of pictures beside each other: one, or one for each stage."""
    note: str = ""
    """How to read the plots, or why there are none."""


@dataclass(frozen=True)
class Gallery:
    """The files that `draw` wrote."""

    page: Path
    pictures: list[Path]


def draw(
    layers: LayersConfig,
    max_seq_len: int,
    folder: Path,
    *,
    title: str,
    embed_dim: int | None = None,
    stages: Sequence[Stage] = (),
    track: Track = silent,
) -> Gallery:
    """Plot every position scheme of a stack: one PNG per plot, and one HTML page with all of them.

    Args:
        layers: The stack.
        max_seq_len: The context length of the model.
        folder: Output folder; created if missing.
        title: Title of the page.
        embed_dim: Width of the embeddings, if it differs from `layers.dim`.
        stages: Whose learned parameters to draw beside each other; by default those of a new scheme.
        track: Shows progress; silent by default.

    Raises:
        MissingExtra: matplotlib is not installed. Nothing has been computed or written.
    """
    figure(1, 1)
    schemes = plotted_schemes(layers, max_seq_len, embed_dim, stages)
    work = [(plotted, plot) for plotted in schemes for does, plots in DRAWN if does(plotted) for plot in plots]
    drawn = [(plotted, _dated(plotted, plot(plotted))) for plotted, plot in track(work, "plotting")]
    by_scheme = {plotted.name: [p for owner, p in drawn if owner is plotted and p is not None] for plotted in schemes}
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for picture in (p for pictures in by_scheme.values() for p in pictures):
        files.append(folder / f"{picture.name}.png")
        files[-1].write_bytes(picture.png)
    shown = [plotted for plotted in schemes if plotted.stage is None or plotted.stage is stages[0]]
    sections = [_section(p, list(zip(*(by_scheme[one.name] for one in p.beside), strict=True))) for p in shown]
    page = folder / PAGE
    page.write_text(_render(title, facts(layers, max_seq_len), sections), encoding="utf-8")
    return Gallery(page, files)


def _dated(plotted: PlottedScheme, picture: Picture | None) -> Picture | None:
    """The picture with its stage in the title."""
    stage = plotted.stage
    return picture if picture is None or stage is None else replace(picture, title=f"{picture.title}, {stage.when}")


def write_page(page: Path, title: str, facts: str, pictures: Sequence[Picture]) -> None:
    """One self-contained HTML page of pictures that belong to no scheme."""
    page.write_text(_page(title, facts, "\n".join(map(_figure, pictures))), encoding="utf-8")


def _section(plotted: PlottedScheme, pictures: Sequence[Sequence[Picture]]) -> Section:
    summary = f"{plotted.config.summary} ({plotted.config.paper})" if plotted.config.paper else plotted.config.summary
    note = f"Positions vary along {_axes(plotted)}." if plotted.scheme.max_axes > 1 else ""
    note += " Every layer has its own parameters; one layer is shown." if plotted.scheme.per_layer else ""
    return Section(plotted.section, summary, pictures, note.strip() if pictures else NOTHING)


def _axes(plotted: PlottedScheme) -> str:
    axis, axes = plotted.probe.axis, plotted.scheme.max_axes
    return f"all {axes} axes together" if axis is None else f"axis {axis + 1} of {axes}; the others are 0"


def facts(layers: LayersConfig, max_seq_len: int) -> str:
    """The model in a line."""
    heads = f"{counted(layers.heads, 'head')} of {counted(layers.head_dim, 'channel')}"
    groups = (
        f", {counted(layers.kv_heads, 'key/value head')}" if layers.kv_heads and layers.kv_heads != layers.heads else ""
    )
    window = f", attention window {layers.window}" if layers.window else ""
    return f"Model with {layers.dim} channels, {heads}{groups}, max_seq_len {max_seq_len}{window}."


def _render(title: str, facts: str, sections: Sequence[Section]) -> str:
    """The whole page."""
    return _page(title, facts, "\n".join(_rendered(section) for section in sections))


def _page(title: str, facts: str, body: str) -> str:
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="facts">{escape(facts)}</p>\n{body}\n</body>\n</html>\n'
    )


def _rendered(section: Section) -> str:
    pictures = "\n".join(_row(row) for row in section.pictures)
    note = f"<p>{escape(section.note)}</p>" if section.note else ""
    return f'<h2>{escape(section.title)}</h2>\n<p class="facts">{escape(section.summary)}</p>\n{note}{pictures}'


def _row(pictures: Sequence[Picture]) -> str:
    figures = "\n".join(map(_figure, pictures))
    return figures if len(pictures) == 1 else f'<div class="beside">\n{figures}\n</div>'


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.png).decode()
    return (
        f"<figure>\n<h3>{escape(picture.title)}</h3>\n"
        f'<img alt="{escape(picture.title)}: {escape(picture.caption)}" src="data:image/png;base64,{data}">\n'
        f"<figcaption>{escape(picture.caption)}</figcaption>\n</figure>"
    )
