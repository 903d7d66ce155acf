"""Queries, keys and values in one tensor, in the orders that published models have, and names that follow the block.

H query heads, G key/value heads, D head dim. Ours is all queries, then all keys, then all values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from x_positional.pretrained.tensors.layouts import Reordered, Sizes


def _by_group(sizes: Sizes) -> Tensor:
    """[(H + 2G) D]: each key head with its queries before it and its values after it."""
    H, G, D = sizes.heads, sizes.kv_heads, sizes.head_dim
    rows = torch.arange((H + 2 * G) * D).view(G, H // G + 2, D)
    return torch.cat([part.flatten() for part in (rows[:, :-2], rows[:, -2], rows[:, -1])])


def grouped(name: str) -> Reordered:
    """Queries of a group, its key, its value, group after group: (H, 3, D) where each query head has a key head (GPT-NeoX,
    BLOOM), all queries and then one key and one value where there is one group (StarCoder 1, Falcon-7B), and what lies
    between (Falcon-40B)."""
    return Reordered(name, _by_group)


SHARDS = 4
"""CodeGen was trained on as many cores, each of which holds queries, values and keys of its heads."""


def _by_shard(sizes: Sizes) -> Tensor:
    """[3 H D], from shards that hold queries, values, keys."""
    queries, values, keys = torch.arange(3 * sizes.heads * sizes.head_dim).view(SHARDS, 3, -1).unbind(1)
    return torch.cat([queries.flatten(), keys.flatten(), values.flatten()])


def sharded(name: str) -> Reordered:
    """Queries, values and keys (in this order) of a quarter of the heads, then of the next quarter (CodeGen)."""
    return Reordered(name, _by_shard)


@dataclass(frozen=True)
class ByPlace:
    """One tensor as it is, whose name depends on where the norms of a block stand."""

    of_place: Mapping[str, str]

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.of_place[sizes.layers.norm_place],)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return parts[0]

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [tensor]
