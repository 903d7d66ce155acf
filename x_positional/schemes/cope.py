"""Contextual position encoding (CoPE): positions count the keys that are relevant to a query, not tokens.

B batch, T query tokens, S key tokens, H heads, D head dim, P counted positions.
"""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.base import AttentionContext, Dims, PositionScheme
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.terms import ScoreBlock, ScoreTerm
from x_positional.schemes.values import MAX_ROWS


class CopeScores(PositionScheme):
    """p_mn = sum_{j=n..m} sigmoid(score_mj), at most P - 1; the score gets q_m . E[p_mn], E interpolated between
    integers (Golovneva et al. 2024, arXiv:2405.18719, equations 3 to 5 and appendix B). Needs whole rows of scores.

    E [P, D] is shared by the heads of a layer. The bias is added after scaling, as in the paper.

    Args:
        head_dim: D.
        max_pos: P, how many positions are counted.
    """

    causal_only = True
    continuous = False
    per_layer = True

    def __init__(self, head_dim: int, max_pos: int = 16):
        super().__init__()
        self.max_pos = max_pos
        self.table = nn.Parameter(torch.zeros(max_pos, head_dim))

    def transform_scores(self, scores: Tensor, visible: Tensor | None, q: Tensor, ctx: AttentionContext) -> Tensor:
        gates = scores.sigmoid()
        if visible is not None:
            gates = gates.masked_fill(~visible, 0)
        order = ctx.key_order()
        return _counted(scores, _suffix_sums(gates, order), (q @ self.table.to(q.dtype).t()).to(scores.dtype))

    def row_term(self, q: Tensor, ctx: AttentionContext) -> ScoreTerm | None:
        if type(self).transform_scores is not CopeScores.transform_scores:
            return None
        count, order = CountTerm(q @ self.table.to(q.dtype).t()), ctx.key_order()
        return count if order is None else InTokenOrder(count, order)


def _suffix_sums(gates: Tensor, order: Tensor | None = None) -> Tensor:
    """[B H T S]: the sum of gates from each key to the last, in token order."""
    if order is None:
        return gates.flip(-1).cumsum(-1).flip(-1)
    index = order[:, None, None].expand_as(gates)
    sums = gates.gather(-1, index).flip(-1).cumsum(-1).flip(-1)
    return torch.zeros_like(gates).scatter(-1, index, sums)


def _counted(scores: Tensor, counts: Tensor, per_count: Tensor) -> Tensor:
    """The scores [... T S] plus those of their counts, interpolated. per_count: [... T P]."""
    counts = counts.clamp(max=per_count.shape[-1] - 1)
    low = counts.floor()
    below = per_count.gather(-1, low.long())
    above = per_count.gather(-1, counts.ceil().long())
    return scores + torch.lerp(below, above, counts - low)


class Counted(NamedTuple):
    """Some keys of a block, and what the gradient of their scores needs: each tensor is [H R keys]."""

    keys: slice
    gates: Tensor
    low: Tensor
    """The count, rounded down."""
    fraction: Tensor
    """The count minus `low`."""
    slope: Tensor
    """By how much the score grows with the count."""


