"""Plots of what is added to attention scores: a map per head, and curves by distance.

H heads, T query tokens, S key tokens, N distances.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from x_positional.errors import counted
from x_positional.plotting.biases import ScoreBias, bias_map, bias_of_distance, farthest
from x_positional.plotting.canvas import (
    MASKED,
    Picture,
    colour_range,
    colour_ranges,
    colours,
    evenly_spaced,
    figure,
    mark_lengths,
    png,
    style,
)
from x_positional.plotting.contexts import distance_grid, nearest
from x_positional.plotting.schemes import PlottedScheme
from x_positional.plotting.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TOKENS, PANELS, LINES, NEAR, COUNT = 64, 12, 8, 128, 1024


def draw_map(plotted: PlottedScheme) -> Picture:
    """One panel per head, each with its own colour scale."""
    tokens = min(plotted.max_seq_len, TOKENS)
    added = bias_map(plotted, tokens)
    heads = evenly_spaced(plotted.dims.heads, PANELS)
    columns = min(4, len(heads))
    rows = math.ceil(len(heads) / columns)
    drawn = figure(2.6 * columns + 0.6, 2.1 * rows + 0.5)
    grid = drawn.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    colour_map, ranges = colour_ranges(*(bias_map(one, tokens).values[heads] for one in plotted.beside))
    for index, axes in enumerate(grid.flat):
        if index >= len(heads):
            axes.set_visible(False)
            continue
        axes.set_facecolor(MASKED)
        values, (low, high) = added.values[heads[index]].numpy(), ranges[index]
        image = axes.imshow(values, cmap=colour_map, vmin=low, vmax=high, interpolation="nearest")
        drawn.colorbar(image, ax=axes, shrink=0.85).ax.tick_params(labelsize=7)
        axes.set_title(f"head {heads[index] + 1}", fontsize=9)
        axes.tick_params(labelsize=8, labelbottom=index + columns >= len(heads))
    drawn.supxlabel("key position", fontsize=10)
    drawn.supylabel("query position", fontsize=10)
    return Picture(
        f"{plotted.name}-bias-map", "Bias by query and key", _map_caption(plotted, added, len(heads)), png(drawn)
    )


def draw_curves(plotted: PlottedScheme) -> Picture:
    """One line per head: short distances on the left, all distances on the right."""
    reach = farthest(plotted)
    near = min(NEAR, reach, plotted.trained)
    drawn = figure(9.6, 3.8)
    panels = drawn.subplots(1, 2)
    heads, both_sides = plotted.dims.heads, not plotted.dims.causal
    ranges = [distance_grid(far, COUNT, both_sides) for far in (near, reach)]
    measured = [bias_of_distance(plotted, distances) for distances in ranges]
    for axes, distances, added in zip(panels, ranges, measured, strict=True):
        for head, colour in enumerate(colours(heads)):
            label = f"head {head + 1}" if head in evenly_spaced(heads, LINES) else None
            axes.plot(distances.numpy(), added.values[head].numpy(), color=colour, linewidth=1.5, label=label)
        axes.set_xlim(1.02 * int(distances.min()), 1.02 * int(distances.max()))
        _same_limits(axes, plotted, distances)
        style(
            axes,
            xlabel="distance (query position - key position)",
            title="short distances" if distances is ranges[0] else "all distances",
        )
    panels[0].set_ylabel("bias added to the score (logits)")
    mark_lengths(panels[1], plotted.marks)
    drawn.legend(*panels[1].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return Picture(
        f"{plotted.name}-bias-distance",
        "Bias by distance",
        _curves_caption(plotted, ranges[1], measured[1]),
        png(drawn),
    )


def _same_limits(axes: Axes, plotted: PlottedScheme, distances: Tensor) -> None:
    """The vertical limits that show every stage of the scheme."""
    if plotted.others:
        _, low, high = colour_range(*(bias_of_distance(one, distances).values for one in plotted.beside))
        margin = 0.05 * (high - low)
        axes.set_ylim(low - margin, high + margin)


def _map_caption(plotted: PlottedScheme, added: ScoreBias, shown: int) -> str:
    values, count = added.values, plotted.dims.heads
    low, high = (float(bound) for bound in values[values.isfinite()].aminmax())
    heads = f"{shown} of {counted(count, 'head')}" if shown < count else counted(count, "head")
    masked = "; masked keys are grey" if values.isnan().any() else ""
    return (
        f"What is added to the attention score of each query (row) and key (column), for {heads}: "
        f"{number(low)} to {number(high)} logits{masked}. Each head has its own colours.{_measurement_note(plotted, added)}"
    )


def _curves_caption(plotted: PlottedScheme, distances: Tensor, added: ScoreBias) -> str:
    at = nearest(distances, plotted.trained)
    low, high = (float(bound) for bound in added.values[:, at].aminmax())
    bias = (
        f"{number(low)} logits"
        if plotted.dims.heads == 1
        else f"{number(low)} to {number(high)} logits, depending on the head"
    )
    text = f"What is added to the attention score by distance, one line per head. At distance {int(distances[at])}: {bias}."
    flat = _constant_from(distances, added.values)
    if flat is not None:
        text += f" It is constant from distance {flat}: the scheme cannot tell keys farther away apart."
    return text + _measurement_note(plotted, added)


def _constant_from(distances: Tensor, values: Tensor) -> int | None:
    """The distance from which the bias of every head is constant; None if it keeps changing or never changes."""
    changes = (values != values[:, -1:]).any(0).nonzero()
    if len(changes) == 0 or int(changes[-1]) >= 0.9 * len(distances):
        return None
    return int(distances[int(changes[-1]) + 1])


def _measurement_note(plotted: PlottedScheme, added: ScoreBias) -> str:
    """Which parameters and content the values were measured with."""
    text = ""
    if added.content_dependent:
        text += " It depends on content; this is for random, normally distributed queries, keys and inputs."
    if added.randomized:
        text += " The initial parameters add nothing, so random ones are shown."
        return text
    return text + plotted.learned_note
