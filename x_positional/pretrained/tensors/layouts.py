"""How one tensor of ours lies in the tensors of a published model, and back. Pure data: names and how they join.

H query heads, G key/value heads, D head dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from x_positional.config.layers import LayerConfig, LayersConfig


@dataclass(frozen=True)
class Sizes:
    """What a layout may need to know: the stack, and the layer (None outside of blocks)."""

    layers: LayersConfig
    layer: LayerConfig | None = None

    @property
    def heads(self) -> int:
        return self.layers.heads

    @property
    def kv_heads(self) -> int:
        return self.layers.kv_heads or self.layers.heads

    @property
    def head_dim(self) -> int:
        return self.layers.head_dim


class Layout(Protocol):
    """Where a tensor comes from."""

    def names(self, sizes: Sizes) -> Sequence[str]:
        """Theirs, as patterns; `{i}` is the layer."""
        ...

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        """Their tensors -> ours."""
        ...

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        """Ours -> theirs, in the order of `names`. Exactly what `load` undoes."""
        ...


@dataclass(frozen=True)
class Same:
    """One tensor as it is."""

    name: str

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.name,)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return parts[0]

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [tensor]


def qkv_rows(sizes: Sizes) -> list[int]:
    """Rows of queries, keys and values in a joined projection."""
    return [n * sizes.head_dim for n in (sizes.heads, sizes.kv_heads, sizes.kv_heads)]


@dataclass(frozen=True)
class Joined:
    """Several tensors one below the other. rows: of each; None is equal shares."""

    parts: tuple[str, ...]
    rows: Callable[[Sizes], list[int]] | None = None

    def names(self, sizes: Sizes) -> Sequence[str]:
        return self.parts

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return torch.cat(parts)

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        if self.rows is None:
            return list(tensor.chunk(len(self.parts)))
        return list(tensor.split(self.rows(sizes)))


def qkv(*names: str) -> Joined:
    """Separate projections of queries, keys and values."""
    return Joined(names, qkv_rows)


@dataclass(frozen=True)
class Transposed:
    """Weights that lie as [in, out] (GPT-2's Conv1D); biases as they are."""

    inner: Layout

    def names(self, sizes: Sizes) -> Sequence[str]:
        return self.inner.names(sizes)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return self.inner.load([part.t() if part.ndim == 2 else part for part in parts], sizes)

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [part.t() if part.ndim == 2 else part for part in self.inner.store(tensor, sizes)]


@dataclass(frozen=True)
class Reordered:
    """One tensor whose rows lie in another order. order(sizes): [rows] which of their rows is each of ours."""

    name: str
    order: Callable[[Sizes], Tensor]

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.name,)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return parts[0][self.order(sizes)]

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [tensor[self.order(sizes).argsort()]]


@dataclass(frozen=True)
class ByGate:
    """What lies in one way where the feedforward is plain, and in another where it is gated."""

    plain: Layout
    gated: Layout

    def names(self, sizes: Sizes) -> Sequence[str]:
        return self._chosen(sizes).names(sizes)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return self._chosen(sizes).load(parts, sizes)

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return self._chosen(sizes).store(tensor, sizes)

    def _chosen(self, sizes: Sizes) -> Layout:
        own = None if sizes.layer is None else sizes.layer.ff
        return self.gated if (own or sizes.layers.ff).glu else self.plain


@dataclass(frozen=True)
class Reshaped:
    """One tensor in another shape; `ours` and `theirs` are the sizes of the axes, by `Sizes`."""

    name: str
    ours: Callable[[Sizes], tuple[int, ...]]
    theirs: Callable[[Sizes], tuple[int, ...]]

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.name,)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return parts[0].reshape(self.ours(sizes))

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [tensor.reshape(self.theirs(sizes))]


@dataclass(frozen=True)
class Swapped:
    """One tensor whose two halves lie the other way round: the gate above what it gates."""

    name: str

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.name,)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return _swapped(parts[0])

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [_swapped(tensor)]


def _swapped(tensor: Tensor) -> Tensor:
    first, second = tensor.chunk(2)
    return torch.cat((second, first))


@dataclass(frozen=True)
class PerHead:
    """A gain [D] of each head in a tensor of its own, `{n}` is the head; ours is [H 1 D]. heads: how many."""

    name: str
    heads: Callable[[Sizes], int]

    def names(self, sizes: Sizes) -> Sequence[str]:
        return [self.name.replace("{n}", str(n)) for n in range(self.heads(sizes))]

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return torch.stack(parts)[:, None]

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return list(tensor[:, 0])


def head_gains(name: str, heads: Callable[[Sizes], int], *, flat: bool = False) -> Reshaped:
    """Gains of a norm of queries or keys: ours [H 1 D], theirs [H D], or flat [H*D]."""
    return Reshaped(
        name,
        ours=lambda s: (heads(s), 1, s.head_dim),
        theirs=lambda s: (heads(s) * s.head_dim,) if flat else (heads(s), s.head_dim),
    )
