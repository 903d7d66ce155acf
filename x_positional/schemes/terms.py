"""What a scheme adds to scores, in a form that needs no autograd: in place, for one block of queries at a time.

B batch, T query tokens, S key tokens, H heads; a block has R queries and W keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from x_positional.schemes.spans import Span


@dataclass(frozen=True)
class ScoreBlock:
    """Some queries of one row of the batch, and the range of keys visible to them."""

    row: int
    """The row of the batch."""
    queries: Span
    """R queries."""
    keys: Span
    """W keys."""
    earlier: int
    """How many of these keys, from the first on, are known to precede every query."""


class ScoreTerm:
    """A term of the scores. What it reads with a gradient are its inputs; backends pass them to both methods.

    Scores arrive with hidden keys at the lowest finite number, and with the terms before this one.
    """

    inputs: tuple[Tensor, ...]
    """Tensors with a gradient."""

    def add(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Any:
        """Change scores [H R W] in place. Returns what `differentiate` needs."""
        raise NotImplementedError

    def differentiate(self, grad: Tensor, kept: Any, sums: Sequence[Tensor], block: ScoreBlock) -> None:
        """Turn the gradient [H R W] of the changed scores into that of the scores before, in place, and add the gradients of
        the inputs to `sums`, which have their shapes."""
        raise NotImplementedError
