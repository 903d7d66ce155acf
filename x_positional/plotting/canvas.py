"""Empty figures, colours that colour-blind readers can tell apart, and figures as PNG bytes."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from x_positional.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, PINK, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9"
BLACK, GREY = "#222222", "#7a7a7a"
FAINT_BLUE = "#c2dcee"
HIDDEN = "#e4e4e4"
ONE_SIGN, TWO_SIGNS, HEADS = "cividis", "PuOr_r", "viridis"


@dataclass(frozen=True)
class Picture:
    """name: of the file, without ending. sentence: what one sees."""

    name: str
    title: str
    sentence: str
    png: bytes


def figure(width: float, height: float) -> Figure:
    """An empty figure, in inches. Raises MissingExtra without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("pictures need matplotlib: pip install 'x-positional[train]'") from error
    empty = Figure(figsize=(width, height), dpi=130, layout="constrained", facecolor="white")
    FigureCanvasAgg(empty)
    return empty


def png(drawn: Figure) -> bytes:
    """The same bytes for the same figure."""
    out = io.BytesIO()
    drawn.savefig(out, format="png", metadata={"Software": None})
    return out.getvalue()


def tidy(axes: Axes, **labels: str) -> None:
    """Labels, a faint grid, no frame at the top and the right."""
    axes.set(**labels)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def mark(axes: Axes, marks: list[tuple[int, str]], *, upright: bool = True) -> None:
    """A broken line at each length, upright or level, that names itself in a legend; on the negative side too."""
    line = axes.axvline if upright else axes.axhline
    for (place, name), pattern in zip(marks, ((4, 3), (1, 2)), strict=False):
        line(place, color=BLACK, linewidth=1.2, linestyle=(0, pattern), label=name)
        if upright and axes.get_xlim()[0] <= -place:
            line(-place, color=BLACK, linewidth=1.2, linestyle=(0, pattern))


def colours(count: int) -> list[tuple[float, float, float, float]]:
    """From dark to light, none too light for a white ground."""
    from matplotlib import colormaps

    return [colormaps[HEADS](0.88 * i / max(1, count - 1)) for i in range(count)]


def some(count: int, most: int) -> list[int]:
    """At most so many of 0 .. count-1, evenly, the first and the last among them."""
    return torch.linspace(0, count - 1, min(count, most), dtype=torch.float64).round().long().tolist()


def limits(values: Tensor) -> tuple[str, float, float]:
    """Colour map and range of values: from the smallest to the largest, or around 0 where there are both signs."""
    finite = values[values.isfinite()]
    low, high = float(finite.min()), float(finite.max())
    if low < 0 < high:
        far = max(-low, high)
        return TWO_SIGNS, -far, far
    return ONE_SIGN, low, high if high > low else low + 1
