"""T5's relative position bias: one learned number per head and bucket of distances, buckets growing with distance.

H heads; the bias is in logits, after scaling.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.base import Dims
from x_positional.schemes.distance import DistanceScheme
from x_positional.schemes.initial import small_normal
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.values import MAX_LENGTH, MAX_ROWS


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


class T5Bias(DistanceScheme):
    """bias = scale * W[bucket(distance), h], W [num_buckets, H] shared by all layers, or one a layer.

    Args:
        heads: H.
        causal: whether attention is causal; if not, half of the buckets are for keys to the right.
        num_buckets: rows of W.
        max_distance: where the last bucket begins.
        scale: multiplies the bias.
        per_layer: each layer has a W of its own.
    """

    continuous = False

    def __init__(
        self,
        heads: int,
        causal: bool,
        num_buckets: int = 32,
        max_distance: int = 128,
        scale: float = 1.0,
        per_layer: bool = False,
    ):
        super().__init__(heads)
        self.per_layer = per_layer
        self.causal_only = causal
        self.num_buckets, self.max_distance, self.scale = num_buckets, max_distance, scale
        self.reach = max_distance
        self.table = nn.Parameter(small_normal(num_buckets, heads))

    def of_distance(self, distance: Tensor) -> Tensor:
        bucket = t5_buckets(distance, self.num_buckets, self.max_distance, self.causal_only)
        return self.table.t()[:, bucket] * self.scale


class T5(SchemeConfig):
    """`position="t5"`."""

    kind: Literal["t5"] = "t5"
    num_buckets: int = Field(default=32, gt=1, le=MAX_ROWS)
    """How many buckets; in an encoder half of them are for keys to the right."""
    max_distance: int = Field(default=128, gt=1, le=MAX_LENGTH)
    """All distances from here on share the last bucket."""
    scale: float = 1.0
    """Multiplies the bias: 1 in T5, sqrt(head_dim) in x-transformers."""
    per_layer: bool = False
    """Each layer has a table of its own (UMT5); otherwise all layers share one."""
    summary: ClassVar[str] = "a learned bias per head and distance bucket"
    paper: ClassVar[str] = "Raffel et al. 2020, arXiv:1910.10683"

    def build(self, dims: Dims) -> T5Bias:
        return T5Bias(dims.heads, dims.causal, self.num_buckets, self.max_distance, self.scale, self.per_layer)

    def problems(self, dims: Dims) -> list[str]:
        buckets = self.num_buckets if dims.causal else self.num_buckets // 2
        found = []
        if buckets < 2:
            found.append(
                f"t5: num_buckets={self.num_buckets} leaves fewer than two buckets per side in an encoder. Use 4 or more."
            )
        if self.max_distance <= buckets // 2:
            found.append(
                f"t5: max_distance={self.max_distance} must exceed the {buckets // 2} distances that have their own bucket "
                f"(num_buckets={self.num_buckets}). Raise max_distance or lower num_buckets."
            )
        return found
