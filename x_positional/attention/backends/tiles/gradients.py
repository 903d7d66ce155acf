"""The backward pass by tiles: probabilities are recomputed from each query's log-sum-exp."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from x_positional.attention.backends.tiles import geometry
from x_positional.attention.backends.tiles.distance import DistanceBias
from x_positional.attention.backends.tiles.geometry import Tile, TilePlan
from x_positional.attention.backends.tiles.online_softmax import Scores, exp_
from x_positional.schemes.base import Span


class BlockGradients(NamedTuple):
    """What the gradients of a block of queries and some heads need."""

    q: Tensor
    """[G R D], scaled."""
    grad: Tensor
    """[G R E], the gradient of the result."""
    logsumexp: Tensor
    """[G R 1]."""
    delta: Tensor
    """[G R 1], the sum of the result times its gradient."""
    dq: Tensor
    """[G R D], the gradient of the scaled queries: accumulated."""


@dataclass
class Skewed:
    """Sums the products of two tiles along each distance: the gradient of a bias of distance."""

    queries: int
    """T."""
    total: Tensor
    """[H T + S - 1], at key minus query = 1 - T, 2 - T, ..."""
    buffer: Tensor
    """[G QUERIES KEYS + QUERIES], with zeros from `filled` on."""
    filled: int = 0

    @classmethod
    def of(cls, q: Tensor, k: Tensor) -> "Skewed":
        """For tiles of these queries and keys."""
        heads, queries = q.shape[1:3]
        total = q.new_zeros(heads, queries + k.shape[2] - 1)
        return cls(queries, total, q.new_zeros(heads, geometry.QUERIES, geometry.KEYS + geometry.QUERIES))

    def product(self, a: Tensor, b: Tensor, tile: Tile, heads: Span) -> Tensor:
        """[G R W] a * b, with queries in reverse order; adds it to `total`."""
        count, rows, width = a.shape
        self.buffer[..., width : self.filled] = 0
        self.filled = width
        out = torch.mul(a, b, out=self.buffer[:count, :rows, :width])
        # Each row is one distance further along: with a row stride shorter by one, columns are distances, and zeros fill the rest.
        shape, first = (count, rows, width + rows - 1), tile.keys.start - tile.queries.stop
        sums = out.as_strided(shape, (out.stride(0), out.stride(1) - 1, 1)).sum(1)
        start = first + self.queries
        self.total[heads.cut, start : start + shape[2]] += sums
        return out


@dataclass
class KeyGradients:
    """Computes gradients of one row of the batch and some heads, a range of keys at a time."""

    scores: Scores
    buffer: Tensor
    """Holds the gradients of the scores."""
    heads: Span
    blocks: Sequence[BlockGradients]
    """Of queries, in reverse order where there is a bias of distance; their `dq` accumulates."""
    bias: DistanceBias | None
    firsts: Sequence[Sequence[int]] | None
    """For each block of queries, the first key in each head of the model that is not negligible. None is all keys."""
    skewed: Skewed | None
    """None where there is no bias of distance, or it needs no gradient."""
    sums: Sequence[Tensor | None]
    """The gradients of the inputs: accumulated."""

    def of_keys(self, k: Tensor, v: Tensor, keys: Span, tiles: Sequence[Tile]) -> tuple[Tensor, Tensor]:
        """The gradients of some keys [G W D] and values [G W E]."""
        dk, dv = torch.zeros_like(k), torch.zeros_like(v)
        for tile in self.scores.plan.seen(self.scores.row, tiles):
            heads, block, found = self.heads_of(tile), self.blocks[tile.number], (k, v, dk, dv)
            if heads.start == heads.stop:
                continue
            if heads != self.heads or tile.keys != keys:
                mine = slice(heads.start - self.heads.start, heads.stop - self.heads.start)
                cut = slice(tile.keys.start - keys.start, tile.keys.stop - keys.start)
                block, found = BlockGradients._make(t[mine] for t in block), tuple(t[mine, cut] for t in found)
            self.of_tile(tile, heads, block, *found)
        return dk, dv

    def of_tile(
        self, tile: Tile, heads: Span, block: BlockGradients, k: Tensor, v: Tensor, dk: Tensor, dv: Tensor
    ) -> None:
        """Adds the gradients of a tile to those of its queries, keys, values and inputs."""
        plan, (p, kept) = self.scores.plan, self.probabilities(tile, heads, block, k)
        of_scores, undropped = self.buffer[: p.numel()].view(p.shape), plan.kept(self.scores.row, heads, tile)
        dv.baddbmm_((p if undropped is None else torch.mul(p, undropped, out=of_scores)).mT, block.grad)
        torch.bmm(block.grad, v.mT, out=of_scores)
        if undropped is not None:
            of_scores.mul_(undropped)
        of_scores.sub_(block.delta)
        if self.skewed is not None:
            of_scores = self.skewed.product(of_scores, p, tile, heads)
        else:
            of_scores.mul_(p)
        if self.bias is None:
            plan.terms.differentiate(of_scores, kept, self.sums, self.scores.block(tile, heads))
        block.dq.baddbmm_(of_scores, k)
        dk.baddbmm_(of_scores.mT, block.q)

    def probabilities(self, tile: Tile, heads: Span, block: BlockGradients, k: Tensor) -> tuple[Tensor, Any]:
        """The probabilities [G R W], recomputed, and what the terms keep for `differentiate`."""
        scores, plan = self.scores, self.scores.plan
        if self.bias is None:
            p, hidden, kept = scores.of(tile, heads, block.q, k)
            return exp_(p.sub_(block.logsumexp), hidden, plan.terms), kept
        rows = self.bias.rows(self.bias.table[heads.cut], tile.queries, tile.keys)
        p = torch.sub(rows, block.logsumexp, out=scores.buffer[: rows.numel()].view(rows.shape)).baddbmm_(block.q, k.mT)
        hidden = [
            found._replace(visible=found.visible.flip(0)) for found in plan.hidden(scores.row, tile.queries, tile.keys)
        ]
        return exp_(p, hidden, plan.terms), None

    def heads_of(self, tile: Tile) -> Span:
        """The heads in which some key of a tile is not negligible, and those between them."""
        if self.firsts is None:
            return self.heads
        firsts = self.firsts[tile.number]
        found = [head for head in range(*self.heads) if firsts[head] < tile.keys.stop]
        return Span(found[0], found[-1] + 1) if found else Span(self.heads.start, self.heads.start)


def tile_gradients(
    plan: TilePlan,
    bias: DistanceBias | None,
    tensors: Sequence[Tensor],
    inputs: Sequence[Tensor],
    grad: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients of q, k, v and inputs.

    Args:
        plan: of the forward pass.
        bias: of the forward pass.
        tensors: q, k, v, the result, the log-sum-exp.
        inputs: of the terms.
        grad: [B H T E], of the result.
        wanted: which inputs need a gradient; None is returned for the others.
    """
    q, k, v, out, logsumexp = tensors
    scaled, delta = q * plan.scale, (grad * out).sum(-1, keepdim=True)
    grad = grad if plan.dropout is None else grad * plan.dropout.factor
    dq, dk, dv = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (q, k, v))
    asked = zip(inputs, wanted, strict=True)
    sums = [torch.zeros_like(t, memory_format=torch.contiguous_format) if own else None for t, own in asked]
    first, second, by_keys = plan.buffer(q), plan.buffer(q), plan.by_keys()
    firsts = None if bias is None or bias.margin is None else [bias.of_block(*spans)[1] for spans in plan.blocks]
    skewed = None if bias is None or not any(wanted) else Skewed.of(q, k)
    for row, heads in plan.parts(len(q)):
        blocks = []
        for queries, _ in plan.blocks:
            at = row, heads.cut, queries.cut
            found = [
                t[at].contiguous() for t in (scaled, grad, logsumexp, delta)
            ]  # batched products of contiguous tensors are faster
            found = found if bias is None else [t.flip(1) for t in found]
            blocks.append(BlockGradients._make([*found, torch.zeros_like(found[0])]))
        part = KeyGradients(Scores(plan, row, inputs, first), second, heads, blocks, bias, firsts, skewed, sums)
        for keys, tiles in by_keys:
            at = row, heads.cut, keys.cut
            dk[at], dv[at] = part.of_keys(k[at].contiguous(), v[at].contiguous(), keys, tiles)
        for (queries, _), block in zip(plan.blocks, blocks, strict=True):
            dq[row, heads.cut, queries.cut] = (block.dq if bias is None else block.dq.flip(1)).mul_(plan.scale)
    if skewed is not None:
        plan.terms.sum_distances(skewed.total, 1 - q.shape[2], Span(0, q.shape[1]), sums)
    return dq, dk, dv, *sums
