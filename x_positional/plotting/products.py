"""How the product of a query and a key depends on their distance, measured by calling the scheme's hooks.

N distances, H heads, G key/value heads, D head dim. The query is at the distance, the key at position 0.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional.attention.backends.eager import share_heads
from x_positional.plotting.rotation import Pairs, phasors, tables_at
from x_positional.plotting.schemes import Probe

SAMPLES = 64
CHUNK = 2**22
"""Largest number of elements in one rotated tensor."""


@dataclass(frozen=True)
class Products:
    """Products [H N] of unit-length queries and keys."""

    equal: Tensor
    """Query and key equal, with the same value in every channel."""
    mean: Tensor
    """Mean over independent random queries and keys."""
    low: Tensor
    """10th percentile over random queries and keys."""
    high: Tensor
    """90th percentile."""


@torch.no_grad()
def products(probe: Probe, distances: Tensor, samples: int = SAMPLES) -> Products:
    """Products at integer distances [N], before the softmax scale. Each is in a sequence just long enough for it."""
    dims, draw = probe.dims, torch.Generator().manual_seed(0)
    q = F.normalize(torch.randn(samples, dims.heads, 1, dims.head_dim, generator=draw), dim=-1)
    k = F.normalize(torch.randn(samples, dims.kv_heads, 1, dims.head_dim, generator=draw), dim=-1)
    flat_q, flat_k = (torch.full_like(x[:1], dims.head_dim**-0.5) for x in (q, k))
    step = max(1, CHUNK // q.numel())
    chunks = distances.split(step)
    equal = torch.cat([_product(probe, flat_q, flat_k, chunk)[0] for chunk in chunks], dim=-1)
    spread = torch.cat([_spread(_product(probe, q, k, chunk)) for chunk in chunks], dim=-1)
    return Products(equal, *spread)


def _product(probe: Probe, q: Tensor, k: Tensor, distances: Tensor) -> Tensor:
    """[B H 1 D], [B G 1 D] -> [B H N]."""
    scheme, lengths, count = probe.scheme, distances[None] + 1, len(distances)
    q = scheme.rotate_q(q.expand(-1, -1, count, -1), tables_at(probe, distances, lengths))
    k = scheme.rotate_k(k.expand(-1, -1, count, -1), tables_at(probe, torch.zeros_like(distances), lengths))
    return (q * share_heads(k, q.shape[1])).sum(-1)


def _spread(values: Tensor) -> Tensor:
    """[B H N] -> [3 H N]: mean, 10th and 90th percentile."""
    low, high = values.quantile(torch.tensor([0.1, 0.9]), dim=0)
    return torch.stack([values.mean(0), low, high])


def upper_bound(probe: Probe, pairs: Pairs, distances: Tensor, length: int) -> Tensor:
    """[N]: the mean of |S_1|, ..., |S_P| at each distance, where S_j is the sum of the phasors of the first j pairs.

    It bounds the product of any query and key, if the products of neighbouring pairs differ by at most 1 / P (Su et al.
    2021, arXiv:2104.09864, section 3.4.3).
    """
    return phasors(probe, pairs, distances, length).cumsum(-1).abs().mean(-1).float()


def equal_heads(values: Tensor) -> list[list[int]]:
    """[H N] -> groups of heads whose rows are equal, in order."""
    groups: list[list[int]] = []
    for head, row in enumerate(values):
        group = next((g for g in groups if torch.allclose(values[g[0]], row, rtol=1e-4, atol=1e-5)), None)
        if group is None:
            groups.append([head])
        else:
            group.append(head)
    return groups
