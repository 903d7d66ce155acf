"""One block: self-attention, cross-attention and feedforward in residual branches, with norms wherever a model places them.

B batch, T tokens, M model dim.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from x_positional.attention.plan import CrossPlan, LayerPlan
from x_positional.errors import InputError
from x_positional.modules.attention import Attention, CrossAttention
from x_positional.modules.experts import MixtureOfExperts
from x_positional.modules.feedforward import FeedForward
from x_positional.modules.latent_attention import LatentAttention
from x_positional.modules.norms import Norm
from x_positional.schemes.base import PositionScheme

NormPlace = Literal["pre", "post", "after", "sandwich", "entry", "parallel", "parallel_two"]
"""Where norms are placed.

pre: before the branch. post: after the sum. after: after the branch, before the sum (OLMo 2). sandwich: before and after the
branch (Gemma 2). entry: on the residual stream itself, so the branch and the skip both see the normed input (a BLOOM option).
parallel: attention and feedforward side by side on one normed input (GPT-J, PaLM). parallel_two: side by side, each with a norm
of its own (GPT-NeoX).
"""


class Residual(nn.Module):
    """x = entry(x); x = outer(x + scale * gain * after(branch(before(x)))); a norm or gain that is None is left out."""

    def __init__(
        self,
        before: Norm | None = None,
        after: Norm | None = None,
        outer: Norm | None = None,
        entry: Norm | None = None,
        *,
        scale: float = 1.0,
        gain: nn.Parameter | None = None,
    ):
        super().__init__()
        self.before, self.after, self.outer, self.scale = before, after, outer, scale
        self.entry, self.gain = entry, gain

    def branch_output(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """What is added to x."""
        before = self.before  # torch looks a module up in Python, so once
        out = branch(x if before is None else before(x))
        out = out if self.after is None else self.after(out)
        out = out if self.gain is None else out * self.gain
        return out if self.scale == 1.0 else out * self.scale

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        x = x if self.entry is None else self.entry(x)
        x = x + self.branch_output(x, branch)
        return x if self.outer is None else self.outer(x)


class Block(nn.Module):
    """Self-attention, cross-attention and feedforward, each optional.

    Args:
        attn: self-attention.
        cross: cross-attention.
        ff: feedforward.
        norm: makes one norm of the model's width.
        norm_place: where norms are placed.
        residual_scale: every branch is multiplied by it.
        layer_scale: where a learned gain per channel [M] of each branch starts; None for no gain.
        dim: M, for those gains.
        first_norm: False leaves out the norm before attention.
    """

    def __init__(
        self,
        attn: Attention | LatentAttention | None,
        cross: CrossAttention | None,
        ff: FeedForward | MixtureOfExperts | None,
        *,
        norm: Callable[[], Norm],
        norm_place: NormPlace = "pre",
        residual_scale: float = 1.0,
        layer_scale: float | None = None,
        dim: int = 0,
        first_norm: bool = True,
    ):
        super().__init__()
        self.attn, self.cross, self.ff = attn, cross, ff
        self.side_by_side = norm_place in ("parallel", "parallel_two")

        def residual(normed: bool = True) -> Residual:
            gain = None if layer_scale is None else nn.Parameter(torch.full((dim,), layer_scale))
            return Residual(
                before=norm() if normed and norm_place not in ("post", "after", "entry") else None,
                after=norm() if norm_place in ("sandwich", "after") else None,
                outer=norm() if norm_place == "post" else None,
                entry=norm() if norm_place == "entry" else None,
                scale=residual_scale,
                gain=gain,
            )

        self.attn_residual = None if attn is None else residual(first_norm)
        self.cross_residual = None if cross is None else residual()
        self.ff_residual = None if ff is None or norm_place == "parallel" else residual()

    def forward(
        self, x: Tensor, scheme: PositionScheme, plan: LayerPlan, cross_plan: CrossPlan | None = None
    ) -> Tensor:
        """[B T M] -> [B T M]."""
        attn, cross, ff, residual = self.attn, self.cross, self.ff, self.attn_residual
        if attn is not None and residual is not None:
            x = self._attend(x, lambda n: attn(n, scheme, plan), residual, ff)
        if cross is not None and self.cross_residual is not None:
            if cross_plan is None:
                raise InputError("this block has cross-attention: pass context=[batch, tokens, dim].")
            x = self.cross_residual(x, lambda n: cross(n, scheme, cross_plan))
        residual = None if self.side_by_side else self.ff_residual
        return x if ff is None or residual is None else residual(x, ff)

    def _attend(
        self,
        x: Tensor,
        attend: Callable[[Tensor], Tensor],
        residual: Residual,
        ff: FeedForward | MixtureOfExperts | None,
    ) -> Tensor:
        """Attention, together with the feedforward where the two are side by side."""
        if ff is None or not self.side_by_side:
            return residual(x, attend)
        if self.ff_residual is None:
            return residual(x, lambda n: attend(n) + ff(n))
        return x + residual.branch_output(x, attend) + self.ff_residual.branch_output(x, ff)