class CountTerm(ScoreTerm):
    """Counts from the query leftwards, a few keys at a time, until every query of the block has counted P - 1: all keys
    before that get the same score.

    Args:
        per_count: [B H T P], the score of each count.
    """

    whole_rows = True
    width: ClassVar[int] = 128
    """Keys at a time. Their gates are summed by a product with a triangle of ones."""

    def __init__(self, per_count: Tensor):
        self.inputs = (per_count,)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.inputs

    def add(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> list[Counted]:
        values = inputs[0][block.row, block.heads.cut, block.queries.cut]
        last, stop = values.shape[-1] - 1, scores.shape[-1]
        sum_before, found = scores.new_zeros(()), []
        while stop:
            keys = slice(max(0, stop - self.width), stop)
            gates = scores[..., keys].sigmoid()  # 0 where hidden
            counts = (gates @ _ones(gates).tril()).add_(sum_before)
            sum_before, stop = counts[..., :1].clone(), keys.start
            low = counts.clamp_(max=last).floor()
            below, fraction, low = values.gather(-1, low.long()), counts - low, low.long()
            slope = values.gather(-1, (low + 1).clamp_(max=last)).sub_(below)
            scores[..., keys].add_(below).addcmul_(slope, fraction)
            found.append(Counted(keys, gates, low, fraction, slope))
            if stop and bool(sum_before.min() >= last):
                scores[..., :stop].add_(values[..., -1:])
                break
        return found

    def differentiate(
        self, grad: Tensor, kept: list[Counted], sums: Sequence[Tensor | None], block: ScoreBlock
    ) -> None:
        sum_before = grad.new_zeros(())
        for counted in reversed(kept):
            above = grad[..., counted.keys]
            self._sum_values(sums[0], above, counted, block)
            of_gates = (counted.slope.mul_(above) @ _ones(above).triu()).add_(sum_before)
            sum_before = of_gates[..., -1:].clone()
            above.add_(of_gates.mul_(counted.gates).mul_(1 - counted.gates))
        if sums[0] is not None:
            of_rest = grad[..., : kept[-1].keys.start].sum(-1)
            sums[0][block.row, block.heads.cut, block.queries.cut, -1] += of_rest

    def _sum_values(self, values: Tensor | None, above: Tensor, counted: Counted, block: ScoreBlock) -> None:
        """Adds the gradient of a few scores to that of the scores per count."""
        if values is not None:
            part, last = above * counted.fraction, values.shape[-1] - 1
            here = values[block.row, block.heads.cut, block.queries.cut]
            here.scatter_add_(-1, counted.low, above - part)
            here.scatter_add_(-1, (counted.low + 1).clamp_(max=last), part)

    def recorded(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        return _counted(
            scores, _suffix_sums(scores.sigmoid()), inputs[0][block.row, block.heads.cut, block.queries.cut]
        )


class InTokenOrder(ScoreTerm):
    """A term that reads keys in token order, where slots may be in another.

    Args:
        term: the term.
        order: [B|1 S], the slots in token order.
    """

    def __init__(self, term: ScoreTerm, order: Tensor):
        self.inputs, self.whole_rows, self.term, self.order = term.inputs, term.whole_rows, term, order

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.term, self.order

    def _keys(self, block: ScoreBlock) -> Tensor | None:
        """[W] the block's keys in token order; None if they are already."""
        order = self.order[block.row % len(self.order)]
        mine = order[(order >= block.keys.start) & (order < block.keys.stop)] - block.keys.start
        return None if bool((mine.diff() == 1).all()) else mine

    def add(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Any:
        keys = self._keys(block)
        if keys is None:
            return None, self.term.add(scores, inputs, block)
        sorted_scores = scores[..., keys]
        kept = self.term.add(sorted_scores, inputs, block)
        scores[..., keys] = sorted_scores
        return keys, kept

    def differentiate(self, grad: Tensor, kept: Any, sums: Sequence[Tensor | None], block: ScoreBlock) -> None:
        keys, kept = kept
        if keys is None:
            self.term.differentiate(grad, kept, sums, block)
            return
        sorted_grad = grad[..., keys]
        self.term.differentiate(sorted_grad, kept, sums, block)
        grad[..., keys] = sorted_grad

    def recorded(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        keys = self._keys(block)
        if keys is None:
            return self.term.recorded(scores, inputs, block)
        return self.term.recorded(scores[..., keys], inputs, block)[..., keys.argsort()]


def _ones(gates: Tensor) -> Tensor:
    """[keys keys]."""
    return gates.new_ones(gates.shape[-1], gates.shape[-1])


class Cope(SchemeConfig):
    """`position="cope"`."""

    kind: Literal["cope"] = "cope"
    max_pos: int = Field(default=16, gt=1, le=MAX_ROWS)
    """P, how many positions are counted."""
    summary: ClassVar[str] = "counts the keys that are relevant to a query"
    paper: ClassVar[str] = "Golovneva et al. 2024, arXiv:2405.18719"

    def build(self, dims: Dims) -> CopeScores:
        return CopeScores(dims.head_dim, self.max_pos)
