"""Rotary position embedding: queries and keys turn by an angle proportional to their position; xPos lets them decay too.

B batch, T tokens, R rotated width, F = R/2 pairs.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from x_positional.schemes.base import Dims
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.rotary.axes import SectionOrder, section_problems
from x_positional.schemes.rotary.frequencies import wide_dtype
from x_positional.schemes.rotary.rotation import RopeEmbedding
from x_positional.schemes.rotary.scaling import RopeScaling, Scaling

XPOS_FASTEST = -math.log(0.4 / 1.4)
"""xPos: the first pair decays by e^-XPOS_FASTEST every scale_base tokens."""


def xpos_decay(positions: Tensor, width: int, pairs: int, center: float, scale_base: float) -> Tensor:
    """xPos: [...] positions -> [... F] z_i^((t - center) / scale_base), z_i = (2i/width + 0.4) / 1.4, in float64.

    Queries are multiplied by it and keys divided (Sun et al. 2022, arXiv:2212.10554, algorithm 1).
    """
    wide = wide_dtype(positions.device)
    i = torch.arange(pairs, device=positions.device, dtype=wide)
    base = (2 * i / width + 0.4) / 1.4
    return base ** ((positions.to(wide) - center) / scale_base)[..., None]


class XPosEmbedding(RopeEmbedding):
    """RoPE whose scores decay with distance: pair i of q is multiplied by z_i^((t-c)/B), of k divided by it, with
    z_i = (2i/R + 0.4) / 1.4 (Sun et al. 2022, arXiv:2212.10554, algorithm 1).

    The centre c cancels in every score, so it is fixed; it only keeps the factors small. scale_base: B.
    """

    causal_only = True
    RANGE = 80.0
    """Largest exponent of e that float32 and bfloat16 carry with room to spare."""

    def __init__(
        self,
        width: int,
        *,
        scale_base: float = 512.0,
        center: int = 0,
        interleaved: bool = False,
        theta: float = 10_000.0,
        heads: int | None = None,
        interpolation_factor: float = 1.0,
        base_rescale_factor: float = 1.0,
        scaling: RopeScaling | None = None,
        learned: bool = False,
    ):
        super().__init__(
            width,
            theta=theta,
            interleaved=interleaved,
            heads=heads,
            interpolation_factor=interpolation_factor,
            base_rescale_factor=base_rescale_factor,
            scaling=scaling,
            learned=learned,
        )
        self.scale_base, self.center = scale_base, center
        self.limit = min(0, center) + self.reach(scale_base)
        self.half_limit = min(0, center) + self.reach(scale_base) // 10

    @classmethod
    def reach(cls, scale_base: float) -> int:
        """How far apart positions may be before the fastest pair leaves the range of float32. Scores of hidden keys
        count too: they grow with distance, and infinity minus infinity survives a mask."""
        return int(cls.RANGE * scale_base / -math.log(0.4 / 1.4))

    def decay(self, positions: Tensor) -> Tensor:
        return xpos_decay(positions, self.width, self.width // 2, self.center, self.scale_base)


class Rope(SchemeConfig):
    """`position="rope"`: the whole head, half-split pairs. dim or fraction: rotate less of the head. scaling: how the
    frequencies are stretched for texts longer than those trained on. sections, section_order: positions with several axes,
    such as time, height and width (M-RoPE, VideoRoPE). learned: frequencies are trained, from where they start."""

    kind: Literal["rope"] = "rope"
    needs_wrapper: ClassVar[bool] = True
    theta: float = Field(default=10_000.0, gt=0)
    dim: int | None = None
    fraction: float | None = Field(default=None, gt=0, le=1)
    interleaved: bool = False
    heads: int | None = Field(default=None, gt=0)
    interpolation_factor: float = Field(default=1.0, ge=1)
    base_rescale_factor: float = Field(default=1.0, gt=0)
    scaling: Scaling = None
    sections: tuple[int, ...] | None = None
    section_order: SectionOrder = "contiguous"
    learned: bool = False
    summary: ClassVar[str] = "rotates pairs of query and key channels by position"
    paper: ClassVar[str] = "Su et al. 2021, arXiv:2104.09864"

    def width(self, dims: Dims) -> int:
        """R, the rotated channels of a head."""
        if self.dim is not None:
            return self.dim
        return dims.head_dim if self.fraction is None else int(dims.head_dim * self.fraction)

    def build(self, dims: Dims) -> RopeEmbedding:
        return RopeEmbedding(
            self.width(dims), sections=self.sections, section_order=self.section_order, **self._shared(dims)
        )

    def _shared(self, dims: Dims) -> dict[str, Any]:
        return {
            "theta": self.theta,
            "interleaved": self.interleaved,
            "heads": self.heads,
            "scaling": self._bound(dims),
            "interpolation_factor": self.interpolation_factor,
            "base_rescale_factor": self.base_rescale_factor,
            "learned": self.learned,
        }

    def _bound(self, dims: Dims) -> RopeScaling | None:
        return None if self.scaling is None else self.scaling.bound(dims.max_seq_len)

    def problems(self, dims: Dims) -> list[str]:
        width, found = self.width(dims), []
        if self.dim is not None and self.fraction is not None:
            found.append(
                f"{self.kind}: dim={self.dim} and fraction={self.fraction} say the same thing twice. Give one."
            )
        if width <= 0 or width % 2 or width > dims.head_dim:
            found.append(
                f"{self.kind}: {width} channels of each head would turn; it must be an even number from 2 to "
                f"head_dim={dims.head_dim}. Set dim or fraction."
            )
        if self.base_rescale_factor != 1.0 and width == 2:
            found.append(f"{self.kind}: base_rescale_factor needs more than one pair (its exponent is R/(R-2)).")
        if self.heads is not None and self.heads > dims.heads:
            found.append(
                f"{self.kind}: heads={self.heads} of {dims.heads} heads cannot turn. Use {dims.heads} or fewer."
            )
        if self.heads is not None and self.heads < dims.heads and dims.kv_heads != dims.heads:
            found.append(
                f"{self.kind}: heads={self.heads} turns some query heads, and kv_heads={dims.kv_heads} shares one key head "
                "among several of them. Use kv_heads=heads, or rotate every head."
            )
        return found + self._section_problems(width) + self._scaling_problems(dims)

    def _section_problems(self, width: int) -> list[str]:
        if self.sections is not None:
            return [f"{self.kind}: {p}" for p in section_problems(self.sections, self.section_order, width // 2)]
        if self.section_order == "contiguous":
            return []
        return [
            f"{self.kind}: section_order={self.section_order!r} orders the pairs of several axes, and there are no sections. "
            "Give sections, the number of pairs of each axis."
        ]

    def _scaling_problems(self, dims: Dims) -> list[str]:
        scaling, width, found = self._bound(dims), self.width(dims), []
        if scaling is None:
            return found
        if self.interpolation_factor != 1 or self.base_rescale_factor != 1:
            found.append(
                f"{self.kind}: interpolation_factor={self.interpolation_factor:g} and "
                f"base_rescale_factor={self.base_rescale_factor:g} stretch the frequencies, and so does scaling "
                f"{scaling.rope_type!r}. Give one: Linear(factor=...) and Ntk(factor=...) are scalings too."
            )
        if width > 0 and width % 2 == 0:
            found += [f"{self.kind}: {problem}" for problem in scaling.problems(width, self.theta)]
        return found

    def warnings(self, dims: Dims) -> list[str]:
        width, length, found = self.width(dims), dims.max_seq_len or 0, []
        if 0 < width < 32:
            found.append(
                f"{self.kind}: only {width} channels of each head turn; language models want at least 32. "
                "Raise head_dim, dim or fraction."
            )
        turn = self._slowest_turn(width)
        if self.scaling is None and length > turn:
            found.append(
                f"{self.kind}: theta={self.theta:g} is small for max_seq_len={length}: even the slowest pair turns once in "
                f"{turn:.0f} positions, so far ones look alike. Raise theta, dim or interpolation_factor."
            )
        reach = None if self.scaling is None else self.scaling.reach()
        if reach is not None and length > reach:
            found.append(
                f"{self.kind}: scaling {self.scaling.rope_type!r} stretches to {reach:g} positions, and "  # type: ignore[union-attr]
                f"max_seq_len={length} asks for more. Raise its factor, or lower max_seq_len."
            )
        return found

    def resolved(self, dims: Dims) -> SchemeConfig:
        return self.model_copy(update={"dim": self.width(dims), "fraction": None, "scaling": self._bound(dims)})

    def unstretched(self) -> SchemeConfig | None:
        plain = self.model_copy(update={"scaling": None, "interpolation_factor": 1.0, "base_rescale_factor": 1.0})
        return None if plain == self else plain

    def trained_length(self) -> int | None:
        return None if self.scaling is None else self.scaling.trained_length()

    def _slowest_turn(self, width: int) -> float:
        """Positions in a whole turn of the slowest pair."""
        if width < 4:
            return 2 * math.pi * self.interpolation_factor
        theta = self.theta * self.base_rescale_factor ** (width / (width - 2))
        return 2 * math.pi * theta ** ((width - 2) / width) * self.interpolation_factor


class XPos(Rope):
    """`position="xpos"`. center: None is max_seq_len // 2."""

    kind: Literal["xpos"] = "xpos"  # type: ignore[assignment]
    scale_base: float = Field(default=512.0, gt=0)
    center: int | None = None
    summary: ClassVar[str] = "RoPE whose scores decay with distance"
    paper: ClassVar[str] = "Sun et al. 2022, arXiv:2212.10554"

    def _center(self, dims: Dims) -> int:
        return (dims.max_seq_len or 0) // 2 if self.center is None else self.center

    def build(self, dims: Dims) -> XPosEmbedding:
        return XPosEmbedding(
            self.width(dims), scale_base=self.scale_base, center=self._center(dims), **self._shared(dims)
        )

    def problems(self, dims: Dims) -> list[str]:
        found, reach = super().problems(dims), XPosEmbedding.reach(self.scale_base)
        if self.sections is not None:
            found.append(
                f"xpos: sections={self.sections} splits the pairs over several axes, and scores decay with one distance. "
                "Use rope, or leave sections out."
            )
        center, length = self._center(dims), dims.max_seq_len or 0
        farthest = max(length, center, length - center)
        if farthest > reach:
            found.append(
                f"xpos: positions {farthest} apart (centre {center}) leave the range of float32 with "
                f"scale_base={self.scale_base:g} (reach {reach}). Use scale_base={math.ceil(farthest / reach) * self.scale_base:g}."
            )
        return found
