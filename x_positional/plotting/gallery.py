"""Which plots a scheme gets, by the hooks it overrides, and the files they are written to."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from x_positional.config.layers import LayersConfig
from x_positional.plotting.biases import adds_bias
from x_positional.plotting.canvas import Picture, figure
from x_positional.plotting.draw_biases import draw_curves, draw_map
from x_positional.plotting.draw_embeddings import draw_similarity, draw_table, embeds
from x_positional.plotting.draw_products import draw_bound, draw_products
from x_positional.plotting.draw_rotation import draw_cos_sin, draw_wavelengths
from x_positional.plotting.page import Section, render
from x_positional.plotting.rotation import rotates
from x_positional.plotting.schemes import PlottedScheme, plotted_schemes
from x_positional.progress import Track, silent

PAGE = "index.html"
NOTHING = "This scheme changes no embeddings, queries, keys or scores: there is nothing to plot."

Draw = Callable[[PlottedScheme], Picture | None]
DRAWN: tuple[tuple[Callable[[PlottedScheme], bool], tuple[Draw, ...]], ...] = (
    (embeds, (draw_table, draw_similarity)),
    (lambda plotted: rotates(plotted.scheme), (draw_products, draw_bound, draw_cos_sin, draw_wavelengths)),
    (lambda plotted: adds_bias(plotted.scheme), (draw_map, draw_curves)),
)
"""What a scheme does, and the plots that show it."""


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
    track: Track = silent,
) -> Gallery:
    """Plot every position scheme of a stack: one PNG per plot, and one HTML page with all of them.

    Args:
        layers: The stack.
        max_seq_len: The context length of the model.
        folder: Output folder; created if missing.
        title: Title of the page.
        embed_dim: Width of the embeddings, if it differs from `layers.dim`.
        track: Shows progress; silent by default.

    Raises:
        MissingExtra: matplotlib is not installed. Nothing has been computed or written.
    """
    figure(1, 1)
    schemes = plotted_schemes(layers, max_seq_len, embed_dim)
    work = [(plotted, plot) for plotted in schemes for does, plots in DRAWN if does(plotted) for plot in plots]
    drawn = [(plotted, plot(plotted)) for plotted, plot in track(work, "plotting")]
    by_scheme = {plotted.name: [p for owner, p in drawn if owner is plotted and p is not None] for plotted in schemes}
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for picture in (p for pictures in by_scheme.values() for p in pictures):
        files.append(folder / f"{picture.name}.png")
        files[-1].write_bytes(picture.png)
    sections = [_section(plotted, by_scheme[plotted.name]) for plotted in schemes]
    page = folder / PAGE
    page.write_text(render(title, _facts(layers, max_seq_len), sections), encoding="utf-8")
    return Gallery(page, files)


def _section(plotted: PlottedScheme, pictures: list[Picture]) -> Section:
    summary = f"{plotted.config.summary} ({plotted.config.paper})" if plotted.config.paper else plotted.config.summary
    note = f"Positions vary along {_axes(plotted)}." if plotted.scheme.max_axes > 1 else ""
    note += " Every layer has its own parameters; one layer is shown." if plotted.scheme.per_layer else ""
    return Section(plotted.name, summary, pictures, note.strip() if pictures else NOTHING)


def _axes(plotted: PlottedScheme) -> str:
    axis, axes = plotted.probe.axis, plotted.scheme.max_axes
    return f"all {axes} axes together" if axis is None else f"axis {axis + 1} of {axes}; the others are 0"


def _facts(layers: LayersConfig, max_seq_len: int) -> str:
    heads = f"{layers.heads} heads of {layers.head_dim} channels"
    groups = f", {layers.kv_heads} key/value heads" if layers.kv_heads and layers.kv_heads != layers.heads else ""
    window = f", attention window {layers.window}" if layers.window else ""
    return f"Model with {layers.dim} channels, {heads}{groups}, max_seq_len {max_seq_len}{window}."
