"""Attention with linear biases: a penalty per head that grows linearly with distance.

B batch, T query tokens, S key tokens, H heads; slopes in logits per position, biases in logits (after scaling).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.base import AttentionContext, Bias, Dims, PositionScheme, Span
from x_positional.schemes.distance import DistanceScheme
from x_positional.schemes.initial import logarithms
from x_positional.schemes.precision import widened
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.terms import ScoreBlock, ScoreTerm
from x_positional.schemes.values import MAX_HEADS

Variant = Literal["causal", "symmetric", "asymmetric"]
Rounding = Literal["bfloat16"]
DTYPES: dict[Rounding, torch.dtype] = {"bfloat16": torch.bfloat16}


def alibi_slopes(heads: int) -> list[float]:
    """2^(-8 h / H), h = 1..H, for a power of two; otherwise those of the power below, then every other one of the power
    above (Press et al. 2021, arXiv:2108.12409, section 3 and the authors' code). The first head is the steepest."""
    return list(_slopes(heads))


@cache
def _slopes(heads: int) -> tuple[float, ...]:
    below = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * h / below) for h in range(1, below + 1)]
    return tuple(slopes + [2 ** (-8 * h / (2 * below)) for h in range(1, 2 * below + 1, 2)][: heads - below])


@dataclass(frozen=True)
class SlopeBias(Bias):
    """The bias at any positions."""

    left: Tensor
    """[H], the slope of each head."""
    right: Tensor | None
    """[H], for keys to the right of the query; None where it is the same."""

    def term(self, ctx: AttentionContext, blocks: Sequence[tuple[Span, Span]]) -> ScoreTerm | None:
        if ctx.q_positions.requires_grad or ctx.kv_positions.requires_grad:
            return super().term(ctx, blocks)
        return SlopeTerm(self.left, self.right, ctx)


