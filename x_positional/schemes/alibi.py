"""Attention with linear biases: a penalty per head and unit of distance.

H heads; slopes and distances in positions, biases in logits (after scaling).
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.alibi_rounded import RoundedAlibiBias, Rounding
from x_positional.schemes.base import Dims, PositionScheme
from x_positional.schemes.distance import DistanceScheme
from x_positional.schemes.registry import SchemeConfig

Variant = Literal["causal", "symmetric", "asymmetric"]


def alibi_slopes(heads: int) -> list[float]:
    """2^(-8 h / H), h = 1..H, for a power of two; otherwise those of the power below, then every other one of the power
    above (Press et al. 2021, arXiv:2108.12409, section 3 and the authors' code). The first head is the steepest."""
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * h / below) for h in range(1, below + 1)]
    return slopes + [2 ** (-8 * h / (2 * below)) for h in range(1, 2 * below + 1, 2)][: heads - below]


class AlibiBias(DistanceScheme):
    """bias = -slope_h * |distance|. Heads after the first `len(slopes)` have none.

    right: slopes for keys to the right of the query ("asymmetric"); None uses the same ones. learned: slopes are trained,
    as exp of a parameter, so they stay positive. scale: slopes are multiplied by it.
    """

    def __init__(
        self,
        heads: int,
        slopes: list[float],
        right: list[float] | None = None,
        learned: bool = False,
        scale: float = 1.0,
    ):
        super().__init__(heads)
        self.left, self.right, self.scale = slopes, right, scale
        self.log_left = nn.Parameter(torch.tensor(slopes).log()) if learned else None
        self.log_right = nn.Parameter(torch.tensor(right).log()) if learned and right is not None else None

    def _slopes(self, fixed: list[float], log: Tensor | None, like: Tensor) -> Tensor:
        if log is None:
            slopes = torch.tensor([s * self.scale for s in fixed], device=like.device, dtype=torch.float32)
        else:
            slopes = log.to(torch.promote_types(log.dtype, torch.float32)).exp() * self.scale
        free = slopes.new_zeros(self.heads - len(fixed))
        return torch.cat([slopes, free]).reshape(-1, *[1] * like.ndim)

    def of_distance(self, distance: Tensor) -> Tensor:
        left = self._slopes(self.left, self.log_left, distance)
        far = distance.abs().to(left.dtype)
        if self.right is None:
            return -left * far
        right = self._slopes(self.right, self.log_right, distance)
        return -torch.where(distance >= 0, left, right) * far


class Alibi(SchemeConfig):
    """`position="alibi"`. heads: only the first so many. slopes: your own, steepest first. variant: None is causal in a
    decoder and symmetric in an encoder; asymmetric halves the slopes to the right (and trains them apart if learned).
    scale: the bias is multiplied by it. rounding: products of slope and position are rounded to this type before that, as
    in Falcon, whose scale is head_dim^-0.5."""

    kind: Literal["alibi"] = "alibi"
    heads: int | None = Field(default=None, gt=0)
    slopes: tuple[float, ...] | None = None
    learned: bool = False
    variant: Variant | None = None
    scale: float = Field(default=1.0, gt=0)
    rounding: Rounding | None = None
    summary: ClassVar[str] = "a penalty per head that grows with distance"
    paper: ClassVar[str] = "Press et al. 2021, arXiv:2108.12409"

    def _count(self, dims: Dims) -> int:
        return self.heads or (len(self.slopes) if self.slopes else dims.heads)

    def _all_slopes(self, dims: Dims) -> list[float]:
        return list(self.slopes) if self.slopes else alibi_slopes(self._count(dims))

    def build(self, dims: Dims) -> PositionScheme:
        slopes = self._all_slopes(dims)
        right = [s / 2 for s in slopes] if self.variant == "asymmetric" else None
        if self.rounding is not None:
            return RoundedAlibiBias(dims.heads, slopes, right, self.rounding, self.scale)
        return AlibiBias(dims.heads, slopes, right, self.learned, self.scale)

    def resolved(self, dims: Dims) -> SchemeConfig:
        slopes, scale = self._all_slopes(dims), self.scale
        if self.rounding is None and not self.learned:  # nothing stands between slope and scale
            slopes, scale = [s * scale for s in slopes], 1.0
        variant = self.variant or ("causal" if dims.causal else "symmetric")
        return self.model_copy(update={"heads": None, "slopes": tuple(slopes), "variant": variant, "scale": scale})

    def problems(self, dims: Dims) -> list[str]:
        found = []
        if self._count(dims) > dims.heads:
            found.append(
                f"alibi: {self._count(dims)} heads are to have slopes, and there are {dims.heads}. Give fewer."
            )
        if self.slopes == ():
            found.append(
                "alibi: slopes=() gives no head a slope. Leave it out for the usual ones, or use position='none'."
            )
        if self.slopes and self.heads and self.heads != len(self.slopes):
            found.append(f"alibi: heads={self.heads} and {len(self.slopes)} slopes were given. Give one of them.")
        if self.slopes and min(self.slopes) <= 0:
            found.append(
                f"alibi: slopes must be positive, or far keys gain instead of fading; the smallest is {min(self.slopes)}."
            )
        if self.learned and self.rounding is not None:
            found.append(
                f"alibi: learned slopes and rounding={self.rounding!r}: rounded slopes stand still under small updates. "
                "Leave one of them out."
            )
        if self.variant == "causal" and not dims.causal:
            found.append(
                "alibi: variant='causal' in an encoder, which sees both sides. Use 'symmetric' or 'asymmetric'."
            )
        if self.variant == "asymmetric" and dims.causal:
            found.append("alibi: variant='asymmetric' in a decoder, which never sees the right side. Use 'causal'.")
        return found

    def warnings(self, dims: Dims) -> list[str]:
        found = []
        if not dims.causal and self.variant != "asymmetric":
            found.append(
                "alibi: symmetric slopes treat both sides alike, so without another scheme a text and its mirror image "
                "look the same. Use variant='asymmetric' if the direction matters."
            )
        if not dims.max_seq_len or dims.max_seq_len <= 1024 or self._count(dims) < dims.heads:
            return found
        flattest = min(self._all_slopes(dims)) * self.scale
        found.append(
            f"alibi: at a distance of about 1k tokens even the flattest head ({flattest:g} a token) takes "
            f"{flattest * 1024:.1f} logits off, so max_seq_len={dims.max_seq_len} will be read mostly nearby. "
            f"Leave some heads free (heads={max(1, dims.heads // 2)}) if far tokens matter."
        )
        return found
