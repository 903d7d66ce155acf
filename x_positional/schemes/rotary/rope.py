"""RoPE: queries and keys are rotated by an angle proportional to their position; and xPos, whose scores also decay.

B batch, T tokens, R rotated width, F = R/2 pairs.
"""

import math
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from x_positional.schemes.base import Dims
from x_positional.schemes.precision import exact_dtype
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.rotary.axes import SectionOrder, section_problems
from x_positional.schemes.rotary.rotation import RopeEmbedding
from x_positional.schemes.rotary.scaling import RopeScaling, Scaling
from x_positional.schemes.values import MAX_AXES, MAX_HEADS

XPOS_FASTEST = -math.log(0.4 / 1.4)
"""xPos: the first pair decays by e^-XPOS_FASTEST every scale_base tokens."""


def xpos_decay(positions: Tensor, width: int, pairs: int, center: float, scale_base: float) -> Tensor:
    """xPos: [...] positions -> [... F] z_i^((t - center) / scale_base), z_i = (2i/width + 0.4) / 1.4, in float64.

    Queries are multiplied by it and keys divided (Sun et al. 2022, arXiv:2212.10554, algorithm 1).
    """
    wide = exact_dtype(positions.device)
    i = torch.arange(pairs, device=positions.device, dtype=wide)
    base = (2 * i / width + 0.4) / 1.4
    return base ** ((positions.to(wide) - center) / scale_base)[..., None]


