"""Pictures of how the product of queries and keys changes with their distance, and of the bound on it.

H heads, N distances.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from x_positional.plotting.canvas import (
    BLACK,
    BLUE,
    FAINT_BLUE,
    GREEN,
    ORANGE,
    PINK,
    SKY,
    Picture,
    figure,
    mark,
    png,
    tidy,
)
from x_positional.plotting.contexts import distances, nearest
from x_positional.plotting.part import Part
from x_positional.plotting.products import Products, alike, bound, products
from x_positional.plotting.rotation import find_pairs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NEAR, COUNT = 128, 1024
OF_GROUPS = (ORANGE, BLACK, PINK, SKY)
"""Of heads that turn differently."""


def draw_products(part: Part) -> Picture:
    """Equal and random queries and keys of length 1: nearby on the left, as far as the horizon on the right."""
    drawn = figure(9.6, 4.2)
    panels = drawn.subplots(1, 2, sharey=True)
    for axes, asked in zip(panels, _ranges(part), strict=True):
        found = products(part.subject, asked)
        _lines(axes, asked, found)
        _frame(axes, part, asked)
    panels[0].set_ylabel("query · key, before attention's scale")
    _legend(drawn, panels[1], part)
    sentence = _about(part, asked, found)
    return Picture(f"{part.name}-products", "Query times key, by distance", sentence, png(drawn))


def draw_bound(part: Part) -> Picture | None:
    """The bound of RoFormer's section 3.4.3, nearby and as far as the horizon; None where pairs are fewer than two."""
    pairs = find_pairs(part.subject, part.max_seq_len)
    if pairs is None or len(pairs.inputs) < 2:
        return None
    drawn = figure(9.6, 3.8)
    panels = drawn.subplots(1, 2, sharey=True)
    for axes, asked in zip(panels, _ranges(part), strict=True):
        limit = bound(part.subject, pairs, asked, part.horizon + 1)
        axes.plot(asked.numpy(), limit.numpy(), color=GREEN, linewidth=1.3, label="mean of |S_1| .. |S_P|")
        axes.set_ylim(bottom=0)
        _frame(axes, part, asked)
    panels[0].set_ylabel("upper bound")
    _legend(drawn, panels[1], part)
    at = nearest(asked, part.trained)
    sentence = (
        "In the channels that turn, no query and key have a product above this line if those of neighbouring pairs differ by "
        f"at most 1/{len(pairs.inputs)} (RoFormer, section 3.4.3). It falls from {float(limit[0]):.3g} to {float(limit[at]):.3g} "
        f"at distance {int(asked[at])}, and is {float(limit[at:].mean()):.3g} on average after that."
    )
    return Picture(f"{part.name}-bound", "Upper bound by distance", sentence, png(drawn))


def _ranges(part: Part) -> tuple[Tensor, Tensor]:
    """Distances nearby, and all the way."""
    near = min(NEAR, part.trained, part.horizon)
    return distances(near, COUNT), distances(part.horizon, COUNT)


def _frame(axes: Axes, part: Part, asked: Tensor) -> None:
    far = int(asked.max())
    axes.set_xlim(0, 1.02 * far)
    tidy(axes, xlabel="distance", title="all the way" if far == part.horizon else "nearby")


def _legend(drawn: Figure, axes: Axes, part: Part) -> None:
    mark(axes, part.marks)
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def _lines(axes: Axes, asked: Tensor, found: Products) -> None:
    head = moving(found)
    x, low, high = asked.numpy(), found.low[head].numpy(), found.high[head].numpy()
    axes.fill_between(x, low, high, color=FAINT_BLUE, linewidth=0, label="random q and k: middle 80 %")
    axes.plot(x, found.mean[head].numpy(), color=BLUE, linewidth=1.2, label="random q and k: average")
    groups = alike(found.same)
    for group, colour in zip(groups, OF_GROUPS, strict=False):
        label = "q = k, the same in every channel"
        label += "" if len(groups) == 1 else f", {_heads(group)}"
        axes.plot(x, found.same[group[0]].numpy(), color=colour, linewidth=1.5, label=label)


def _heads(group: list[int]) -> str:
    """Heads counted from 1: one, a run of them, or the first and how many more."""
    first, last = group[0] + 1, group[-1] + 1
    if first == last:
        return f"head {first}"
    return f"heads {first} to {last}" if last - first == len(group) - 1 else f"head {first} and {len(group) - 1} more"


def _kinds(count: int) -> str:
    return "" if count <= len(OF_GROUPS) else f" Heads turn in {count} ways, and {len(OF_GROUPS)} of them are drawn."


def moving(found: Products) -> int:
    """The head whose products change most with distance."""
    return int((found.same.amax(-1) - found.same.amin(-1)).argmax())


def _about(part: Part, asked: Tensor, found: Products) -> str:
    head = moving(found)
    same, mean, at = found.same[head], found.mean[head], nearest(asked, part.trained)
    return (
        f"A query and an equal key, both of length 1, begin with a product of {float(same[0]):.3g}; at distance "
        f"{int(asked[at])} it is {float(same[at]):.3g}, and after that {float(same[at:].mean()):.3g} on average. Random ones "
        f"begin with {float(mean[0]):.2g} on average and have {float(mean[at:].mean()):.2g} after distance {int(asked[at])}."
        f"{_kinds(len(alike(found.same)))}{part.learned}"
    )
