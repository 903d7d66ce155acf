"""How the stacked weights of experts lie in the tensors of a published model, and back.

E experts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from x_positional.pretrained.tensors.layouts import Sizes


def experts_of(sizes: Sizes) -> int:
    """How many experts a layer has. Raises ValueError where it has none."""
    ff = None if sizes.layer is None else sizes.layer.ff
    if ff is None or ff.moe is None:
        raise ValueError("a layer without experts has no tensors of experts")
    return ff.moe.experts


@dataclass(frozen=True)
class PerExpert:
    """Tensors for each expert, `{e}` in their names; where there are several, one below the other."""

    parts: tuple[str, ...]

    def names(self, sizes: Sizes) -> Sequence[str]:
        return [part.replace("{e}", str(e)) for e in range(experts_of(sizes)) for part in self.parts]

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return torch.cat(parts).unflatten(0, (experts_of(sizes), -1))

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [part for one in tensor for part in one.chunk(len(self.parts))]


@dataclass(frozen=True)
class Fused:
    """All experts in one tensor, weights as [E in out], biases as [E out]. order(out): which of theirs is each of ours."""

    name: str
    order: Callable[[int], Tensor] | None = None

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.name,)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        ours = parts[0].mT if parts[0].ndim == 3 else parts[0]
        return ours if self.order is None else ours[:, self.order(ours.shape[1])]

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        theirs = tensor if self.order is None else tensor[:, self.order(tensor.shape[1]).argsort()]
        return [theirs.mT if theirs.ndim == 3 else theirs]


def gates_first(rows: int) -> Tensor:
    """Theirs are all gates, then all values (Llama 4)."""
    return torch.arange(rows).roll(rows // 2)


def gates_between(rows: int) -> Tensor:
    """Theirs are a gate, a value, a gate, a value (gpt-oss)."""
    return torch.cat([torch.arange(1, rows, 2), torch.arange(0, rows, 2)])
