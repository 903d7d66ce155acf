"""Base of every bias that multiplies queries or keys with the row of a table that their distance selects.

B batch, T query tokens, S key tokens, H heads, N rows of the table.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from x_positional.schemes.base import AttentionContext, Bias, Span
from x_positional.schemes.terms import Rebuilt, ScoreBlock, ScoreTerm


@dataclass(frozen=True)
class PairBias(Bias):
    """Products of queries and keys with the rows of the table, looked up for each pair of tokens."""

    c2p: Tensor | None
    """[B H T N], queries with projected rows; None without this term."""
    p2c: Tensor | None
    """[B H S N], keys with projected rows; None without this term."""
    rows_of: Callable[[Tensor], Tensor]
    """Distances -> rows of the table."""

    @classmethod
    def of(
        cls, ctx: AttentionContext, c2p: Tensor | None, p2c: Tensor | None, rows_of: Callable[[Tensor], Tensor]
    ) -> "PairBias":
        """The bias of the queries and keys of a context."""
        q, k = ctx.q_positions.expand(ctx.batch, -1), ctx.kv_positions.expand(ctx.batch, -1)

        def fn(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            row = rows_of(q[b, i] - k[b, j])
            total = 0.0 if c2p is None else c2p[b, h, i, row]
            return total if p2c is None else total + p2c[b, h, j, row]  # type: ignore[return-value]

        return cls(fn, ctx.batch, ctx.heads, c2p, p2c, rows_of)

    def dense(self, ctx: AttentionContext, rows: Span, keys: Span) -> Tensor:
        if torch.compiler.is_compiling():
            return super().dense(ctx, rows, keys)  # the compiler fuses it
        index = self.rows_of(ctx.q_positions[:, rows.cut, None] - ctx.kv_positions[:, None, keys.cut])
        index = index[:, None].expand(self.batch, self.heads, -1, -1)
        c2p = None if self.c2p is None else self.c2p[:, :, rows.cut].gather(-1, index)
        p2c = None if self.p2c is None else self.p2c[:, :, keys.cut].gather(-1, index.mT).mT
        bias = sum(term for term in (c2p, p2c) if term is not None)
        visible = ctx.visible_rows(rows, keys)
        return bias if visible is None else bias.masked_fill(~visible, float("-inf"))  # type: ignore[union-attr,return-value]

    def term(self, ctx: AttentionContext, blocks: Sequence[tuple[Span, Span]]) -> ScoreTerm:
        return PairTerm(self.c2p, self.p2c, self.rows_of, ctx)


class PairTerm(ScoreTerm):
    """The same without autograd.

    Args:
        c2p, p2c, rows_of: as in PairBias.
        ctx: where queries and keys are.
    """

    def __init__(
        self, c2p: Tensor | None, p2c: Tensor | None, rows_of: Callable[[Tensor], Tensor], ctx: AttentionContext
    ):
        self.inputs = tuple(t for t in (c2p, p2c) if t is not None)
        self.has_c2p, self.has_p2c, self.rows_of, self.ctx = c2p is not None, p2c is not None, rows_of, ctx

    @property
    def arguments(self) -> tuple[Any, ...] | None:
        if not isinstance(self.rows_of, Rebuilt):
            return None
        c2p, p2c = self.inputs[0] if self.has_c2p else None, self.inputs[-1] if self.has_p2c else None
        return c2p, p2c, self.rows_of, self.ctx

    def _index(self, block: ScoreBlock) -> Tensor:
        """[G R W], the row of each pair: a view for all heads."""
        q, k = self.ctx.q_positions, self.ctx.kv_positions
        distance = q[block.row % len(q), block.queries.cut, None] - k[block.row % len(k), block.keys.cut]
        return self.rows_of(distance).expand(block.heads.stop - block.heads.start, -1, -1)

    def _shares(self, tensors: Sequence[Any], block: ScoreBlock) -> tuple[Tensor | None, Tensor | None]:
        """[G R N] of c2p and [G W N] of p2c, or of their gradients, for a block."""
        c2p, p2c = tensors[0] if self.has_c2p else None, tensors[-1] if self.has_p2c else None
        at = (block.row, block.heads.cut)
        return (
            None if c2p is None else c2p[(*at, block.queries.cut)],
            None if p2c is None else p2c[(*at, block.keys.cut)],
        )

    def add(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        index, (c2p, p2c) = self._index(block), self._shares(inputs, block)
        if c2p is not None:
            scores += c2p.gather(-1, index)
        if p2c is not None:
            scores += p2c.gather(-1, index.mT).mT
        return index

    def differentiate(self, grad: Tensor, kept: Tensor, sums: Sequence[Tensor | None], block: ScoreBlock) -> None:
        c2p, p2c = self._shares(sums, block)
        if c2p is not None:
            c2p.scatter_add_(-1, kept, grad)
        if p2c is not None:
            p2c.scatter_add_(-1, kept.mT, grad.mT)

    def recorded(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        index, (c2p, p2c) = self._index(block), self._shares(inputs, block)
        scores = scores if c2p is None else scores + c2p.gather(-1, index)
        return scores if p2c is None else scores + p2c.gather(-1, index.mT).mT
