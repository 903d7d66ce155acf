"""Figures, a colour-blind safe palette, and PNG output."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from x_positional.errors import import_extra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"
BLACK, GREY = "#222222", "#7a7a7a"
FAINT_BLUE = "#c2dcee"
MASKED = "#e4e4e4"
SEQUENTIAL, DIVERGING, HEADS = "cividis", "PuOr_r", "viridis"
LAYOUT: Literal["constrained"] | None = "constrained"
"""How margins are fitted to labels."""


@dataclass(frozen=True)
class Picture:
    """A finished plot."""

    name: str
    """File name without extension."""
    title: str
    caption: str
    png: bytes


def figure(width: float, height: float) -> Figure:
    """An empty figure of this size in inches. Raises MissingExtra without matplotlib."""
    import_extra("matplotlib.figure", "plots need", "train")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    empty = Figure(figsize=(width, height), dpi=130, layout=LAYOUT, facecolor="white")
    FigureCanvasAgg(empty)
    return empty


def png(drawn: Figure) -> bytes:
    """The figure as PNG, without metadata that would differ between runs."""
    out = io.BytesIO()
    drawn.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def style(axes: Axes, **labels: str) -> None:
    """Set labels, a faint grid, and no frame at the top and right."""
    axes.set(**labels)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def mark_lengths(axes: Axes, marks: list[tuple[int, str]], *, vertical: bool = True) -> None:
    """A labelled dashed line at each length, vertical or horizontal; also at minus the length if that is in range."""
    line = axes.axvline if vertical else axes.axhline
    for (length, name), pattern in zip(marks, ((4, 3), (1, 2)), strict=False):
        line(length, color=BLACK, linewidth=1.2, linestyle=(0, pattern), label=name)
        if vertical and axes.get_xlim()[0] <= -length:
            line(-length, color=BLACK, linewidth=1.2, linestyle=(0, pattern))


def colours(count: int) -> list[tuple[float, float, float, float]]:
    """Colours from dark to light, none too light for a white background."""
    from matplotlib import colormaps

    return [colormaps[HEADS](0.88 * i / max(1, count - 1)) for i in range(count)]


def evenly_spaced(count: int, most: int) -> list[int]:
    """At most `most` evenly spaced numbers of 0 to count - 1, including both ends."""
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).round().long().tolist()


def colour_ranges(*stages: Tensor) -> tuple[str, list[tuple[float, float]]]:
    """[H ...] at each stage -> one colour map, and limits for each head, so that a head with small values is seen as well."""
    colour_map, _, _ = colour_range(*stages)
    heads = [colour_range(*(values[head] for values in stages))[1:] for head in range(len(stages[0]))]
    if colour_map == DIVERGING:
        heads = [(-max(-low, high), max(-low, high)) for low, high in heads]
    return colour_map, heads


def colour_range(*values: Tensor) -> tuple[str, float, float]:
    """Colour map and limits: diverging and symmetric about 0 if there are both signs, otherwise from minimum to maximum."""
    finite = torch.cat([one[one.isfinite()] for one in values])
    low, high = float(finite.min()), float(finite.max())
    if low < 0 < high:
        far = max(-low, high)
        return DIVERGING, -far, far
    return SEQUENTIAL, low, high if high > low else low + 1
