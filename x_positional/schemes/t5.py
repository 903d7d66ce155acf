"""T5's relative position bias: one learned number per head and bucket of distances, buckets growing with distance.

H heads; the bias is in logits, after scaling.
"""

from typing import ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.base import Dims
from x_positional.schemes.buckets import t5_bucket_problems, t5_buckets
from x_positional.schemes.distance import DistanceScheme
from x_positional.schemes.initial import small_normal
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.values import MAX_LENGTH, MAX_ROWS


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
        return t5_bucket_problems(self.kind, self.num_buckets, self.max_distance, dims.causal)
