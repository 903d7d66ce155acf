"""Attention contexts to ask schemes with: a square of tokens, one query that sees every key, one query at chosen distances.

T query tokens, S key tokens.
"""

from dataclasses import replace

import torch
from torch import Tensor

from x_positional.attention import masks
from x_positional.plotting.part import Part
from x_positional.schemes.base import AttentionContext, AttentionWindow


def square(part: Part, tokens: int) -> AttentionContext:
    """`tokens` queries and keys, masked as in the model: the future in a decoder, and what is outside the window."""
    index = torch.arange(tokens)[None]
    ctx = _context(part, index, index, ordered=True)
    rules = [masks.causal(index, index)] if ctx.causal else []
    if part.window is not None:
        rules.append(masks.sliding_window(index, index, part.window, ctx.causal))
    return replace(ctx, visible=masks.all_of(rules, index)) if rules else ctx


def last_query(part: Part, tokens: int) -> AttentionContext:
    """The last of `tokens` tokens as the only query; nothing is hidden from it."""
    index = torch.arange(tokens)[None]
    return replace(_context(part, index[:, -1:], index, ordered=True), q_start=tokens - 1)


def at_distances(part: Part, distances: Tensor) -> AttentionContext:
    """One query, and keys [S] at these distances from it (query position minus key position), in any order."""
    query = int(distances.max())
    positions = query - distances[None]
    ctx = _context(part, torch.tensor([[query]]), positions, ordered=False)
    return replace(ctx, custom_positions=True)


def distances(reach: int, count: int, both_sides: bool = False) -> Tensor:
    """[count + 1 at most] whole distances, evenly from 0 (or -reach) to reach."""
    return torch.linspace(-reach if both_sides else 0, reach, count + 1, dtype=torch.float64).round().long().unique()


def nearest(asked: Tensor, distance: int) -> int:
    """Where in [N] distances the one nearest to `distance` is."""
    return int(torch.argmin((asked - distance).abs()))


def _context(part: Part, q_index: Tensor, kv_index: Tensor, ordered: bool) -> AttentionContext:
    return AttentionContext(
        q_index=q_index,
        kv_index=kv_index,
        q_positions=part.subject.place(q_index[0]),
        kv_positions=part.subject.place(kv_index[0]),
        batch=1,
        heads=part.dims.heads,
        span=int(kv_index.max()) + 1,
        causal=part.dims.causal,
        window=AttentionWindow(size=part.window),
        ordered=ordered,
        custom_positions=part.scheme.max_axes > 1,
    )
