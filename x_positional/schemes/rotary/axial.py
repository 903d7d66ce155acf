"""Axial rotary embedding: each axis of a position rotates its own share of the channels.

B batch, T tokens, A position axes, R rotated width, F = R/2 pairs.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from x_positional.schemes.base import Dims
from x_positional.schemes.precision import exact_dtype
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.rotary.axes import width_problems
from x_positional.schemes.rotary.frequencies import Frequencies, inverse_frequencies
from x_positional.schemes.rotary.rotation import RopeEmbedding
from x_positional.schemes.values import MAX_AXES

AxialFrequencies = Literal["lang", "pixel", "period"]


class AxialEmbedding(RopeEmbedding):
    """Axis a rotates pairs a F/A .. (a+1) F/A - 1. Positions are [B T A], integers or floats.

    freqs="lang": theta^(-2A i/R), i = 0 .. F/A - 1, for row and column numbers (Fang et al. 2023, EVA-02,
    arXiv:2303.11331; Heo et al. 2024, arXiv:2403.13298, eq. 12). freqs="pixel": pi * linspace(1, max_freq/2, F/A), for
    coordinates from -1 to 1 at any resolution. freqs="period": 2 pi theta^(-2A i/R), whose periods grow from 1, for the same
    coordinates (Siméoni et al. 2025, DINOv3, arXiv:2508.10104).

    Args:
        width: R, the rotated channels of a head.
        axes: A.
        theta: the base of the frequencies, for freqs="lang" and "period".
        freqs: the frequencies of each axis.
        max_freq: the highest frequency, for freqs="pixel".
        interleaved: pairs are channels (2i, 2i + 1), otherwise (i, i + R/2).
        learned: train the frequencies, as in `RopeEmbedding`, separately for each axis.
    """

    def __init__(
        self,
        width: int,
        axes: int = 2,
        *,
        theta: float = 10_000.0,
        freqs: AxialFrequencies = "lang",
        max_freq: float = 10.0,
        interleaved: bool = False,
        learned: bool = False,
    ):
        each = width // (2 * axes)
        super().__init__(width, theta=theta, interleaved=interleaved, learned=learned, sections=(each,) * axes)
        self.freqs, self.max_freq = freqs, max_freq

    def initial_frequencies(self, device: torch.device, lengths: Tensor | None = None) -> Frequencies:
        each = self.width // (2 * self.max_axes)
        if self.freqs == "pixel":
            inv_freq = math.pi * torch.linspace(1.0, self.max_freq / 2, each, device=device, dtype=exact_dtype(device))
        else:
            inv_freq = inverse_frequencies(2 * each, self.theta, device) * (
                2 * math.pi if self.freqs == "period" else 1.0
            )
        return Frequencies(inv_freq.repeat(self.max_axes))


class Axial(SchemeConfig):
    """`position="axial"`: rows and columns of an image, or any number of axes."""

    kind: Literal["axial"] = "axial"
    axes: int = Field(default=2, ge=1, le=MAX_AXES)
    """How many axes a position has."""
    freqs: AxialFrequencies = "lang"
    """"lang" for row and column numbers, "pixel" and "period" for coordinates from -1 to 1."""
    theta: float = Field(default=10_000.0, gt=0)
    """The base of the frequencies, for freqs="lang" (10000 in EVA-02, 100 in RoPE-ViT) and for freqs="period" (100 in DINOv3)."""
    max_freq: float = Field(default=10.0, gt=0)
    """The highest frequency, for freqs="pixel"."""
    dim: int | None = None
    """The rotated channels of a head; None is all."""
    interleaved: bool = False
    """Pairs are channels (2i, 2i + 1), otherwise (i, i + R/2)."""
    learned: bool = False
    """Train the frequencies."""
    summary: ClassVar[str] = "RoPE for images and video: each axis of a position rotates its share of the channels"
    paper: ClassVar[str] = "Fang et al. 2023, arXiv:2303.11331"

    def width(self, dims: Dims) -> int:
        """R, the rotated channels of a head."""
        return dims.head_dim if self.dim is None else self.dim

    def build(self, dims: Dims) -> AxialEmbedding:
        return AxialEmbedding(
            self.width(dims),
            self.axes,
            theta=self.theta,
            freqs=self.freqs,
            max_freq=self.max_freq,
            interleaved=self.interleaved,
            learned=self.learned,
        )

    def problems(self, dims: Dims) -> list[str]:
        found = [f"axial: {problem}" for problem in width_problems(self.width(dims), self.axes, dims.head_dim)]
        named = {"lang": "theta", "period": "theta", "pixel": "max_freq"}
        for freqs, name in (("lang", "theta"), ("pixel", "max_freq")):
            value = getattr(self, name)
            if value == type(self).model_fields[name].default:
                continue
            if name != named[self.freqs]:
                found.append(
                    f"axial: {name}={value:g} is for freqs={freqs!r}; freqs={self.freqs!r} uses {named[self.freqs]}. "
                    f"Remove {name}."
                )
            elif self.width(dims) == 2 * self.axes:
                found.append(
                    f"axial: {name}={value:g} has no effect: with one pair per axis only the first frequency is used. "
                    f"Remove {name}, or rotate more channels."
                )
        return found
