"""Sandwich: the inner products of sinusoidal embeddings as a bias, without parameters.

H heads; biases in logits, after scaling.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from x_positional.schemes.base import Dims
from x_positional.schemes.distance import DistanceScheme
from x_positional.schemes.precision import exact_dtype
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.values import MAX_WIDTH

BASE = 10_000.0


class SandwichBias(DistanceScheme):
    """bias = H / (8 h) * (sum_{i=1..W/2} cos(distance / 10000^(2i/W)) - W/2), h = 1..H (Chi et al. 2023, arXiv:2212.10356; this
    is the formula of NVIDIA NeMo's `SandwichRelativePositionEmbedding`). It is 0 at distance 0; the first head is the steepest.

    Args:
        heads: H.
        width: W, even: the channels of the sinusoidal embeddings.
    """

    def __init__(self, heads: int, width: int):
        super().__init__(heads)
        self.width = width

    def of_distance(self, distance: Tensor) -> Tensor:
        exact = exact_dtype(distance.device)
        half, total = self.width // 2, torch.zeros(distance.shape, dtype=exact, device=distance.device)
        for i in range(1, half + 1):  # one frequency at a time: distances may be those of all pairs
            total += torch.cos(distance.to(exact) * BASE ** (-2 * i / self.width)) - 1
        heads = torch.arange(1, self.heads + 1, dtype=exact, device=distance.device)
        return (self.heads / (8 * heads)).view(-1, *[1] * distance.ndim).mul(total).float()


class Sandwich(SchemeConfig):
    """`position="sandwich"`."""

    kind: Literal["sandwich"] = "sandwich"
    width: int | None = Field(default=None, gt=1, le=MAX_WIDTH, multiple_of=2)
    """Channels of the sinusoidal embeddings, even; more make the bias steeper. None is the head dim, rounded down to even."""
    summary: ClassVar[str] = "the inner product of sinusoidal embeddings as a bias that falls with distance"
    paper: ClassVar[str] = "Chi et al. 2023, arXiv:2212.10356"

    def build(self, dims: Dims) -> SandwichBias:
        return SandwichBias(dims.heads, self._width(dims))

    def _width(self, dims: Dims) -> int:
        return self.width or dims.head_dim // 2 * 2

    def problems(self, dims: Dims) -> list[str]:
        if self._width(dims):
            return []
        return ["sandwich: head_dim=1 leaves no pair of channels for a frequency. Set width."]

    def warnings(self, dims: Dims) -> list[str]:
        if dims.causal:
            return []
        return [
            "sandwich: the bias treats left and right alike, so without another scheme a sequence and its reverse cannot be "
            "told apart. Combine it with another scheme if the direction matters."
        ]
