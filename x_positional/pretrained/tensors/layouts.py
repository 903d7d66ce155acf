"""Layouts: how one parameter of x_positional is stored in the tensors of a published model, and back. Pure data.

H query heads, G key/value heads, D head dim, E experts. x_positional's joined projection is all queries, then all keys, then
all values; its gated feedforward is all values, then all gates.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from x_positional.config.layers import LayerConfig, LayersConfig, MLAConfig
from x_positional.errors import PretrainedError


@dataclass(frozen=True)
class Sizes:
    """What a layout may need to know: the stack, and the layer (None outside of layers)."""

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
    """The published tensors that store one parameter."""

    def names(self, sizes: Sizes) -> Sequence[str]:
        """Names of the published tensors; `{i}` is the layer."""
        ...

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        """Published tensors -> parameter."""
        ...

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        """Parameter -> published tensors, in the order of `names`. The exact inverse of `load`."""
        ...


# One tensor, or several that are concatenated


@dataclass(frozen=True)
class Same:
    """One tensor, unchanged."""

    name: str

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.name,)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return parts[0]

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [tensor]


@dataclass(frozen=True)
class ByNormPlace:
    """One tensor, unchanged, whose name depends on `norm_place`."""

    by_place: Mapping[str, str]

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.by_place[sizes.layers.norm_place],)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return parts[0]

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [tensor]


@dataclass(frozen=True)
class Joined:
    """Several tensors, concatenated along the first axis."""

    parts: tuple[str, ...]
    rows: Callable[[Sizes], list[int]] | None = None
    """Rows of each tensor; None for equal shares."""

    def names(self, sizes: Sizes) -> Sequence[str]:
        return self.parts

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return torch.cat(parts)

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        if self.rows is None:
            return list(tensor.chunk(len(self.parts)))
        return list(tensor.split(self.rows(sizes)))


@dataclass(frozen=True)
class Transposed:
    """Weights stored as [in, out] (GPT-2's Conv1D); biases are unchanged."""

    inner: Layout

    def names(self, sizes: Sizes) -> Sequence[str]:
        return self.inner.names(sizes)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return self.inner.load([part.t() if part.ndim == 2 else part for part in parts], sizes)

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [part.t() if part.ndim == 2 else part for part in self.inner.store(tensor, sizes)]


@dataclass(frozen=True)
class Reordered:
    """One tensor with its rows in another order."""

    name: str
    order: Callable[[Sizes], Tensor]
    """[rows] for each row of the parameter, its index in the published tensor."""

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.name,)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return parts[0][self.order(sizes)]

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [tensor[self.order(sizes).argsort()]]


@dataclass(frozen=True)
class Reshaped:
    """One tensor in another shape."""

    name: str
    ours: Callable[[Sizes], tuple[int, ...]]
    """Shape of the parameter."""
    theirs: Callable[[Sizes], tuple[int, ...]]
    """Shape of the published tensor."""

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.name,)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return parts[0].reshape(self.ours(sizes))

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [tensor.reshape(self.theirs(sizes))]


@dataclass(frozen=True)
class SquareGrid:
    """A table of a square grid of patches [N N M], published as [N*N M]."""

    name: str

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.name,)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return parts[0].unflatten(0, (math.isqrt(len(parts[0])), -1))

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [tensor.flatten(0, 1)]


@dataclass(frozen=True)
class Swapped:
    """One tensor with its two halves swapped: gates first, then values."""

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
class ByGate:
    """One layout for a plain feedforward, another for a gated one."""

    plain: Layout
    gated: Layout

    def names(self, sizes: Sizes) -> Sequence[str]:
        return self._layout(sizes).names(sizes)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return self._layout(sizes).load(parts, sizes)

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return self._layout(sizes).store(tensor, sizes)

    def _layout(self, sizes: Sizes) -> Layout:
        own = None if sizes.layer is None else sizes.layer.ff
        return self.gated if (own or sizes.layers.ff).glu else self.plain


# Queries, keys and values, and the norms of their heads


def qkv_rows(sizes: Sizes) -> list[int]:
    """Rows of queries, keys and values in a joined projection."""
    return [n * sizes.head_dim for n in (sizes.heads, sizes.kv_heads, sizes.kv_heads)]


def qkv(*names: str) -> Joined:
    """Separate projections of queries, keys and values."""
    return Joined(names, qkv_rows)


@dataclass(frozen=True)
class KeylessBias:
    """Biases of queries and values; the keys have none."""

    query: str
    value: str

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.query, self.value)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        query, value = parts
        return torch.cat([query, value.new_zeros(qkv_rows(sizes)[1]), value])

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        query, key, value = tensor.split(qkv_rows(sizes))
        if key.any():
            raise PretrainedError(
                "this model cannot be written:",
                [
                    f"keys have no bias there, and its bias is up to {key.abs().max():.2g}. Set the middle rows of "
                    "to_qkv.bias to 0, or use format='native'."
                ],
            )
        return [query, value]


@dataclass(frozen=True)
class MirroredQkv:
    """Separate projections of queries, keys and values, with the halves of each query and key swapped: RoPE in the other
    direction (NanoChat)."""

    parts: tuple[str, ...]

    def names(self, sizes: Sizes) -> Sequence[str]:
        return self.parts

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        queries, keys, values = parts
        return torch.cat([_halves_swapped(queries, sizes), _halves_swapped(keys, sizes), values])

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        queries, keys, values = tensor.split(qkv_rows(sizes))
        return [_halves_swapped(queries, sizes), _halves_swapped(keys, sizes), values]


