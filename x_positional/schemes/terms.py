"""What a scheme adds to scores, in a form that needs no autograd: in place, for one block of queries at a time.

B batch, T query tokens, S key tokens, H heads; a block has G heads, R queries and W keys.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from x_positional.schemes.spans import Span


@dataclass(frozen=True)
class ScoreBlock:
    """Some heads and queries of one row of the batch, and a range of keys visible to them."""

    row: int
    """The row of the batch."""
    heads: Span
    """G heads."""
    queries: Span
    """R queries."""
    keys: Span
    """W keys."""
    earlier: int
    """How many of these keys, from the first on, are known to precede every query."""


class Rebuilt:
    """What can be rebuilt from tensors and numbers. A graph of torch.compile holds those, but no objects."""

    kinds: ClassVar[dict[str, type["Rebuilt"]]] = {}
    """Every subclass, by its module and name."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.kinds[cls.kind()] = cls

    @classmethod
    def kind(cls) -> str:
        """The name in `kinds`."""
        return f"{cls.__module__}.{cls.__qualname__}"

    @property
    def arguments(self) -> tuple[Any, ...] | None:
        """What the constructor takes: tensors, numbers, None, the context, others of these objects, tuples. None where it takes
        anything else, such as a function."""
        return None


class ScoreTerm(Rebuilt):
    """A term of the scores. What it reads with a gradient are its inputs; backends pass them to both methods.

    Scores arrive with hidden keys at -inf, and with the terms before this one. Of a term with `arguments`, the inputs are the
    floating tensors among these, in order.
    """

    whole_rows: bool = False
    """Whether a score depends on other scores of its row, so that a block must hold all keys visible to its queries."""
    fewest: int = 0
    """Queries below which a bias that all layers share is faster as one tensor."""
    inputs: tuple[Tensor, ...]
    """Tensors with a gradient."""

    def add(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Any:
        """Change scores [G R W] in place. Returns what `differentiate` needs."""
        raise NotImplementedError

    def differentiate(self, grad: Tensor, kept: Any, sums: Sequence[Tensor | None], block: ScoreBlock) -> None:
        """Turn the gradient [G R W] of the changed scores into that of the scores before, in place, and add the gradients of
        the inputs to `sums`, which have their shapes; None where an input needs none."""
        raise NotImplementedError

    def by_distance(self, inputs: Sequence[Tensor]) -> tuple[Tensor, int] | None:
        """[H N] what is added to the score of query i and key j, at j - i = low, low + 1, ..., and low; None where that depends on
        more. What is beyond either end belongs to hidden keys."""
        return None

    def sum_distances(self, grad: Tensor, low: int, heads: Span, sums: Sequence[Tensor | None]) -> None:
        """Add to `sums` a gradient [G N] of the result of `by_distance`, for some heads, from j - i = low on."""
        raise NotImplementedError

    def recorded(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        """`add` as a function that autograd records: for gradients of gradients."""
        raise NotImplementedError


class SumTerm(ScoreTerm):
    """Several terms, one after the other."""

    def __init__(self, parts: Sequence[ScoreTerm]):
        self.parts = parts
        self.whole_rows = any(part.whole_rows for part in parts)
        self.fewest = max([0, *(part.fewest for part in parts)])
        self.inputs = tuple(t for part in parts for t in part.inputs)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return (tuple(self.parts),)

    def shares(self, tensors: Sequence[Any]) -> Iterator[tuple[ScoreTerm, Sequence[Any]]]:
        """Each term with its share of the inputs, or of their gradients."""
        at = 0
        for part in self.parts:
            yield part, tensors[at : at + len(part.inputs)]
            at += len(part.inputs)

    def add(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> list[Any]:
        return [part.add(scores, own, block) for part, own in self.shares(inputs)]

    def differentiate(self, grad: Tensor, kept: list[Any], sums: Sequence[Tensor | None], block: ScoreBlock) -> None:
        for (part, own), mine in reversed(list(zip(self.shares(sums), kept, strict=True))):
            part.differentiate(grad, mine, own, block)

    def by_distance(self, inputs: Sequence[Tensor]) -> tuple[Tensor, int] | None:
        return self.parts[0].by_distance(inputs) if len(self.parts) == 1 else None

    def sum_distances(self, grad: Tensor, low: int, heads: Span, sums: Sequence[Tensor | None]) -> None:
        self.parts[0].sum_distances(grad, low, heads, sums)

    def recorded(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        for part, own in self.shares(inputs):
            scores = part.recorded(scores, own, block)
        return scores
