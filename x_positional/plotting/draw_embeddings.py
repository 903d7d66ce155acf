"""Plots of what is added to token embeddings: the table, and the similarity of its rows.

T positions, M model dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional.plotting.canvas import Picture, colour_range, figure, png
from x_positional.plotting.schemes import PlottedScheme
from x_positional.plotting.words import number

ROWS = 512


def embeds(plotted: PlottedScheme) -> bool:
    """Whether the scheme adds to embeddings."""
    return plotted.scheme.overrides("embed")


@torch.no_grad()
def table(plotted: PlottedScheme, positions: int) -> Tensor:
    """[T M]: what is added at positions 0 to T - 1."""
    zeros = torch.zeros(1, positions, plotted.dims.embed_dim)
    return plotted.scheme.embed(zeros, plotted.probe.on_axes(torch.arange(positions)))[0]


def similarity(rows: Tensor) -> Tensor:
    """[T M] -> [T T]: cosine similarity of the rows."""
    rows = F.normalize(rows.double(), dim=-1)
    return (rows @ rows.mT).float()


def draw_table(plotted: PlottedScheme) -> Picture:
    """Heatmap: position by channel."""
    rows = table(plotted, _rows(plotted))
    colour_map, low, high = colour_range(*(table(one, len(rows)) for one in plotted.beside))
    drawn = figure(7.2, 4.4)
    axes = drawn.subplots()
    image = axes.imshow(rows.numpy(), cmap=colour_map, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    axes.set(xlabel="embedding channel", ylabel="position")
    drawn.colorbar(image, ax=axes, label="added to the embedding")
    caption = (
        f"What each of the first {len(rows)} positions adds to the {rows.shape[1]} channels of a token embedding: "
        f"values from {number(float(rows.min()))} to {number(float(rows.max()))}."
    )
    if plotted.scheme.limit is not None:
        caption += f" The last position is {plotted.scheme.limit - 1}."
    return Picture(f"{plotted.name}-table", "Position embeddings", caption + plotted.learned_note, png(drawn))


def draw_similarity(plotted: PlottedScheme) -> Picture:
    """Heatmap: position by position."""
    cosines = similarity(table(plotted, _rows(plotted)))
    colour_map, low, high = colour_range(*(similarity(table(one, len(cosines))) for one in plotted.beside))
    drawn = figure(5.6, 4.6)
    axes = drawn.subplots()
    image = axes.imshow(cosines.numpy(), cmap=colour_map, vmin=low, vmax=high, interpolation="nearest")
    axes.set(xlabel="position", ylabel="position")
    drawn.colorbar(image, ax=axes, label="cosine similarity")
    last = len(cosines) - 1
    half = last // 2
    adjacent = f"{float(cosines.diagonal(1).mean()):.2f}" if last else "1"
    caption = (
        f"Cosine similarity of the embeddings of two positions: on average {adjacent} for adjacent positions and "
        f"{float(cosines.diagonal(half).mean()):.2f} for positions {half} apart."
    )
    return Picture(f"{plotted.name}-similarity", "Cosine similarity of positions", caption, png(drawn))


def _rows(plotted: PlottedScheme) -> int:
    return min(plotted.max_seq_len, plotted.horizon + 1, ROWS)
