"""RoPE-Mixed: every pair of channels rotates along its own direction, learned for each head.

B batch, T tokens, G key heads, H heads, A position axes, R rotated width, F = R/2 pairs.
"""

from typing import ClassVar, Literal

import torch
from einops import rearrange, repeat
from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.base import Dims
from x_positional.schemes.precision import exact_dtype
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.rotary.axes import check_axes, width_problems
from x_positional.schemes.rotary.frequencies import inverse_frequencies
from x_positional.schemes.rotary.rotation import Rotation, RotationScheme
from x_positional.schemes.values import MAX_AXES


class MixedEmbedding(RotationScheme):
    """The angle of pair f in head g is the sum over axes a of positions[..., a] * rate[g, f, a], rate learned (Heo et al.
    2024, arXiv:2403.13298, eq. 14). Positions are [B T A], integers or floats; one without axes is the same on every axis.

    Initialised as A axial embeddings with frequencies theta^(-2A i/R), i = 0 .. F/A - 1, along A orthogonal directions
    drawn at random for each head. Query heads that share a key head share its rates; otherwise scores would not be relative.

    Args:
        width: R, the rotated channels of a head.
        heads: H.
        kv_heads: G.
        axes: A.
        theta: the base of the initial frequencies.
        interleaved: pairs are channels (2i, 2i + 1), otherwise (i, i + R/2).
    """

    per_layer = True

    def __init__(
        self, width: int, heads: int, kv_heads: int, axes: int = 2, *, theta: float = 10.0, interleaved: bool = False
    ):
        super().__init__(width, interleaved=interleaved)
        self.max_axes = axes
        self.theta, self.share = theta, heads // kv_heads
        self.rate = nn.Parameter(torch.empty(kv_heads, width // 2, axes))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Draw new directions and reset the frequencies."""
        if self.rate.is_meta:  # without values; there, arithmetic would import torch's compiler
            return
        heads, pairs, axes = self.rate.shape
        device = self.rate.device
        sizes = inverse_frequencies(2 * pairs // axes, self.theta, device, pairs // axes)
        draw, triangle = torch.linalg.qr(torch.randn(heads, axes, axes, device=device, dtype=sizes.dtype))
        directions = draw * triangle.diagonal(dim1=-2, dim2=-1).sign()[:, None]  # uniform, with reflections
        directions[..., -1] *= torch.linalg.det(directions)[
            :, None
        ]  # rotations only: row a is the direction of block a
        self.rate.copy_(rearrange(directions[:, :, None] * sizes[:, None], "g block i a -> g (block i) a"))

    @property
    def table_dtype(self) -> torch.dtype:
        return self.rate.dtype

    def tables(self, positions: Tensor) -> Rotation:
        check_axes(positions, self.max_axes)
        rate, at = self.rate.to(exact_dtype(positions.device))[:, None], positions[:, None, :, None]
        if positions.ndim == 2:
            angle = at.to(rate.dtype) * rate.sum(-1)
        else:  # not a matrix product, which autocast would round on devices without float64
            angle = at[..., 0].to(rate.dtype) * rate[..., 0]
            for axis in range(1, self.max_axes):
                angle = angle + at[..., axis].to(rate.dtype) * rate[..., axis]
        k_cos, k_sin = self.channels(angle.cos(), angle.sin())
        if self.share == 1:
            return Rotation(k_cos, k_sin, k_cos, k_sin)
        q_cos, q_sin = (repeat(table, "b g t r -> b (g share) t r", share=self.share) for table in (k_cos, k_sin))
        return Rotation(q_cos, q_sin, k_cos, k_sin)


class Mixed(SchemeConfig):
    """`position="mixed"`: for images, or any number of axes."""

    kind: Literal["mixed"] = "mixed"
    axes: int = Field(default=2, ge=1, le=MAX_AXES)
    """How many axes a position has."""
    theta: float = Field(default=10.0, gt=0)
    """The base of the initial frequencies."""
    dim: int | None = None
    """The rotated channels of a head; None is all."""
    interleaved: bool = False
    """Pairs are channels (2i, 2i + 1), otherwise (i, i + R/2)."""
    summary: ClassVar[str] = "RoPE for images and video along directions learned for each head"
    paper: ClassVar[str] = "Heo et al. 2024, arXiv:2403.13298"

    def width(self, dims: Dims) -> int:
        """R, the rotated channels of a head."""
        return dims.head_dim if self.dim is None else self.dim

    def build(self, dims: Dims) -> MixedEmbedding:
        return MixedEmbedding(
            self.width(dims), dims.heads, dims.kv_heads, self.axes, theta=self.theta, interleaved=self.interleaved
        )

    def problems(self, dims: Dims) -> list[str]:
        return [f"mixed: {problem}" for problem in width_problems(self.width(dims), self.axes, dims.head_dim)]