class SlopeTerm(ScoreTerm):
    """The same for blocks of scores: the distances of a block are computed from its positions, which have no gradient.

    Args:
        left, right: as in SlopeBias.
        ctx: where queries and keys are.
    """

    def __init__(self, left: Tensor, right: Tensor | None, ctx: AttentionContext):
        self.inputs, self.ctx = (left,) if right is None else (left, right), ctx

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.inputs[0], self.inputs[1] if len(self.inputs) > 1 else None, self.ctx

    def _distances(self, block: ScoreBlock, of_side: int, dtype: torch.dtype) -> Tensor:
        """[R W], the size of each distance, and 0 where the slope is another input's."""
        q, k = self.ctx.q_positions, self.ctx.kv_positions
        distance = q[block.row % len(q), block.queries.cut, None] - k[block.row % len(k), block.keys.cut]
        if len(self.inputs) > 1:
            distance = distance.clamp(min=0) if of_side == 0 else distance.clamp(max=0)
        return distance.abs().to(dtype)

    def add(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> None:
        for side, slopes in enumerate(inputs):
            own = slopes[block.heads.cut, None, None]
            scores -= (own * self._distances(block, side, own.dtype)).to(scores.dtype)

    def differentiate(self, grad: Tensor, kept: None, sums: Sequence[Tensor | None], block: ScoreBlock) -> None:
        for side, total in enumerate(sums):
            if total is not None:
                distances = self._distances(block, side, total.dtype).flatten()
                total[block.heads.cut] -= grad.flatten(1).to(total.dtype) @ distances

    def recorded(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        for side, slopes in enumerate(inputs):
            own = slopes[block.heads.cut, None, None]
            scores = scores - (own * self._distances(block, side, own.dtype)).to(scores.dtype)
        return scores


class AlibiBias(DistanceScheme):
    """bias = -slope_h * |distance|. Heads after the first `len(slopes)` have no bias.

    Args:
        heads: H.
        slopes: positive, one per head that has a bias.
        right: slopes for keys to the right of the query ("asymmetric"); None uses the same ones.
        learned: train the slopes, as the exp of a parameter, so they stay positive.
        scale: multiplies the slopes.
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
        self.log_left = nn.Parameter(logarithms(slopes)) if learned else None
        self.log_right = nn.Parameter(logarithms(right)) if learned and right is not None else None

    def _slopes(self, fixed: list[float], log: Tensor | None, device: torch.device) -> Tensor:
        """[H]."""
        if log is None:
            slopes = torch.tensor([s * self.scale for s in fixed], device=device, dtype=torch.float32)
        else:
            slopes = widened(log).exp() * self.scale
        unbiased = slopes.new_zeros(self.heads - len(fixed))
        return torch.cat([slopes, unbiased])

    def of_distance(self, distance: Tensor) -> Tensor:
        each = (-1, *[1] * distance.ndim)
        left = self._slopes(self.left, self.log_left, distance.device).view(each)
        far = distance.abs().to(left.dtype)
        if self.right is None:
            return -left * far
        right = self._slopes(self.right, self.log_right, distance.device).view(each)
        return -torch.where(distance >= 0, left, right) * far

    def _of_pairs(self, ctx: AttentionContext) -> Bias:
        if type(self).of_distance is not AlibiBias.of_distance:
            return super()._of_pairs(ctx)
        q, k = self._columns(ctx)
        left = self._slopes(self.left, self.log_left, ctx.device)
        right = None if self.right is None else self._slopes(self.right, self.log_right, ctx.device)

        def fn(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            distance = q[b, i] - k[b, j]
            slope = left[h] if right is None else torch.where(distance >= 0, left[h], right[h])
            return -slope * distance.abs().to(left.dtype)

        return SlopeBias(fn, ctx.mask_batch, self.heads, left, right)


class RoundedAlibiBias(PositionScheme):
    """bias = -scale * |r(m p_query) - r(m p_key)|, m the slope of the head: Press et al. 2021, arXiv:2108.12409, section 3,
    where r rounds the slope, the position and their product, as Falcon did in training (Almazrouei et al. 2023,
    arXiv:2311.16867). Heads after the first `len(slopes)` have no bias.

    The bias is not a function of distance: it depends on each token's own position, so caches, padding and packing change
    nothing, but shifting a sequence changes the rounding.

    Args:
        heads: H.
        slopes: positive, one per head that has a bias.
        right: slopes for keys to the right of the query; None uses the same ones.
        rounding: the dtype that r rounds to.
        scale: multiplies the bias, after rounding.
    """

    absolute = True

    def __init__(
        self, heads: int, slopes: list[float], right: list[float] | None, rounding: Rounding, scale: float = 1.0
    ):
        super().__init__()
        self.heads, self.left, self.right, self.scale = heads, slopes, right, scale
        self.rounded = DTYPES[rounding]

    def _products(self, slopes: list[float], positions: Tensor, batch: int) -> Tensor:
        """[B|1 T] -> [B H T] float32, each rounded."""
        unbiased = [0.0] * (self.heads - len(slopes))
        steep = torch.tensor(slopes + unbiased, device=positions.device).to(self.rounded)[:, None]
        return (steep * positions.to(self.rounded)[:, None]).float().expand(batch, -1, -1)

    def bias(self, ctx: AttentionContext) -> Bias:
        q, k = ctx.q_positions.expand(ctx.batch, -1), ctx.kv_positions.expand(ctx.batch, -1)
        q_left, k_left = (self._products(self.left, p, ctx.batch) for p in (ctx.q_positions, ctx.kv_positions))
        if self.right is None:
            return Bias(
                lambda b, h, i, j: -(q_left[b, h, i] - k_left[b, h, j]).abs() * self.scale, ctx.mask_batch, self.heads
            )
        q_right, k_right = (self._products(self.right, p, ctx.batch) for p in (ctx.q_positions, ctx.kv_positions))

        def fn(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            left, right = q_left[b, h, i] - k_left[b, h, j], q_right[b, h, i] - k_right[b, h, j]
            return -torch.where(q[b, i] >= k[b, j], left, right).abs() * self.scale

        return Bias(fn, ctx.mask_batch, self.heads)


class Alibi(SchemeConfig):
    """`position="alibi"`."""

    kind: Literal["alibi"] = "alibi"
    heads: int | None = Field(default=None, gt=0, le=MAX_HEADS)
    """Only the first `heads` heads have a bias; None is all."""
    slopes: tuple[float, ...] | None = Field(default=None, max_length=MAX_HEADS)
    """One slope per head that has a bias, in place of the paper's."""
    learned: bool = False
    """Train the slopes."""
    variant: Variant | None = None
    """"causal", "symmetric", or "asymmetric", which halves the slopes to the right (and trains them separately if
    learned). None is causal in a decoder and symmetric in an encoder."""
    scale: float = Field(default=1.0, gt=0)
    """Multiplies the bias."""
    rounding: Rounding | None = None
    """Round the products of slope and position to this dtype before scaling, as in Falcon, whose scale is
    head_dim^-0.5."""
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
        if self.rounding is None and not self.learned:  # the scale can be folded into the slopes
            slopes, scale = [s * scale for s in slopes], 1.0
        variant = self.variant or ("causal" if dims.causal else "symmetric")
        return self.model_copy(update={"heads": None, "slopes": tuple(slopes), "variant": variant, "scale": scale})

    def problems(self, dims: Dims) -> list[str]:
        found = []
        if self._count(dims) > dims.heads:
            given = "heads" if self.heads else "len(slopes)"
            found.append(f"alibi: {given}={self._count(dims)} exceeds the model's heads={dims.heads}.")
        if self.slopes == ():
            found.append(
                "alibi: slopes=() gives no head a bias. Remove it for the default slopes, or use position='none'."
            )
        if self.slopes and self.heads and self.heads != len(self.slopes):
            found.append(f"alibi: heads={self.heads} contradicts len(slopes)={len(self.slopes)}. Set one of them.")
        if self.slopes and min(self.slopes) <= 0:
            found.append(
                f"alibi: slopes must be positive, so that the bias falls with distance; the smallest is {min(self.slopes)}."
            )
        if self.learned and self.rounding is not None:
            found.append(
                f"alibi: learned=True cannot be combined with rounding={self.rounding!r}: small updates of a slope are rounded "
                "away. Remove one of them."
            )
        if self.variant == "causal" and not dims.causal:
            found.append(
                "alibi: variant='causal' in an encoder, whose attention is bidirectional. Use 'symmetric' or 'asymmetric'."
            )
        if self.variant == "asymmetric" and dims.causal:
            found.append("alibi: variant='asymmetric' in a decoder, which never attends to the right. Use 'causal'.")
        return found

    def warnings(self, dims: Dims) -> list[str]:
        found = []
        if not dims.causal and self.variant != "asymmetric":
            found.append(
                "alibi: symmetric slopes treat left and right alike, so without another scheme a sequence and its reverse "
                "cannot be told apart. Use variant='asymmetric' if the direction matters."
            )
        if not dims.max_seq_len or dims.max_seq_len <= 1024 or self._count(dims) < dims.heads:
            return found
        flattest = min(self._all_slopes(dims)) * self.scale
        found.append(
            f"alibi: at a distance of 1024 tokens even the flattest slope ({flattest:g} per token) subtracts "
            f"{flattest * 1024:.1f} logits, so with max_seq_len={dims.max_seq_len} attention is mostly local. "
            f"Leave some heads without a bias (heads={max(1, dims.heads // 2)}) if far tokens matter."
        )
        return found
