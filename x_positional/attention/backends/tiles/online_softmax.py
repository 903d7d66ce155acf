"""The scores of a tile, and the forward pass by tiles with an online softmax."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from x_positional.attention.backends.tiles.geometry import Hidden, Tile, TilePlan
from x_positional.schemes.base import Span
from x_positional.schemes.terms import ScoreBlock, SumTerm


def least_log(dtype: torch.dtype) -> float:
    """The logarithm below which a probability is negligible: that of the cube of the dtype's precision."""
    return 3 * math.log(torch.finfo(dtype).eps)


def exp_(scores: Tensor, hidden: list[Hidden], terms: SumTerm) -> Tensor:
    """exp of scores that are at most about 0, in place; 0 for hidden keys.

    Subnormal numbers are a hundred times slower on a CPU, also inside `exp`. So scores are clamped at `least_log`: the results are
    normal numbers, and so are their products with gradients.
    """
    if terms.parts or hidden:
        scores.clamp_(min=least_log(scores.dtype))
    scores.exp_()
    for cut, visible, _ in hidden:
        scores[..., cut] *= visible
    return scores


@dataclass
class Scores:
    """Computes the scores of tiles of one row of the batch, in one buffer that all tiles reuse."""

    plan: TilePlan
    row: int
    inputs: Sequence[Tensor]
    """The inputs of the terms."""
    buffer: Tensor

    def block(self, tile: Tile, heads: Span) -> ScoreBlock:
        """Some heads of a tile, in the form that terms take."""
        return ScoreBlock(self.row, heads, tile.queries, tile.keys, tile.earlier)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """a [G R D] times b [G W D], as [G R W] in the buffer."""
        shape = a.shape[0], a.shape[1], b.shape[1]
        return torch.bmm(a, b.mT, out=self.buffer[: shape[0] * shape[1] * shape[2]].view(shape))

    def of(self, tile: Tile, heads: Span, q: Tensor, k: Tensor) -> tuple[Tensor, list[Hidden], Any]:
        """[G R W], where keys are hidden, and what the terms keep. q: [G R D], scaled; k: [G W D]."""
        scores, hidden = self.product(q, k), self.plan.hidden(self.row, tile.queries, tile.keys)
        for cut, _, mask in hidden:
            scores[..., cut] += mask
        return scores, hidden, self.plan.terms.add(scores, self.inputs, self.block(tile, heads))


def forward_by_tiles(
    plan: TilePlan,
    tensors: Sequence[Tensor],
    inputs: Sequence[Tensor],
    out: Tensor,
    logsumexp: Tensor,
    sinks: Tensor | None = None,
) -> None:
    """Fills out [B H T E] and logsumexp [B H T 1]. sinks: [H], the logits of keys without a value."""
    q, k, v = tensors
    scaled, buffer, tiles = q * plan.scale, plan.buffer(q), [plan.tiles(index) for index in range(len(plan.blocks))]
    for row, heads in plan.parts(len(q)):
        scores, mine = Scores(plan, row, inputs, buffer), (row, heads.cut)
        keys, values = k[mine], v[mine]
        for (queries, _), own in zip(plan.blocks, tiles, strict=True):
            at = (*mine, queries.cut)
            out[at], logsumexp[at] = _forward(scores, heads, scaled[at], keys, values, plan.seen(row, own), sinks)


def _forward(
    part: Scores, heads: Span, q: Tensor, k: Tensor, v: Tensor, tiles: Sequence[Tile], sinks: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The result [G R E] of some queries and its log-sum-exp [G R 1]; q: [G R D], scaled; k: [G S D]; v: [G S E]."""
    limits, rows = torch.finfo(q.dtype), (*q.shape[:2], 1)
    highest, sums, total = q.new_full(rows, limits.min), q.new_zeros(rows), q.new_zeros(*q.shape[:2], v.shape[2])
    if sinks is not None:
        highest, sums = sinks[heads.cut, None, None].expand(rows).clone(), q.new_ones(rows)
    for tile in tiles:
        scores, hidden, _ = part.of(tile, heads, q, k[:, tile.keys.cut])
        top = torch.maximum(highest, scores.amax(-1, keepdim=True))  # finite also where a query sees no key
        exp_(scores.sub_(top), hidden, part.plan.terms)
        shrink = highest.sub_(top).exp_()
        sums.mul_(shrink).add_(scores.sum(-1, keepdim=True))
        kept = part.plan.kept(part.row, heads, tile)
        if kept is not None:
            scores.mul_(kept)
        total.mul_(shrink).baddbmm_(scores, v[:, tile.keys.cut])
        highest = top
    sums.clamp_(min=limits.tiny)
    total.div_(sums)
    if part.plan.dropout is not None:
        total.mul_(part.plan.dropout.factor)
    return total, sums.log_().add_(highest)
