"""Rotary position embedding: queries and keys turn by an angle proportional to their position; xPos lets them decay too.

B batch, T tokens, H heads, D head dim, R rotated width, F = R/2 pairs.
"""

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from x_positional.registry import SchemeConfig
from x_positional.scheme import Dims, PositionScheme
from x_positional.schemes.frequencies import Frequencies, angles, wide_dtype
from x_positional.schemes.rope_scaling import DefaultRope, RopeScaling, Scaling


@dataclass(frozen=True)
class Rotation:
    """Per token: the cosine and signed sine of every rotated channel, [B|1 1 T R] float32, for q and for k."""

    q_cos: Tensor
    q_sin: Tensor
    k_cos: Tensor
    k_sin: Tensor


class RotaryEmbedding(PositionScheme):
    """(x, y) -> (x cos a - y sin a, x sin a + y cos a), a = t * theta^(-2i/R) (Su et al. 2021, arXiv:2104.09864, eq. 34).

    width: R, the first R channels turn and the rest pass (partial rotation, GPT-J). interleaved: pairs are (2i, 2i+1),
    otherwise (i, i + R/2). heads: only the last `heads` heads turn. scaling: how the frequencies are changed, and the
    attention factor that cosines and sines of q and k are multiplied by. interpolation_factor divides positions (Chen et
    al. 2023, arXiv:2306.15595). base_rescale_factor s multiplies theta by s^(R/(R-2)) (NTK-aware, bloc97 2023).
    """

    def __init__(
        self, width: int, *, theta: float = 10_000.0, interleaved: bool = False, heads: int | None = None,
        interpolation_factor: float = 1.0, base_rescale_factor: float = 1.0, scaling: RopeScaling | None = None,
    ):  # fmt: skip
        super().__init__()
        self.width, self.interleaved, self.heads = width, interleaved, heads
        rescale = 1.0 if base_rescale_factor == 1.0 else base_rescale_factor ** (width / (width - 2))
        self.theta, self.interpolation_factor = theta * rescale, interpolation_factor
        self.scaling = scaling or DefaultRope()
        if self.scaling.follows_length:  # a longer text turns its old keys otherwise
            self.kv_cacheable = self.prefix_consistent = False  # type: ignore[misc]
            self.absolute = True  # type: ignore[misc]

    def frequencies(self, device: torch.device, lengths: Tensor | None = None) -> Frequencies:
        """[F] radians per position and the attention factor; [B|1 T|1 F] where the lengths of texts [B|1 T|1] count."""
        found = self.scaling.frequencies(self.width, self.theta, length=lengths, device=device)
        return found._replace(inv_freq=found.inv_freq / self.interpolation_factor)

    def inv_freq(self, device: torch.device) -> Tensor:
        """[F] radians per position."""
        return self.frequencies(device).inv_freq

    def regime(self, length: int) -> Hashable:
        return self.scaling.regime(length)

    def decay(self, positions: Tensor) -> Tensor | None:
        """[B|1 T] -> [B|1 T F]: what queries are multiplied by and keys divided by; None for one."""
        return None

    def tables(self, positions: Tensor) -> Rotation:
        if not self.scaling.follows_length:
            return self._tables(positions, self.frequencies(positions.device))
        return self.length_tables(positions, positions.amax(dim=1, keepdim=True) + 1)

    def length_tables(self, positions: Tensor, lengths: Tensor) -> Rotation:
        return self._tables(positions, self.frequencies(positions.device, lengths))

    def _tables(self, positions: Tensor, frequencies: Frequencies) -> Rotation:
        angle, scale = angles(positions, frequencies.inv_freq), frequencies.attention_factor
        cos, sin, decay = angle.cos() * scale, angle.sin() * scale, self.decay(positions)
        q_cos, q_sin = self._lay_out(cos, cos), self._lay_out(-sin, sin)
        if decay is None:
            return Rotation(q_cos, q_sin, q_cos, q_sin)
        k_cos, k_sin = self._lay_out(cos / decay, cos / decay), self._lay_out(-sin / decay, sin / decay)
        return Rotation(
            self._lay_out(cos * decay, cos * decay), self._lay_out(-sin * decay, sin * decay), k_cos, k_sin
        )

    def _lay_out(self, first: Tensor, second: Tensor) -> Tensor:
        both = torch.stack([first, second], -1).flatten(-2) if self.interleaved else torch.cat([first, second], -1)
        return both.float().unsqueeze(-3)

    def rotate_q(self, q: Tensor, tables: Rotation) -> Tensor:
        return self._some_heads(q, tables.q_cos, tables.q_sin)

    def rotate_k(self, k: Tensor, tables: Rotation) -> Tensor:
        return self._some_heads(k, tables.k_cos, tables.k_sin)

    def _some_heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.heads is None or self.heads == x.shape[1]:
            return self._turn(x, cos, sin)
        return torch.cat([x[:, : -self.heads], self._turn(x[:, -self.heads :], cos, sin)], dim=1)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned = x[..., : self.width]
        turned = (turned * cos + self._partner(turned) * sin).to(x.dtype)
        return turned if self.width == x.shape[-1] else torch.cat([turned, x[..., self.width :]], dim=-1)

    def _partner(self, x: Tensor) -> Tensor:
        """[... R] -> [... R]: each channel's other half."""
        if self.interleaved:
            return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return x.roll(self.width // 2, dims=-1)


class XPosEmbedding(RotaryEmbedding):
    """RoPE whose scores decay with distance: pair i of q is multiplied by z_i^((t-c)/B), of k divided by it, with
    z_i = (2i/R + 0.4) / 1.4 (Sun et al. 2022, arXiv:2212.10554, algorithm 1).

    The centre c cancels in every score, so it is fixed; it only keeps the factors small. scale_base: B.
    """

    causal_only = True
    RANGE = 80.0
    """Largest exponent of e that float32 and bfloat16 carry with room to spare."""

    def __init__(self, width: int, *, scale_base: float = 512.0, center: int = 0, interleaved: bool = False,
                 theta: float = 10_000.0, heads: int | None = None, interpolation_factor: float = 1.0,
                 base_rescale_factor: float = 1.0, scaling: RopeScaling | None = None):  # fmt: skip
        super().__init__(
            width, theta=theta, interleaved=interleaved, heads=heads, interpolation_factor=interpolation_factor,
            base_rescale_factor=base_rescale_factor, scaling=scaling,
        )  # fmt: skip
        self.scale_base, self.center = scale_base, center
        self.limit = min(0, center) + self.reach(scale_base)
        self.half_limit = min(0, center) + self.reach(scale_base) // 10

    @classmethod
    def reach(cls, scale_base: float) -> int:
        """How far apart positions may be before the fastest pair leaves the range of float32. Scores of hidden keys
        count too: they grow with distance, and infinity minus infinity survives a mask."""
        return int(cls.RANGE * scale_base / -math.log(0.4 / 1.4))

    def decay(self, positions: Tensor) -> Tensor:
        wide = wide_dtype(positions.device)
        i = torch.arange(self.width // 2, device=positions.device, dtype=wide)
        base = (2 * i / self.width + 0.4) / 1.4
        return base ** ((positions.to(wide) - self.center) / self.scale_base)[..., None]


class Rope(SchemeConfig):
    """`position="rope"`: the whole head, half-split pairs. dim or fraction: rotate less of the head. scaling: how the
    frequencies are stretched for texts longer than those trained on."""

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
    summary: ClassVar[str] = "rotates pairs of query and key channels by position"
    paper: ClassVar[str] = "Su et al. 2021, arXiv:2104.09864"

    def width(self, dims: Dims) -> int:
        """R, the rotated channels of a head."""
        if self.dim is not None:
            return self.dim
        return dims.head_dim if self.fraction is None else int(dims.head_dim * self.fraction)

    def build(self, dims: Dims) -> RotaryEmbedding:
        return RotaryEmbedding(self.width(dims), **self._shared(dims))

    def _shared(self, dims: Dims) -> dict[str, Any]:
        return {
            "theta": self.theta, "interleaved": self.interleaved, "heads": self.heads, "scaling": self._bound(dims),
            "interpolation_factor": self.interpolation_factor, "base_rescale_factor": self.base_rescale_factor,
        }  # fmt: skip

    def _bound(self, dims: Dims) -> RopeScaling | None:
        return None if self.scaling is None else self.scaling.bound(dims.max_seq_len)

    def problems(self, dims: Dims) -> list[str]:
        width, found = self.width(dims), []
        if self.dim is not None and self.fraction is not None:
            found.append(f"{self.kind}: dim={self.dim} and fraction={self.fraction} say the same thing twice. Give one.")
        if width <= 0 or width % 2 or width > dims.head_dim:
            found.append(
                f"{self.kind}: {width} channels of each head would turn; it must be an even number from 2 to "
                f"head_dim={dims.head_dim}. Set dim or fraction."
            )
        if self.base_rescale_factor != 1.0 and width == 2:
            found.append(f"{self.kind}: base_rescale_factor needs more than one pair (its exponent is R/(R-2)).")
        if self.heads is not None and self.heads > dims.heads:
            found.append(f"{self.kind}: heads={self.heads} of {dims.heads} heads cannot turn. Use {dims.heads} or fewer.")
        if self.heads is not None and self.heads < dims.heads and dims.kv_heads != dims.heads:
            found.append(
                f"{self.kind}: heads={self.heads} turns some query heads, and kv_heads={dims.kv_heads} shares one key head "
                "among several of them. Use kv_heads=heads, or rotate every head."
            )
        return found + self._scaling_problems(dims)

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
        center, length = self._center(dims), dims.max_seq_len or 0
        farthest = max(length, center, length - center)
        if farthest > reach:
            found.append(
                f"xpos: positions {farthest} apart (centre {center}) leave the range of float32 with "
                f"scale_base={self.scale_base:g} (reach {reach}). Use scale_base={math.ceil(farthest / reach) * self.scale_base:g}."
            )
        return found