class XPosEmbedding(RopeEmbedding):
    """RoPE whose scores decay with distance: pair i of q is multiplied by z_i^((t-c)/B), of k divided by it, with
    z_i = (2i/R + 0.4) / 1.4 (Sun et al. 2022, arXiv:2212.10554, algorithm 1).

    The centre c cancels in every score; it only keeps the factors small, and is fixed when the model is built.

    Args:
        width: R, the rotated channels of a head.
        scale_base: B.
        center: c.
        interleaved: pairs are channels (2i, 2i + 1), otherwise (i, i + R/2).
        theta: the base of the frequencies.
        heads: rotate only the last `heads` heads; None is all.
        interpolation_factor: divides positions.
        base_rescale_factor: s multiplies theta by s^(R/(R-2)).
        scaling: how the frequencies are scaled.
        learned: train the frequencies.
    """

    causal_only = True
    RANGE = 80.0
    """The largest exponent of e allowed; float32 and bfloat16 overflow somewhat above it."""

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
        """How far apart positions may be before the fastest pair overflows float32. This includes masked keys, whose scores
        grow with distance: infinity minus infinity is NaN even under a mask."""
        return int(cls.RANGE * scale_base / XPOS_FASTEST)

    def decay(self, positions: Tensor) -> Tensor:
        return xpos_decay(positions, self.width, self.width // 2, self.center, self.scale_base)


class Rope(SchemeConfig):
    """`position="rope"`: by default the whole head, with half-split pairs."""

    kind: Literal["rope"] = "rope"
    theta: float = Field(default=10_000.0, gt=0)
    """The base of the frequencies."""
    dim: int | None = None
    """The rotated channels of a head; None is all, or `fraction`."""
    fraction: float | None = Field(default=None, gt=0, le=1)
    """The rotated share of a head, in place of `dim`."""
    interleaved: bool = False
    """Pairs are channels (2i, 2i + 1), otherwise (i, i + R/2)."""
    heads: int | None = Field(default=None, gt=0, le=MAX_HEADS)
    """Rotate only the last `heads` heads; None is all."""
    interpolation_factor: float = Field(default=1.0, ge=1)
    """Divides positions; the same as scaling `Linear`."""
    base_rescale_factor: float = Field(default=1.0, gt=0)
    """s multiplies theta by s^(R/(R-2)); the same as scaling `Ntk`."""
    scaling: Scaling = None
    """How the frequencies are scaled to extend the context."""
    sections: tuple[int, ...] | None = Field(default=None, max_length=MAX_AXES)
    """Pairs per axis, for positions with several axes such as time, height and width (M-RoPE, VideoRoPE)."""
    section_order: SectionOrder = "contiguous"
    """How the pairs are assigned to axes."""
    learned: bool = False
    """Train the frequencies."""
    summary: ClassVar[str] = "rotates pairs of query and key channels by position"
    paper: ClassVar[str] = "Su et al. 2021, arXiv:2104.09864"

    def width(self, dims: Dims) -> int:
        """R, the rotated channels of a head."""
        if self.dim is not None:
            return self.dim
        return dims.head_dim if self.fraction is None else int(dims.head_dim * self.fraction)

    def model_dims(self) -> frozenset[str]:
        return frozenset() if self.scaling is None else frozenset(("max_seq_len",))

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
                f"{self.kind}: dim={self.dim} and fraction={self.fraction} both set the rotary width. Set one of them."
            )
        if width <= 0 or width % 2 or width > dims.head_dim:
            found.append(
                f"{self.kind}: rotary width is {width}; RoPE rotates pairs, so it must be an even number from 2 to "
                f"head_dim={dims.head_dim}. Set dim or fraction."
            )
        if self.base_rescale_factor != 1.0 and width == 2:
            found.append(f"{self.kind}: base_rescale_factor needs a rotary width above 2; its exponent is R/(R-2).")
        if self.heads is not None and self.heads > dims.heads:
            found.append(f"{self.kind}: heads={self.heads} exceeds the model's heads={dims.heads}.")
        if self.heads is not None and self.heads < dims.heads and dims.kv_heads != dims.heads:
            found.append(
                f"{self.kind}: heads={self.heads} rotates some query heads only, and kv_heads={dims.kv_heads} shares each key "
                "head between several query heads. Use kv_heads=heads, or rotate every head."
            )
        return found + self._section_problems(width) + self._scaling_problems(dims)

    def _section_problems(self, width: int) -> list[str]:
        if self.sections is not None:
            return [f"{self.kind}: {p}" for p in section_problems(self.sections, self.section_order, width // 2)]
        if self.section_order == "contiguous":
            return []
        return [
            f"{self.kind}: section_order={self.section_order!r} needs sections. Set sections, the number of pairs per axis."
        ]

    def _scaling_problems(self, dims: Dims) -> list[str]:
        scaling, width, found = self._bound(dims), self.width(dims), []
        if scaling is None:
            return found
        if self.interpolation_factor != 1 or self.base_rescale_factor != 1:
            found.append(
                f"{self.kind}: interpolation_factor={self.interpolation_factor:g} and "
                f"base_rescale_factor={self.base_rescale_factor:g} cannot be combined with scaling {scaling.rope_type!r}: each "
                "scales the frequencies. Use one; Linear(factor=...) and Ntk(factor=...) are the equivalent scalings."
            )
        if width > 0 and width % 2 == 0:
            found += [f"{self.kind}: {problem}" for problem in scaling.problems(width, self.theta)]
        return found

    def warnings(self, dims: Dims) -> list[str]:
        width, length, found = self.width(dims), dims.max_seq_len or 0, []
        if 0 < width < 32:
            found.append(
                f"{self.kind}: rotary width is only {width}; language models usually need at least 32. "
                "Raise head_dim, dim or fraction."
            )
        wavelength = self._longest_wavelength(width)
        if self.scaling is None and length > wavelength:
            found.append(
                f"{self.kind}: theta={self.theta:g} is small for max_seq_len={length}: the longest wavelength is "
                f"{wavelength:.0f} positions, so distances beyond it are ambiguous. Raise theta, dim or interpolation_factor."
            )
        reach = None if self.scaling is None else self.scaling.reach()
        if reach is not None and length > reach:
            found.append(
                f"{self.kind}: scaling {self.scaling.rope_type!r} extends the context to {reach:g} positions, and "  # type: ignore[union-attr]
                f"max_seq_len={length} exceeds it. Raise its factor, or lower max_seq_len."
            )
        return found

    def resolved(self, dims: Dims) -> SchemeConfig:
        return self.model_copy(update={"dim": self.width(dims), "fraction": None, "scaling": self._bound(dims)})

    def unstretched(self) -> SchemeConfig | None:
        plain = self.model_copy(update={"scaling": None, "interpolation_factor": 1.0, "base_rescale_factor": 1.0})
        return None if plain == self else plain

    def trained_length(self) -> int | None:
        return None if self.scaling is None else self.scaling.trained_length()

    def _longest_wavelength(self, width: int) -> float:
        """The positions in one rotation of the slowest pair."""
        if width < 4:
            return 2 * math.pi * self.interpolation_factor
        theta = self.theta * self.base_rescale_factor ** (width / (width - 2))
        return 2 * math.pi * theta ** ((width - 2) / width) * self.interpolation_factor


class XPos(Rope):
    """`position="xpos"`, with the settings of `Rope`."""

    kind: Literal["xpos"] = "xpos"  # type: ignore[assignment]
    scale_base: float = Field(default=512.0, gt=0)
    """B; larger values decay more slowly."""
    center: int | None = None
    """c, the position where the factors are 1; None is max_seq_len // 2."""
    summary: ClassVar[str] = "RoPE whose scores decay with distance"
    paper: ClassVar[str] = "Sun et al. 2022, arXiv:2212.10554"

    def model_dims(self) -> frozenset[str]:
        return super().model_dims() | (frozenset(("max_seq_len",)) if self.center is None else frozenset())

    def _center(self, dims: Dims) -> int:
        return (dims.max_seq_len or 0) // 2 if self.center is None else self.center

    def resolved(self, dims: Dims) -> SchemeConfig:
        return super().resolved(dims).model_copy(update={"center": self._center(dims)})

    def build(self, dims: Dims) -> XPosEmbedding:
        return XPosEmbedding(
            self.width(dims), scale_base=self.scale_base, center=self._center(dims), **self._shared(dims)
        )

    def problems(self, dims: Dims) -> list[str]:
        found, reach = super().problems(dims), XPosEmbedding.reach(self.scale_base)
        if self.sections is not None:
            found.append(
                f"xpos: sections={self.sections} splits the pairs over several axes, but the decay needs a single distance. "
                "Use rope, or remove sections."
            )
        center, length = self._center(dims), dims.max_seq_len or 0
        farthest = max(length, center, length - center)
        if farthest > reach:
            found.append(
                f"xpos: positions {farthest} apart (centre {center}) overflow float32 with "
                f"scale_base={self.scale_base:g} (at most {reach}). "
                f"Use scale_base={math.ceil((farthest + 1) * XPOS_FASTEST / XPosEmbedding.RANGE)} or more."
            )
        return found
