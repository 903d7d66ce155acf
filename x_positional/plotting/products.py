"""How the product of a query and a key changes with their distance, asked from the scheme's hooks.

N distances, H heads, G key/value heads, D head dim. The query stands at the distance, the key at 0.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional.attention.backends.eager import share_heads
from x_positional.plotting.part import Subject
from x_positional.plotting.rotation import Pairs, path, tables_at

SAMPLES = 64
CHUNK = 2**22
"""Numbers in one turned tensor at most."""


@dataclass(frozen=True)
class Products:
    """same: [H N], query = key = one number in every channel, of length 1. mean, low, high: [H N] over independent random
    queries and keys of length 1: the average, and the range of the middle 80 %."""

    same: Tensor
    mean: Tensor
    low: Tensor
    high: Tensor


@torch.no_grad()
def products(subject: Subject, distances: Tensor, samples: int = SAMPLES) -> Products:
    """At whole distances [N], each in a text that is just long enough. Before the scale of attention."""
    dims, draw = subject.dims, torch.Generator().manual_seed(0)
    q = F.normalize(torch.randn(samples, dims.heads, 1, dims.head_dim, generator=draw), dim=-1)
    k = F.normalize(torch.randn(samples, dims.kv_heads, 1, dims.head_dim, generator=draw), dim=-1)
    flat_q, flat_k = (torch.full_like(x[:1], dims.head_dim**-0.5) for x in (q, k))
    step = max(1, CHUNK // q.numel())
    chunks = distances.split(step)
    same = torch.cat([_product(subject, flat_q, flat_k, chunk)[0] for chunk in chunks], dim=-1)
    spread = torch.cat([_middle(_product(subject, q, k, chunk)) for chunk in chunks], dim=-1)
    return Products(same, *spread)


def _product(subject: Subject, q: Tensor, k: Tensor, distances: Tensor) -> Tensor:
    """[B H 1 D], [B G 1 D] -> [B H N]."""
    scheme, lengths, count = subject.scheme, distances[None] + 1, len(distances)
    q = scheme.rotate_q(q.expand(-1, -1, count, -1), tables_at(subject, distances, lengths))
    k = scheme.rotate_k(k.expand(-1, -1, count, -1), tables_at(subject, torch.zeros_like(distances), lengths))
    return (q * share_heads(k, q.shape[1])).sum(-1)


def _middle(values: Tensor) -> Tensor:
    """[B H N] -> [3 H N]: mean, tenth and ninetieth percentile."""
    low, high = values.quantile(torch.tensor([0.1, 0.9]), dim=0)
    return torch.stack([values.mean(0), low, high])


def bound(subject: Subject, pairs: Pairs, distances: Tensor, length: int) -> Tensor:
    """[N]: the mean of |S_1| .. |S_P| at each distance, S_j the sum of the first j pairs' turns: what Su et al. 2021,
    section 3.4.3, bound the product of a query and a key with, for any whose neighbouring pairs differ by 1 / P at most."""
    return path(subject, pairs, distances, length).cumsum(-1).abs().mean(-1).float()


def alike(values: Tensor) -> list[list[int]]:
    """[H N] -> heads in groups whose rows are equal, in order."""
    groups: list[list[int]] = []
    for head, row in enumerate(values):
        group = next((g for g in groups if torch.allclose(values[g[0]], row, rtol=1e-4, atol=1e-5)), None)
        if group is None:
            groups.append([head])
        else:
            group.append(head)
    return groups
