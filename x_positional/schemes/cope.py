"""Contextual position encoding (CoPE): positions count the keys that are relevant to a query, not tokens.

B batch, T query tokens, S key tokens, H heads, D head dim, P counted positions.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.base import AttentionContext, Dims, PositionScheme
from x_positional.schemes.registry import SchemeConfig
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
        counts = self._suffix_sums(gates, order).clamp(max=self.max_pos - 1)
        per_count = (q @ self.table.to(q.dtype).t()).to(scores.dtype)  # [B H T P]
        low = counts.floor()
        below = per_count.gather(-1, low.long())
        above = per_count.gather(-1, counts.ceil().long())
        return scores + torch.lerp(below, above, counts - low)

    def _suffix_sums(self, gates: Tensor, order: Tensor | None) -> Tensor:
        """[B H T S]: the sum of gates from each key to the last, in token order."""
        if order is None:
            return gates.flip(-1).cumsum(-1).flip(-1)
        index = order[:, None, None].expand_as(gates)
        sums = gates.gather(-1, index).flip(-1).cumsum(-1).flip(-1)
        return torch.zeros_like(gates).scatter(-1, index, sums)


class Cope(SchemeConfig):
    """`position="cope"`."""

    kind: Literal["cope"] = "cope"
    max_pos: int = Field(default=16, gt=1, le=MAX_ROWS)
    """P, how many positions are counted."""
    summary: ClassVar[str] = "counts the keys that are relevant to a query"
    paper: ClassVar[str] = "Golovneva et al. 2024, arXiv:2405.18719"

    def build(self, dims: Dims) -> CopeScores:
        return CopeScores(dims.head_dim, self.max_pos)
