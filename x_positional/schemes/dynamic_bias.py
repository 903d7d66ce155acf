"""Dynamic position bias: a small MLP maps a distance to a bias per head.

H heads, N distances, E hidden width; the bias is in logits, after scaling.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call

from x_positional.schemes.base import Dims
from x_positional.schemes.distance import DistanceScheme
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.values import MAX_WIDTH


class DynamicBias(DistanceScheme):
    """bias = MLP(d)_h, or MLP(sign(d) log(1 + |d|))_h (Wang et al. 2021, CrossFormer, arXiv:2108.00154, section 3.3;
    log distances as in SwinV2, Liu et al. 2022, arXiv:2111.09883).

    Args:
        heads: H.
        dim: E.
        depth: how many hidden layers.
        log_distance: feed log distances to the MLP.
        norm: a LayerNorm in each hidden layer.
    """

    def __init__(self, heads: int, dim: int, depth: int = 2, log_distance: bool = False, norm: bool = False):
        super().__init__(heads)
        self.log_distance = log_distance
        layers: list[nn.Module] = []
        for layer in range(depth):
            layers.append(nn.Linear(1 if layer == 0 else dim, dim))
            if norm:
                layers.append(nn.LayerNorm(dim))
            layers.append(nn.SiLU())
        self.mlp = nn.Sequential(*layers, nn.Linear(dim, heads))

    def of_distance(self, distance: Tensor) -> Tensor:
        floats = {name: p for name, p in self.mlp.named_parameters() if p.is_floating_point()}
        wide = torch.float64 if any(p.dtype == torch.float64 for p in floats.values()) else torch.float32
        d = distance.to(wide)
        if self.log_distance:
            d = d.sign() * d.abs().log1p()
        parameters = {name: p.to(wide) for name, p in floats.items()}
        with _no_autocast(d.device):  # bfloat16 cannot represent 257, so large distances would collapse
            return functional_call(self.mlp, parameters, d[..., None]).movedim(-1, 0)


def _no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Disables autocast on devices that have it; meta has none."""
    available = torch.amp.is_autocast_available(device.type)
    return torch.autocast(device.type, enabled=False) if available else nullcontext()


class Dynamic(SchemeConfig):
    """`position="dynamic"`."""

    kind: Literal["dynamic"] = "dynamic"
    dim: int | None = Field(default=None, gt=0, le=MAX_WIDTH)
    """The hidden width; None is a quarter of the model dim."""
    depth: int = Field(default=2, gt=0, le=16)
    """How many hidden layers."""
    log_distance: bool = False
    """Feed log distances to the MLP."""
    norm: bool = False
    """A LayerNorm in each hidden layer."""
    summary: ClassVar[str] = "a small MLP maps distance to a bias per head"
    paper: ClassVar[str] = "Wang et al. 2021, arXiv:2108.00154"

    def build(self, dims: Dims) -> DynamicBias:
        return DynamicBias(dims.heads, self._width(dims), self.depth, self.log_distance, self.norm)

    def _width(self, dims: Dims) -> int:
        return self.dim or max(1, dims.dim // 4)

    def problems(self, dims: Dims) -> list[str]:
        if not self.norm or self._width(dims) > 1:
            return []
        return [
            "dynamic: norm=True with one hidden channel maps every distance to the same bias. Set dim to 2 or more."
        ]

    def warnings(self, dims: Dims) -> list[str]:
        if self.log_distance or not dims.max_seq_len or dims.max_seq_len <= 512:
            return []
        return [
            f"dynamic: the input of the MLP is raw distances up to {dims.max_seq_len}; log_distance=True trains more "
            "evenly and extrapolates further past the trained length."
        ]
