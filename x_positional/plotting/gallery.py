"""Which pictures a scheme gets, by the hooks it overrides, and all of them as files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from x_positional.config.layers import LayersConfig
from x_positional.plotting.biases import adds
from x_positional.plotting.canvas import Picture, figure
from x_positional.plotting.draw_biases import draw_curves, draw_map
from x_positional.plotting.draw_embeddings import draw_similarity, draw_table
from x_positional.plotting.draw_products import draw_bound, draw_products
from x_positional.plotting.draw_rotation import draw_cos_sin, draw_wavelengths
from x_positional.plotting.embeddings import embeds
from x_positional.plotting.page import Section, render
from x_positional.plotting.part import Part, parts_of
from x_positional.plotting.rotation import rotates
from x_positional.training.progress import Track, silent

PAGE = "index.html"
NOTHING = "This scheme changes no embedding, query, key or score, so there is nothing to draw."

Draw = Callable[[Part], Picture | None]
DRAWN: tuple[tuple[Callable[[Part], bool], tuple[Draw, ...]], ...] = (
    (embeds, (draw_table, draw_similarity)),
    (lambda part: rotates(part.scheme), (draw_products, draw_bound, draw_cos_sin, draw_wavelengths)),
    (lambda part: adds(part.scheme), (draw_map, draw_curves)),
)
"""What a scheme does, and the pictures of it."""


@dataclass(frozen=True)
class Gallery:
    """The files that were written."""

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
    """Draw every scheme of a stack into `folder`: a PNG for each picture, and one page with all of them.

    Raises MissingExtra without matplotlib, before anything is computed or written.
    """
    figure(1, 1)
    parts = parts_of(layers, max_seq_len, embed_dim)
    work = [(part, one) for part in parts for does, pictures in DRAWN if does(part) for one in pictures]
    drawn = [(part, one(part)) for part, one in track(work, "drawing")]
    by_part = {part.name: [p for owner, p in drawn if owner is part and p is not None] for part in parts}
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for picture in (p for pictures in by_part.values() for p in pictures):
        files.append(folder / f"{picture.name}.png")
        files[-1].write_bytes(picture.png)
    sections = [_section(part, by_part[part.name]) for part in parts]
    page = folder / PAGE
    page.write_text(render(title, _facts(layers, max_seq_len), sections), encoding="utf-8")
    return Gallery(page, files)


def _section(part: Part, pictures: list[Picture]) -> Section:
    about = f"{part.config.summary} ({part.config.paper})" if part.config.paper else part.config.summary
    note = f"Positions here move along {_axes(part)}." if part.scheme.max_axes > 1 else ""
    note += " Each layer has parameters of its own; these are of one." if part.scheme.per_layer else ""
    return Section(part.name, about, pictures, note.strip() if pictures else NOTHING)


def _axes(part: Part) -> str:
    axis, axes = part.subject.axis, part.scheme.max_axes
    return f"all {axes} axes alike" if axis is None else f"axis {axis + 1} of {axes}, the others stay at 0"


def _facts(layers: LayersConfig, max_seq_len: int) -> str:
    heads = f"{layers.heads} heads of {layers.head_dim} channels"
    groups = f", {layers.kv_heads} key heads" if layers.kv_heads and layers.kv_heads != layers.heads else ""
    window = f", a window of {layers.window} tokens" if layers.window else ""
    return f"A model of {layers.dim} channels, {heads}{groups}, max_seq_len {max_seq_len}{window}."
