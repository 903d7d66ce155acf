"""KERPLE: a penalty per head that grows with the logarithm, or a power, of distance.

H heads; biases in logits, after scaling.
"""

from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from x_positional.schemes.base import Dims
from x_positional.schemes.distance import DistanceScheme
from x_positional.schemes.initial import log_uniform
from x_positional.schemes.precision import widened
from x_positional.schemes.registry import SchemeConfig

Kernel = Literal["log", "power"]


class KerpleBias(DistanceScheme):
    """bias = -r1 log(1 + r2 |distance|), r1, r2 > 0 ("log"), or -r1 |distance|^r2, r1 > 0, 0 < r2 <= 2 ("power"), for each head
    (Chi et al. 2022, arXiv:2205.09921, section 4, logarithmic and power variant). Equation 1 of the paper also divides the bias by
    sqrt(D); the authors' code adds it after scaling, as here.

    Both stay in their range by construction: r1 is the exp of a parameter, and r2 the exp of one, or twice its sigmoid.

    Args:
        heads: H.
        kernel: "log" or "power".
    """

    def __init__(self, heads: int, kernel: Kernel = "log"):
        super().__init__(heads)
        self.kernel = kernel
        # as the authors draw them: the factor of the logarithm from 0 to 2, the others from 0 to 1, at least 0.01. The exponent of
        # a power starts lower: between 0 and 1, where theirs is uniform from 0 to 2
        self.log_r1 = nn.Parameter(log_uniform(heads, 0.01, 2.0 if kernel == "log" else 1.0))
        self.raw_r2 = nn.Parameter(log_uniform(heads, 0.01, 1.0))

    def of_distance(self, distance: Tensor) -> Tensor:
        shape = (-1, *[1] * distance.ndim)
        r1, raw = widened(self.log_r1).exp().view(shape), widened(self.raw_r2).view(shape)
        far = distance.abs().to(r1.dtype)
        if self.kernel == "log":
            return -r1 * torch.log1p(raw.exp() * far)
        near = far == 0  # 0^r2 is 0, but its gradient in r2 is 0 * log 0
        return -r1 * torch.where(near, 1.0, far).pow(2 * raw.sigmoid()).masked_fill(near, 0.0)


class Kerple(SchemeConfig):
    """`position="kerple"`."""

    kind: Literal["kerple"] = "kerple"
    kernel: Kernel = "log"
    """"log": -r1 log(1 + r2 distance), the better one in the paper (table 3). "power": -r1 distance^r2, ALiBi at r2 = 1."""
    summary: ClassVar[str] = "a learned penalty per head that grows with the logarithm of distance"
    paper: ClassVar[str] = "Chi et al. 2022, arXiv:2205.09921"

    def build(self, dims: Dims) -> KerpleBias:
        return KerpleBias(dims.heads, self.kernel)

    def warnings(self, dims: Dims) -> list[str]:
        if dims.causal:
            return []
        return [
            "kerple: the bias treats left and right alike, so without another scheme a sequence and its reverse cannot be "
            "told apart. Combine it with another scheme if the direction matters."
        ]