def _halves_swapped(rows: Tensor, sizes: Sizes) -> Tensor:
    """Swap the halves of the rows of each head."""
    return torch.roll(rows.unflatten(0, (-1, sizes.head_dim)), sizes.head_dim // 2, 1).flatten(0, 1)


def grouped_qkv(name: str) -> Reordered:
    """One tensor with the queries of a group, its key and its value, group after group.

    That is (H, 3, D) where each query head has its own key head (GPT-NeoX, BLOOM); all queries, then one key and one value
    for a single group (StarCoder 1, Falcon-7B); and the general case in Falcon-40B.
    """
    return Reordered(name, _group_order)


def _group_order(sizes: Sizes) -> Tensor:
    """[(H + 2G) D], from groups of queries, key, value."""
    H, G, D = sizes.heads, sizes.kv_heads, sizes.head_dim
    rows = torch.arange((H + 2 * G) * D).view(G, H // G + 2, D)
    return torch.cat([part.flatten() for part in (rows[:, :-2], rows[:, -2], rows[:, -1])])


SHARDS = 4
"""CodeGen was trained on this many cores, each with the queries, values and keys of its heads."""


def sharded_qkv(name: str) -> Reordered:
    """One tensor with the queries, values and keys (in this order) of a quarter of the heads, then of the next (CodeGen)."""
    return Reordered(name, _shard_order)


def _shard_order(sizes: Sizes) -> Tensor:
    """[3 H D], from shards of queries, values, keys."""
    queries, values, keys = torch.arange(3 * sizes.heads * sizes.head_dim).view(SHARDS, 3, -1).unbind(1)
    return torch.cat([queries.flatten(), keys.flatten(), values.flatten()])


@dataclass(frozen=True)
class PerHead:
    """One tensor [D] per head; the parameter is [H 1 D]."""

    name: str
    """`{n}` is the head."""
    heads: Callable[[Sizes], int]

    def names(self, sizes: Sizes) -> Sequence[str]:
        return [self.name.replace("{n}", str(n)) for n in range(self.heads(sizes))]

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return torch.stack(parts)[:, None]

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return list(tensor[:, 0])


def head_gains(name: str, heads: Callable[[Sizes], int], *, flat: bool = False) -> Reshaped:
    """Gains of a norm of queries or keys: [H 1 D], published as [H D], or [H*D] if `flat`."""
    return Reshaped(
        name,
        ours=lambda s: (heads(s), 1, s.head_dim),
        theirs=lambda s: (heads(s) * s.head_dim,) if flat else (heads(s), s.head_dim),
    )


# Multi-head latent attention


def _latent_config(sizes: Sizes) -> MLAConfig:
    attn = None if sizes.layer is None else sizes.layer.attn
    if attn is None or attn.mla is None:
        raise PretrainedError("LatentQueries needs a layer with latent attention:", ["this layer has none (attn.mla)."])
    return attn.mla


@dataclass(frozen=True)
class LatentQueries:
    """The query projection, from a latent or from the stream; published with the rotary channels of a head last."""

    from_latent: str
    from_stream: str

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.from_stream if _latent_config(sizes).q_rank is None else self.from_latent,)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return _roll_heads(parts[0], sizes, _latent_config(sizes).rope_dim)

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [_roll_heads(tensor, sizes, -_latent_config(sizes).rope_dim)]


def _roll_heads(rows: Tensor, sizes: Sizes, shift: int) -> Tensor:
    """Roll the rows within each head."""
    return torch.roll(rows.unflatten(0, (sizes.heads, -1)), shift, 1).flatten(0, 1)


# Experts


def _experts(sizes: Sizes) -> int:
    ff = None if sizes.layer is None else sizes.layer.ff
    if ff is None or ff.moe is None:
        raise PretrainedError("PerExpert needs a layer with experts:", ["this layer has none (ff.moe)."])
    return ff.moe.experts


@dataclass(frozen=True)
class PerExpert:
    """Separate tensors per expert; several of one expert are concatenated along the first axis."""

    parts: tuple[str, ...]
    """`{e}` is the expert."""

    def names(self, sizes: Sizes) -> Sequence[str]:
        return [part.replace("{e}", str(e)) for e in range(_experts(sizes)) for part in self.parts]

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return torch.cat(parts).unflatten(0, (_experts(sizes), -1))

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [part for one in tensor for part in one.chunk(len(self.parts))]


@dataclass(frozen=True)
class FusedExperts:
    """All experts in one tensor: weights [E in out], biases [E out]."""

    name: str
    order: Callable[[int], Tensor] | None = None
    """Number of rows -> [rows] for each row of the parameter, its index in the published tensor."""

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.name,)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        ours = parts[0].mT if parts[0].ndim == 3 else parts[0]
        return ours if self.order is None else ours[:, self.order(ours.shape[1])]

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        theirs = tensor if self.order is None else tensor[:, self.order(tensor.shape[1]).argsort()]
        return [theirs.mT if theirs.ndim == 3 else theirs]


@dataclass(frozen=True)
class EitherFusedExperts:
    """All experts in one tensor, [E out in] or [E in out]; [E out in] where both fit, and when written, as in transformers."""

    name: str
    dim_axis: int
    """Axis of the model's width in [E out in]."""
    order: Callable[[int], Tensor] | None = None
    """As in `FusedExperts`."""

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.name,)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        ours = parts[0] if parts[0].shape[self.dim_axis] == sizes.layers.dim else parts[0].mT
        return ours if self.order is None else ours[:, self.order(ours.shape[1])]

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [tensor if self.order is None else tensor[:, self.order(tensor.shape[1]).argsort()]]


def gates_first(rows: int) -> Tensor:
    """Published as all gates, then all values (Llama 4)."""
    return torch.arange(rows).roll(rows // 2)


def gates_interleaved(rows: int) -> Tensor:
    """Published as gate, value, gate, value (gpt-oss)."""
    return torch.cat([torch.arange(1, rows, 2), torch.arange(0, rows, 2)])
