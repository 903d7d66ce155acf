"""Pictures of what is added to scores: a map per head, and curves of distance.

H heads, T query tokens, S key tokens, N distances.
"""

import math

from torch import Tensor

from x_positional.plotting.biases import Added, bias_map, bias_of_distance, farthest
from x_positional.plotting.canvas import HIDDEN, Picture, colours, figure, limits, mark, png, some, tidy
from x_positional.plotting.contexts import distances, nearest
from x_positional.plotting.part import Part

TOKENS, PANELS, LINES, NEAR, COUNT = 64, 12, 8, 128, 1024


def draw_map(part: Part) -> Picture:
    """One panel a head, all on one scale."""
    tokens = min(part.max_seq_len, TOKENS)
    added = bias_map(part, tokens)
    heads = some(part.dims.heads, PANELS)
    columns = min(4, len(heads))
    rows = math.ceil(len(heads) / columns)
    drawn = figure(2.1 * columns + 1.2, 2.1 * rows + 0.5)
    grid = drawn.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    colour_map, low, high = limits(added.values[heads])
    images = []
    for place, axes in enumerate(grid.flat):
        if place >= len(heads):
            axes.set_visible(False)
            continue
        axes.set_facecolor(HIDDEN)
        values = added.values[heads[place]].numpy()
        images.append(axes.imshow(values, cmap=colour_map, vmin=low, vmax=high, interpolation="nearest"))
        axes.set_title(f"head {heads[place] + 1}", fontsize=9)
        axes.tick_params(labelsize=8, labelbottom=place + columns >= len(heads))
    drawn.supxlabel("key position", fontsize=10)
    drawn.supylabel("query position", fontsize=10)
    drawn.colorbar(images[0], ax=grid, label="added to the score (logits)")
    return Picture(f"{part.name}-bias-map", "Bias map", _about_map(part, added, len(heads)), png(drawn))


def draw_curves(part: Part) -> Picture:
    """One line a head: nearby on the left, as far as the horizon on the right."""
    reach = farthest(part)
    near = min(NEAR, reach, part.trained)
    drawn = figure(9.6, 3.8)
    panels = drawn.subplots(1, 2)
    heads, both_sides = part.dims.heads, not part.dims.causal
    ranges = [distances(far, COUNT, both_sides) for far in (near, reach)]
    measured = [bias_of_distance(part, asked) for asked in ranges]
    for axes, asked, added in zip(panels, ranges, measured, strict=True):
        for head, colour in enumerate(colours(heads)):
            label = f"head {head + 1}" if head in some(heads, LINES) else None
            axes.plot(asked.numpy(), added.values[head].numpy(), color=colour, linewidth=1.5, label=label)
        axes.set_xlim(1.02 * int(asked.min()), 1.02 * int(asked.max()))
        tidy(
            axes,
            xlabel="distance (query position - key position)",
            title="nearby" if asked is ranges[0] else "all the way",
        )
    panels[0].set_ylabel("added to the score (logits)")
    mark(panels[1], part.marks)
    drawn.legend(*panels[1].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return Picture(
        f"{part.name}-bias-distance", "Bias and distance", _about_curves(part, ranges[1], measured[1]), png(drawn)
    )


def _about_map(part: Part, added: Added, shown: int) -> str:
    values, count = added.values, part.dims.heads
    low, high = (float(bound) for bound in values[values.isfinite()].aminmax())
    panels = f"Each panel is one of {count} heads" + (f" ({shown} of them shown)" if shown < count else "")
    hidden = "; grey keys are hidden by the mask" if values.isnan().any() else ""
    return (
        f"{panels}: what is added to the score of a query (row) and a key (column), between {low:.3g} and {high:.3g} "
        f"logits{hidden}.{_origin(part, added)}"
    )


def _about_curves(part: Part, asked: Tensor, added: Added) -> str:
    at = nearest(asked, part.trained)
    low, high = (float(bound) for bound in added.values[:, at].aminmax())
    what = f"{low:.3g} logits" if part.dims.heads == 1 else f"between {low:.3g} and {high:.3g} logits, one line a head,"
    text = f"What a score gets by distance: {what} at {int(asked[at])}."
    flat = _constant_from(asked, added.values)
    if flat is not None:
        text += f" From distance {flat} on nothing changes any more: all farther keys look equally far."
    return text + _origin(part, added)


def _constant_from(asked: Tensor, values: Tensor) -> int | None:
    """The distance from which on all heads stay the same; None where they do not, or are constant altogether."""
    changes = (values != values[:, -1:]).any(0).nonzero()
    if len(changes) == 0 or int(changes[-1]) >= 0.9 * len(asked):
        return None
    return int(asked[int(changes[-1]) + 1])


def _origin(part: Part, added: Added) -> str:
    """Which parameters and content stand behind the values."""
    text = ""
    if added.of_content:
        text += " It depends on content: queries, keys and inputs are random here, drawn from a normal distribution."
    if added.stirred:
        text += " With the parameters at the start of training nothing is added, so random ones are drawn here."
        return text
    return text + part.learned
