"""How the product of a query and a key depends on their distance, measured by calling the scheme's hooks, and its upper bound.

N distances, H heads, G key/value heads, D head dim. The query is at the distance, the key at position 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional.attention.backends.eager import share_heads
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
    mark_lengths,
    png,
    style,
)
from x_positional.plotting.contexts import distance_grid, nearest
from x_positional.plotting.rotation import Pairs, find_pairs, phasors, tables_at
from x_positional.plotting.schemes import PlottedScheme, Probe
from x_positional.plotting.words import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SAMPLES = 64
CHUNK = 2**22
"""Largest number of elements in one rotated tensor."""
NEAR, COUNT = 128, 1024
GROUP_COLOURS = (ORANGE, BLACK, PINK, SKY)
"""Of groups of heads with equal frequencies."""


@dataclass(frozen=True)
class Products:
    """Products [H N] of unit-length queries and keys."""

    equal: Tensor
    """Query and key equal, with the same value in every channel."""
    mean: Tensor
    """Mean over independent random queries and keys."""
    low: Tensor
    """10th percentile over random queries and keys."""
    high: Tensor
    """90th percentile."""


@torch.no_grad()
def products(probe: Probe, distances: Tensor, samples: int = SAMPLES) -> Products:
    """Products at integer distances [N], before the softmax scale. Each is in a sequence just long enough for it."""
    dims, draw = probe.dims, torch.Generator().manual_seed(0)
    q = F.normalize(torch.randn(samples, dims.heads, 1, dims.head_dim, generator=draw), dim=-1)
    k = F.normalize(torch.randn(samples, dims.kv_heads, 1, dims.head_dim, generator=draw), dim=-1)
    flat_q, flat_k = (torch.full_like(x[:1], dims.head_dim**-0.5) for x in (q, k))
    step = max(1, CHUNK // q.numel())
    chunks = distances.split(step)
    equal = torch.cat([_product(probe, flat_q, flat_k, chunk)[0] for chunk in chunks], dim=-1)
    spread = torch.cat([_spread(_product(probe, q, k, chunk)) for chunk in chunks], dim=-1)
    return Products(equal, *spread)


def _product(probe: Probe, q: Tensor, k: Tensor, distances: Tensor) -> Tensor:
    """[B H 1 D], [B G 1 D] -> [B H N]."""
    scheme, lengths, count = probe.scheme, distances[None] + 1, len(distances)
    q = scheme.rotate_q(q.expand(-1, -1, count, -1), tables_at(probe, distances, lengths))
    k = scheme.rotate_k(k.expand(-1, -1, count, -1), tables_at(probe, torch.zeros_like(distances), lengths))
    return (q * share_heads(k, q.shape[1])).sum(-1)


def _spread(values: Tensor) -> Tensor:
    """[B H N] -> [3 H N]: mean, 10th and 90th percentile."""
    low, high = values.quantile(torch.tensor([0.1, 0.9]), dim=0)
    return torch.stack([values.mean(0), low, high])


def upper_bound(probe: Probe, pairs: Pairs, distances: Tensor, length: int) -> Tensor:
    """[N]: the mean of |S_1|, ..., |S_P| at each distance, where S_j is the sum of the phasors of the first j pairs.

    It bounds the product of any query and key, if the products of neighbouring pairs differ by at most 1 / P (Su et al.
    2021, arXiv:2104.09864, section 3.4.3).
    """
    return phasors(probe, pairs, distances, length).cumsum(-1).abs().mean(-1).float()


def equal_heads(values: Tensor) -> list[list[int]]:
    """[H N] -> groups of heads whose rows are equal, in order."""
    groups: list[list[int]] = []
    for head, row in enumerate(values):
        group = next((g for g in groups if torch.allclose(values[g[0]], row, rtol=1e-4, atol=1e-5)), None)
        if group is None:
            groups.append([head])
        else:
            group.append(head)
    return groups


def draw_products(plotted: PlottedScheme) -> Picture:
    """Equal and random unit-length queries and keys: short distances on the left, all distances on the right."""
    drawn = figure(9.6, 4.2)
    panels = drawn.subplots(1, 2, sharey=True)
    ranges = _ranges(plotted)
    found = [products(plotted.probe, distances) for distances in ranges]
    for axes, distances, product in zip(panels, ranges, found, strict=True):
        _plot_products(axes, distances, product)
        _style(axes, plotted, distances)
    panels[0].set_ylabel("query · key (before the softmax scale)")
    _legend(drawn, panels[1], plotted)
    caption = _caption(plotted, ranges[-1], found[-1])
    return Picture(f"{plotted.name}-products", "Product of query and key by distance", caption, png(drawn))


def draw_bound(plotted: PlottedScheme) -> Picture | None:
    """The bound of RoFormer, section 3.4.3, at short and at all distances; None if there are fewer than two pairs."""
    pairs = find_pairs(plotted.probe, plotted.max_seq_len)
    if pairs is None or len(pairs.inputs) < 2:
        return None
    drawn = figure(9.6, 3.8)
    panels = drawn.subplots(1, 2, sharey=True)
    ranges = _ranges(plotted)
    limits = [upper_bound(plotted.probe, pairs, distances, plotted.horizon + 1) for distances in ranges]
    for axes, distances, limit in zip(panels, ranges, limits, strict=True):
        axes.plot(distances.numpy(), limit.numpy(), color=GREEN, linewidth=1.3, label="mean of |S_1| .. |S_P|")
        axes.set_ylim(bottom=0)
        _style(axes, plotted, distances)
    panels[0].set_ylabel("upper bound")
    _legend(drawn, panels[1], plotted)
    distances, limit = ranges[-1], limits[-1]
    at = nearest(distances, plotted.trained)
    caption = (
        "Upper bound on the product of a query and a key over the rotated channels, if the products of neighbouring pairs "
        f"differ by at most 1/{len(pairs.inputs)} (RoFormer, section 3.4.3). It falls from {number(float(limit[0]))} to "
        f"{number(float(limit[at]))} at distance {int(distances[at])} and averages {number(float(limit[at:].mean()))} beyond."
    )
    return Picture(f"{plotted.name}-bound", "Upper bound by distance", caption, png(drawn))


def _ranges(plotted: PlottedScheme) -> tuple[Tensor, Tensor]:
    """Short distances, and all distances."""
    near = min(NEAR, plotted.trained, plotted.horizon)
    return distance_grid(near, COUNT), distance_grid(plotted.horizon, COUNT)


def _style(axes: Axes, plotted: PlottedScheme, distances: Tensor) -> None:
    far = int(distances.max())
    axes.set_xlim(0, 1.02 * far)
    style(axes, xlabel="distance", title="all distances" if far == plotted.horizon else "short distances")


def _legend(drawn: Figure, axes: Axes, plotted: PlottedScheme) -> None:
    mark_lengths(axes, plotted.marks)
    drawn.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False, fontsize=8)


def _plot_products(axes: Axes, distances: Tensor, found: Products) -> None:
    head = most_varying(found)
    x, low, high = distances.numpy(), found.low[head].numpy(), found.high[head].numpy()
    axes.fill_between(x, low, high, color=FAINT_BLUE, linewidth=0, label="random q and k: 10th to 90th percentile")
    axes.plot(x, found.mean[head].numpy(), color=BLUE, linewidth=1.2, label="random q and k: mean")
    groups = equal_heads(found.equal)
    for group, colour in zip(groups, GROUP_COLOURS, strict=False):
        label = "q = k, equal in every channel"
        label += "" if len(groups) == 1 else f", {_heads(group)}"
        axes.plot(x, found.equal[group[0]].numpy(), color=colour, linewidth=1.5, label=label)


def _heads(group: list[int]) -> str:
    """Heads numbered from 1: one, a range, or the first and the number of others."""
    first, last = group[0] + 1, group[-1] + 1
    if first == last:
        return f"head {first}"
    return f"heads {first} to {last}" if last - first == len(group) - 1 else f"head {first} and {len(group) - 1} more"


def _omitted_groups(count: int) -> str:
    return "" if count <= len(GROUP_COLOURS) else f" Of {count} groups of heads, {len(GROUP_COLOURS)} are shown."


def most_varying(found: Products) -> int:
    """The head whose products depend most on distance."""
    return int((found.equal.amax(-1) - found.equal.amin(-1)).argmax())


def _caption(plotted: PlottedScheme, distances: Tensor, found: Products) -> str:
    head = most_varying(found)
    equal, mean, at = found.equal[head], found.mean[head], nearest(distances, plotted.trained)
    first, then, beyond = (number(float(value)) for value in (equal[0], equal[at], equal[at:].mean()))
    random, later = (number(float(value), 2) for value in (mean[0], mean[at:].mean()))
    return (
        f"The product of an equal query and key of unit length is {first} at distance 0, {then} at distance "
        f"{int(distances[at])}, and averages {beyond} beyond. For random ones the mean is {random} at distance 0 and {later} "
        f"beyond distance {int(distances[at])}.{_omitted_groups(len(equal_heads(found.equal)))}{plotted.learned_note}"
    )
