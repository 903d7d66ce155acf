"""T5's buckets of distances: each small distance has its own, larger ones share them."""

import math

import torch
from torch import Tensor


def t5_buckets(distance: Tensor, num_buckets: int, max_distance: int, causal: bool) -> Tensor:
    """int64 distances (query - key) -> buckets (Raffel et al. 2020, arXiv:1910.10683, section 2.1).

    The first half of the buckets hold one distance each, the rest are logarithmic up to max_distance. Without a causal mask
    half of all buckets are for keys to the right of the query.
    """
    offset = 0
    if not causal:
        num_buckets //= 2
        offset = (distance < 0).long() * num_buckets
        distance = distance.abs()
    distance = distance.clamp(min=0)
    exact = num_buckets // 2
    ratio = torch.log(distance.clamp(min=1).float() / exact) / math.log(max_distance / exact)
    far = (exact + (ratio * (num_buckets - exact)).long()).clamp(max=num_buckets - 1)
    return torch.where(distance < exact, distance, far) + offset


def t5_bucket_problems(kind: str, num_buckets: int, max_distance: int, causal: bool) -> list[str]:
    """Why the scheme `kind` cannot have these buckets; [] if it can."""
    buckets = num_buckets if causal else num_buckets // 2
    found = []
    if buckets < 2:
        found.append(
            f"{kind}: num_buckets={num_buckets} leaves fewer than two buckets per side in an encoder. Use 4 or more."
        )
    if max_distance <= buckets // 2:
        found.append(
            f"{kind}: max_distance={max_distance} must exceed the {buckets // 2} distances that have their own bucket "
            f"(num_buckets={num_buckets}). Raise max_distance or lower num_buckets."
        )
    return found
