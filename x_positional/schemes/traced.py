"""A bias given as a function alone, for blocks of scores: its tensors are found by tracing, its gradients computed by autograd.

T query tokens, S key tokens, H heads; a block has G heads, R queries and W keys.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from x_positional.schemes.terms import ScoreBlock, ScoreTerm

FEWEST_LOOKUP = 2048
"""Queries below which looking up learned numbers once, for all layers, is faster than for each block and pass."""

BiasFn: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(b, h, q_idx, kv_idx), broadcastable -> bias."""


class _Found(TorchFunctionMode):
    """Collects the tensors with a gradient that operations read but did not make."""

    def __init__(self) -> None:
        super().__init__()
        self.tensors: list[Tensor] = []
        self.lookup = False
        """Whether one of them is indexed."""
        self._made: list[Any] = []  # also keeps them alive: the id of a freed tensor may be used again
        self._known: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for t in tree_leaves((args, kwargs or {})):
            if isinstance(t, Tensor) and t.requires_grad and id(t) not in self._known:
                self._known.add(id(t))
                self.tensors.append(t)
                self.lookup |= func is Tensor.__getitem__
        out = func(*args, **(kwargs or {}))
        self._made.append(out)
        self._known.update(id(t) for t in tree_leaves(out) if isinstance(t, Tensor))
        return out


class _Replaced(TorchFunctionMode):
    """Passes other tensors to operations in place of some, cast to their dtype. A lookup in a table of each head is a `gather`,
    whose gradient is nine times faster on a CPU than that of indexing."""

    def __init__(self, tensors: Sequence[Tensor], others: Sequence[Tensor], h: Tensor):
        super().__init__()
        self._others = {id(t): other.to(t.dtype) for t, other in zip(tensors, others, strict=True)}
        self._h = h

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map_only(Tensor, lambda t: self._others.get(id(t), t), (args, kwargs or {}))
        found = self._lookup(*args) if func is Tensor.__getitem__ else None
        return func(*args, **kwargs) if found is None else found

    def _lookup(self, table: Tensor, index: Any) -> Tensor | None:
        """table[h, index] for all heads of a block and one index for all of them; None for another kind of indexing."""
        if not isinstance(index, tuple) or len(index) != 2 or index[0] is not self._h or table.ndim != 2:
            return None
        places = index[1]
        if not isinstance(places, Tensor) or places.dtype != torch.int64 or places.ndim < 3 or places.shape[-3] != 1:
            return None
        if not places.numel() or int(places.amin()) < 0:  # counted from the end
            return None
        heads = len(self._h)
        shape = *places.shape[:-3], heads, *places.shape[-2:]
        rows, first = (
            table.narrow(0, int(self._h[0, 0, 0]), heads),
            places.reshape(-1, 1, *places.shape[-2:]).flatten(2),
        )
        found = rows.expand(len(first), -1, -1).gather(2, first.expand(-1, heads, -1))
        return found.view(shape)


class TracedTerm(ScoreTerm):
    """A bias whose tensors may have a gradient.

    Args:
        fn: the bias, pointwise in (b, h, q_idx, kv_idx).
        tensors: what it reads with a gradient.
    """

    def __init__(self, fn: BiasFn, tensors: Sequence[Tensor] = ()):
        self.fn, self.inputs = fn, tuple(tensors)

    @classmethod
    def of(cls, fn: BiasFn, sample: ScoreBlock) -> "TracedTerm | None":
        """None where the bias has a gradient that tracing did not find, as of an autograd.Function's."""
        with _Found() as found:
            value = cls(fn).of_block((), sample)
        if not value.requires_grad:
            return cls(fn)
        term = cls(fn, found.tensors)
        term.fewest = FEWEST_LOOKUP if found.lookup else 0
        return None if term.of_block([t.detach() for t in term.inputs], sample).requires_grad else term

    def of_block(self, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        """Broadcastable to [G R W]."""
        b, h = torch.full((1, 1, 1, 1), block.row), torch.arange(*block.heads)[:, None, None]
        i, j = torch.arange(*block.queries)[:, None], torch.arange(*block.keys)
        if not self.inputs:
            return self.fn(b, h, i, j)[0]
        with _Replaced(self.inputs, inputs, h):
            return self.fn(b, h, i, j)[0]

    def add(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Any:
        if not any(t.requires_grad for t in inputs):
            scores += self.of_block(inputs, block).to(scores.dtype)
            return None
        with torch.enable_grad():
            own = [t.detach().requires_grad_() for t in inputs]
            value = self.of_block(own, block).to(scores.dtype).expand_as(scores)
        scores += value.detach()
        return own, value

    def differentiate(self, grad: Tensor, kept: Any, sums: Sequence[Tensor | None], block: ScoreBlock) -> None:
        if kept is None or not kept[1].requires_grad:
            return
        for total, found in zip(sums, torch.autograd.grad(kept[1], kept[0], grad, allow_unused=True), strict=True):
            if total is not None and found is not None:
                total += found

    def recorded(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        return scores + self.of_block(inputs, block).to(scores.dtype)
