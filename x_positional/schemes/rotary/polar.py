"""Polar coordinate position embedding (PoPE): content is a length, position alone is an angle.

B batch, T tokens, H heads, G key heads, D head dim.
"""

import math
from typing import ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.base import Dims, PositionScheme
from x_positional.schemes.precision import exact_dtype, widened
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.rotary.frequencies import angles


class PolarTables(NamedTuple):
    """The rotation of each channel at each token, [B|1 1 T D] float32."""

    cos: Tensor
    """Cosines."""
    sin: Tensor
    """Sines."""


class PolarEmbedding(PositionScheme):
    """score = scale * sum_c mu_q mu_k cos((m - n) theta_c - delta_c), mu = softplus(x), theta_c = theta^(-c/D)
    (Gopalakrishnan et al. 2025, arXiv:2509.10534). delta is learned per key head and channel, clamped to [-2 pi, 0].

    Queries and keys become 2D wide; values stay D wide, and the scale stays D^-0.5.

    Args:
        kv_heads: G.
        head_dim: D.
        theta: the base of the frequencies.
        uniform_init: initialise delta uniformly in [-2 pi, 0] instead of at 0.
    """

    def __init__(self, kv_heads: int, head_dim: int, theta: float = 10_000.0, uniform_init: bool = False):
        super().__init__()
        self.head_dim, self.theta = head_dim, theta
        self.delta = nn.Parameter(torch.zeros(kv_heads, 1, head_dim))
        if uniform_init:
            nn.init.uniform_(self.delta, -2 * math.pi, 0.0)

    def tables(self, positions: Tensor) -> PolarTables:
        channel = torch.arange(self.head_dim, device=positions.device, dtype=exact_dtype(positions.device))
        angle = angles(positions, self.theta ** -(channel / self.head_dim)).unsqueeze(-3)
        return PolarTables(angle.cos().float(), angle.sin().float())

    def token_tables(self, tables: PolarTables, i: int) -> PolarTables:
        return PolarTables(tables.cos.narrow(-2, i, 1), tables.sin.narrow(-2, i, 1))

    def rotate_q(self, q: Tensor, tables: PolarTables) -> Tensor:
        length = F.softplus(widened(q))
        return torch.cat([length * tables.cos, length * tables.sin], -1).to(q.dtype)

    def rotate_k(self, k: Tensor, tables: PolarTables) -> Tensor:
        length = F.softplus(widened(k))
        delta = self.delta.clamp(-2 * math.pi, 0.0).to(length.dtype)
        cos, sin = delta.cos(), delta.sin()
        shifted_cos, shifted_sin = tables.cos * cos - tables.sin * sin, tables.sin * cos + tables.cos * sin
        return torch.cat([length * shifted_cos, length * shifted_sin], -1).to(k.dtype)


class Polar(SchemeConfig):
    """`position="polar"`."""

    kind: Literal["polar"] = "polar"
    theta: float = Field(default=10_000.0, gt=0)
    """The base of the frequencies."""
    uniform_init: bool = False
    """Initialise the phases uniformly in [-2 pi, 0] instead of at 0."""
    summary: ClassVar[str] = "content is a length, position is an angle (PoPE)"
    paper: ClassVar[str] = "Gopalakrishnan et al. 2025, arXiv:2509.10534"

    def build(self, dims: Dims) -> PolarEmbedding:
        return PolarEmbedding(dims.kv_heads, dims.head_dim, self.theta, self.uniform_init)

    def warnings(self, dims: Dims) -> list[str]:
        found = [
            f"polar doubles the width of queries and keys: the key cache holds {2 * dims.head_dim} numbers per head and token."
        ]
        wavelength = 2 * math.pi * self.theta ** ((dims.head_dim - 1) / dims.head_dim)
        if dims.max_seq_len and dims.max_seq_len > wavelength:
            found.append(
                f"polar: theta={self.theta:g} is small for max_seq_len={dims.max_seq_len}: the longest wavelength is "
                f"{wavelength:.0f} positions, so distances beyond it are ambiguous. Raise theta or head_dim."
            )
        return found
