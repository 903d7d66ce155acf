"""Attention contexts to call schemes with: a square of tokens, a last query, or one query at given distances.

T query tokens, S key tokens.
"""

from dataclasses import replace

import torch
from torch import Tensor

from x_positional.attention import masks
from x_positional.plotting.schemes import PlottedScheme
from x_positional.schemes.base import AttentionContext, AttentionWindow


def square(plotted: PlottedScheme, tokens: int) -> AttentionContext:
    """`tokens` queries and keys with the masks of the model: causal in a decoder, and the attention window."""
    index = torch.arange(tokens)[None]
    ctx = _context(plotted, index, index, ordered=True)
    rules = [masks.causal(index, index)] if ctx.causal else []
    if plotted.window is not None:
        rules.append(masks.sliding_window(index, index, plotted.window, ctx.causal))
    return replace(ctx, visible=masks.all_of(rules, index)) if rules else ctx


def last_query(plotted: PlottedScheme, tokens: int) -> AttentionContext:
    """The last of `tokens` tokens as the only query, without masks."""
    index = torch.arange(tokens)[None]
    return replace(_context(plotted, index[:, -1:], index, ordered=True), q_start=tokens - 1)


def at_distances(plotted: PlottedScheme, distances: Tensor) -> AttentionContext:
    """One query, and keys [S] at these distances from it (query position minus key position), in any order."""
    query = int(distances.max())
    positions = query - distances[None]
    ctx = _context(plotted, torch.tensor([[query]]), positions, ordered=False)
    return replace(ctx, custom_positions=True)


def distance_grid(reach: int, count: int, both_sides: bool = False) -> Tensor:
    """At most count + 1 evenly spaced integer distances from 0 (with `both_sides` from -reach) to reach."""
    return torch.linspace(-reach if both_sides else 0, reach, count + 1, dtype=torch.float64).round().long().unique()


def nearest(distances: Tensor, distance: int) -> int:
    """Index of the entry of [N] distances that is nearest to `distance`."""
    return int(torch.argmin((distances - distance).abs()))


def _context(plotted: PlottedScheme, q_index: Tensor, kv_index: Tensor, ordered: bool) -> AttentionContext:
    return AttentionContext(
        q_index=q_index,
        kv_index=kv_index,
        q_positions=plotted.probe.on_axes(q_index[0]),
        kv_positions=plotted.probe.on_axes(kv_index[0]),
        batch=1,
        heads=plotted.dims.heads,
        span=int(kv_index.max()) + 1,
        causal=plotted.dims.causal,
        window=AttentionWindow(size=plotted.window),
        ordered=ordered,
        custom_positions=plotted.scheme.max_axes > 1,
    )
