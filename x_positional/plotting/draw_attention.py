"""Attention maps of a text: tiles of every layer and head, the heads of a layer with tokens beside them, or one head, large.

H heads, T tokens, R rows and C columns of tiles.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional.errors import ArgumentError
from x_positional.plotting.canvas import MASKED, SEQUENTIAL, Picture, evenly_spaced, figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TILE_CELLS, PANEL_CELLS, LARGE_CELLS = 96, 256, 1024
"""Rows and columns of a tile, a panel and a large map; longer texts are pooled."""
MOST_LAYERS, MOST_HEADS = 48, 32
"""Tiles in a picture; of more layers or heads, evenly spaced ones are drawn."""
PANELS = 16
"""Maps of several layers and heads that are drawn as panels, with their tokens, in place of tiles."""
PANEL_LABELS, LARGE_LABELS = 24, 64
"""Tokens beside a panel and a large map. A large map of more has evenly spaced ones, a panel of more has none."""
NUMBERS = 12
"""Tokens whose probabilities are written into a large map."""
WIDEST_LABEL = 12


@dataclass(frozen=True)
class TextMaps:
    """What a model attends to in one text."""

    maps: Sequence[Tensor]
    """[H T T] a layer."""
    tokens: Sequence[str]
    """The text of each of the T tokens."""

    @property
    def heads(self) -> int:
        """H."""
        return len(self.maps[0])


def draw_attention(found: TextMaps, layer: int | None = None, head: int | None = None) -> Picture:
    """Every head of every layer; the heads of one layer; one head in every layer; or one head, large.

    Args:
        found: The maps.
        layer: From 1; None is every layer.
        head: From 1; None is every head.

    Raises:
        ArgumentError: There is no such layer or head.
        MissingExtra: matplotlib is not installed.
    """
    layers = _chosen("layer", layer, len(found.maps), MOST_LAYERS)
    heads = _chosen("head", head, found.heads, MOST_HEADS)
    name = "".join(f"-{kind}-{n}" for kind, n in (("layer", layer), ("head", head)) if n is not None)
    title = ", ".join(f"{kind} {n}" for kind, n in (("layer", layer), ("head", head)) if n is not None)
    drawn, note = _drawn(found, layers, heads)
    shown = torch.stack([found.maps[i][heads] for i in layers])
    return Picture(
        f"attention{name}", f"Attention, {title or 'every layer and head'}", _caption(shown) + note, png(drawn)
    )


def _drawn(found: TextMaps, layers: list[int], heads: list[int]) -> tuple[Figure, str]:
    """The figure, and what of the text or the model it leaves out."""
    note, count, length = _omitted(found, layers, heads), len(layers) * len(heads), len(found.tokens)
    if count == 1:
        large, step = pooled(found.maps[layers[0]][heads[0]], LARGE_CELLS)
        return _large(large, step, found.tokens), note + _pooling(step)
    rows, columns = [f"layer {i + 1}" for i in layers], [f"head {i + 1}" for i in heads]
    line = min(len(rows), len(columns)) == 1
    cells = PANEL_CELLS if line else TILE_CELLS
    tiles = [[pooled(found.maps[i][j], cells) for j in heads] for i in layers]
    maps, note = [[tile for tile, _ in row] for row in tiles], note + _pooling(tiles[0][0][1])
    if line or (count <= PANELS and length <= PANEL_LABELS):
        titles = [f"{row}, {column}" for row in rows for column in columns]
        wide = math.ceil(math.sqrt(count)) if line else len(columns)
        return _panels([tile for row in maps for tile in row], titles, wide, found.tokens), note
    return _tiles(maps, rows, columns, length), note


def _chosen(kind: str, number: int | None, count: int, most: int) -> list[int]:
    """Numbers from 0. Raises ArgumentError."""
    if number is None:
        return evenly_spaced(count, most)
    if not 1 <= number <= count:
        raise ArgumentError(f"{kind}={number} must be from 1 to {count}: the model has {count} {kind}s.")
    return [number - 1]


def pooled(found: Tensor, cells: int) -> tuple[Tensor, int]:
    """[T T] -> [cells cells] at most, where each cell is the largest of step x step probabilities; and the step."""
    step = math.ceil(len(found) / cells)
    return (found, 1) if step == 1 else (F.max_pool2d(found[None], step, ceil_mode=True)[0], step)


def _pooling(step: int) -> str:
    return "" if step == 1 else f" A cell shows the largest probability among {step} x {step} tokens."


def _omitted(found: TextMaps, layers: list[int], heads: list[int]) -> str:
    pairs = ((len(layers), len(found.maps), "layers"), (len(heads), found.heads, "heads"))
    left = [f"{shown} of {count} {what}" for shown, count, what in pairs if 1 < shown < count]
    return f" Shown are {' and '.join(left)}." if left else ""


def _caption(shown: Tensor) -> str:
    """[L H T T] -> how probability is distributed, over the queries that see more than one key."""
    rows = shown.flatten(0, 1).flatten(0, 1)
    several = rows[(rows > 0).sum(-1) > 1]
    text = "Each row is a query, each column a key; grey keys are hidden from the query."
    if not len(several):
        return text
    first, largest = float(several[:, 0].mean()), float(several.amax(-1).mean())
    return (
        f"{text} On average a query gives {first:.0%} of its attention to the first token, and {largest:.0%} to the key that "
        "it attends to most."
    )


def _norm() -> Any:
    from matplotlib.colors import PowerNorm

    return PowerNorm(0.4, vmin=0, vmax=1)


def _colours(found: Tensor) -> Any:
    """[...] probabilities -> RGB [... 3], grey where a key is hidden."""
    from matplotlib import colormaps
    from matplotlib.colors import to_rgb

    rgb = colormaps[SEQUENTIAL](_norm()(found.numpy()))[..., :3]
    rgb[found.numpy() == 0] = to_rgb(MASKED)
    return rgb


def _scale(drawn: Figure, axes: Axes | None, **options: Any) -> None:
    """The colour bar, in these axes or beside those that `ax=` names."""
    from matplotlib.cm import ScalarMappable

    bar = drawn.colorbar(ScalarMappable(_norm(), SEQUENTIAL), cax=axes, **options)
    bar.set_ticks([0, 0.01, 0.05, 0.2, 0.5, 1], labels=["0", "1%", "5%", "20%", "50%", "100%"])
    bar.set_label("attention", fontsize=9)
    bar.ax.tick_params(labelsize=8)


def _tiles(tiles: list[list[Tensor]], rows: list[str], columns: list[str], tokens: int) -> Figure:
    """All maps in one image, with gaps."""
    cells, side = len(tiles[0][0]), min(1.1, 15 / len(columns))
    gap = max(1, cells // 16)
    image = torch.ones(len(rows) * (cells + gap) - gap, len(columns) * (cells + gap) - gap, 3).numpy()
    for i, row in enumerate(tiles):
        for j, tile in enumerate(row):
            top, left = i * (cells + gap), j * (cells + gap)
            image[top : top + cells, left : left + cells] = _colours(tile)
    wide, tall = side * len(columns), side * len(rows)
    width, height = wide + 1.8, tall + 0.9
    drawn = figure(width, height)
    drawn.set_layout_engine("none")  # it cuts off labels beside tall images
    axes = drawn.add_axes((0.7 / width, 0.35 / height, wide / width, tall / height))
    axes.imshow(image, aspect="auto")
    size, wide_enough = (8, True) if side > 0.7 else (6, False)
    centres = [[n * (cells + gap) + (cells - 1) / 2 for n in range(len(names))] for names in (columns, rows)]
    axes.set_xticks(centres[0], columns, fontsize=size, rotation=0 if wide_enough else 90)
    axes.set_yticks(centres[1], rows, fontsize=size)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel(f"in each tile: queries from top to bottom, keys from left to right, {tokens} tokens", fontsize=9)
    bar = min(3.0, tall)
    _scale(drawn, drawn.add_axes(((0.9 + wide) / width, (0.35 + tall - bar) / height, 0.15 / width, bar / height)))
    return drawn


def _panels(maps: list[Tensor], titles: list[str], wide: int, tokens: Sequence[str]) -> Figure:
    """One panel a map, in lines of `wide`, with tokens at the edges of the figure where they fit."""
    labelled, tall = len(tokens) <= PANEL_LABELS, math.ceil(len(maps) / wide)
    side = 1.4 + 0.1 * len(tokens) if labelled else 2.6
    drawn = figure(side * wide + 1.8, side * tall + 1.2)
    drawn.set_layout_engine("compressed")  # for panels that are square
    grid = drawn.subplots(tall, wide, squeeze=False)
    for index, axes in enumerate(grid.flat):
        if index >= len(maps):
            axes.set_visible(False)
            continue
        axes.imshow(_colours(maps[index]))
        axes.set_title(titles[index], fontsize=9)
        last, first = index + wide >= len(maps), index % wide == 0
        if labelled:
            _label(axes, tokens, 1, 7, keys=last, queries=first)
        else:
            axes.set(xticks=[], yticks=[])
    if not labelled:
        drawn.supxlabel(f"keys from left to right, {len(tokens)} tokens", fontsize=9)
        drawn.supylabel("queries from top to bottom", fontsize=9)
    _scale(drawn, None, ax=grid, fraction=0.03, shrink=min(1.0, 4 / (side * tall)))
    return drawn


def _large(found: Tensor, step: int, tokens: Sequence[str]) -> Figure:
    """One map with its tokens."""
    side = min(12.0, max(4.0, 1.5 + 0.17 * min(len(tokens), LARGE_LABELS)))
    drawn = figure(side + 2.4, side + 0.9)
    axes = drawn.add_subplot()
    axes.imshow(_colours(found))
    _label(axes, tokens, step, 8 if len(tokens) <= 40 else 7)
    axes.set_xlabel("key", fontsize=9)
    axes.set_ylabel("query", fontsize=9)
    if len(tokens) <= NUMBERS:
        for i, row in enumerate(found.tolist()):
            for j, value in enumerate(row):
                if value > 0:
                    colour = "white" if value < 0.3 else "black"
                    axes.text(j, i, f"{value:.0%}", ha="center", va="center", fontsize=7, color=colour)
    _scale(drawn, None, ax=axes, fraction=0.04, shrink=min(1.0, 4 / side))
    return drawn


def _label(axes: Axes, tokens: Sequence[str], step: int, size: int, *, keys: bool = True, queries: bool = True) -> None:
    """Tokens at the ticks: each one, or evenly spaced ones, with their numbers."""
    every = evenly_spaced(len(tokens), LARGE_LABELS)
    numbered = len(every) < len(tokens)
    names = [f"{i}  {readable(tokens[i])}" if numbered else readable(tokens[i]) for i in every]
    places = [i / step for i in every]
    axes.set_xticks(places if keys else [], names if keys else [], fontsize=size, rotation=90, parse_math=False)
    axes.set_yticks(places if queries else [], names if queries else [], fontsize=size, parse_math=False)
    axes.tick_params(length=2)


@functools.cache
def _glyphs() -> frozenset[int]:
    """The characters of matplotlib's own font."""
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont("DejaVu Sans")).get_charmap())


def readable(token: str) -> str:
    """A token as a label: spaces around it cut off, whitespace alone and characters without a glyph made visible."""
    text = token.strip(" ") or "␣" * len(token)
    text = text.translate({ord("\n"): "⏎", ord("\r"): "⏎", ord("\t"): "⇥"})
    text = "".join(c if ord(c) in _glyphs() else f"U+{ord(c):04X}" for c in text)
    return text if len(text) <= WIDEST_LABEL else text[: WIDEST_LABEL - 1] + "…"
