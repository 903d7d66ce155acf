"""One block: self-attention, cross-attention and feedforward around a residual stream, norms wherever a model wants them.

B batch, T tokens, M model dim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from x_positional.modules.attention import Attention, CrossAttention, CrossPlan, LayerPlan
from x_positional.modules.experts import MixtureOfExperts
from x_positional.modules.feedforward import FeedForward
from x_positional.modules.latent_attention import LatentAttention
from x_positional.modules.norms import Norm
from x_positional.schemes.base import PositionScheme

NormPlace = Literal["pre", "post", "after", "sandwich", "entry", "parallel", "parallel_two"]


class Residual(nn.Module):
    """x = entry(x), x + scale * gain * after(branch(before(x))), then `outer`; a norm or gain that is None is left out."""

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

    def branched(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        """What is added to x."""
        out = branch(x if self.before is None else self.before(x))
        out = out if self.after is None else self.after(out)
        out = out if self.gain is None else out * self.gain
        return out if self.scale == 1.0 else out * self.scale

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        x = x if self.entry is None else self.entry(x)
        x = x + self.branched(x, branch)
        return x if self.outer is None else self.outer(x)


@dataclass(frozen=True, kw_only=True)
class Around:
    """What stands around the branches of a block. norm: makes one. place: pre (before the branch), post (after the sum),
    after (after the branch: OLMo 2), sandwich (before and after the branch), entry (of the stream itself, which carries the
    normed input on: a BLOOM option), parallel (attention and feedforward side by side on one normed input: GPT-J, PaLM),
    parallel_two (side by side, each on its own norm: GPT-NeoX).
    layer_scale: where the learned gains of a branch start, None for none. attn_normed: False leaves out the norm before
    attention."""

    norm: Callable[[], Norm]
    place: NormPlace = "pre"
    scale: float = 1.0
    layer_scale: float | None = None
    dim: int = 0
    attn_normed: bool = True

    def residual(self, normed: bool = True) -> Residual:
        """The residual of one branch. normed: False for none before it."""
        norm, place = self.norm, self.place
        gain = None if self.layer_scale is None else nn.Parameter(torch.full((self.dim,), self.layer_scale))
        return Residual(
            before=norm() if normed and place not in ("post", "after", "entry") else None,
            after=norm() if place in ("sandwich", "after") else None,
            outer=norm() if place == "post" else None,
            entry=norm() if place == "entry" else None,
            scale=self.scale,
            gain=gain,
        )


class Block(nn.Module):
    """Self-attention, cross-attention, feedforward, each optional, each in its own residual; or attention and feedforward
    side by side (`parallel`, `parallel_two`)."""

    def __init__(
        self,
        attn: Attention | LatentAttention | None,
        cross: CrossAttention | None,
        ff: FeedForward | MixtureOfExperts | None,
        around: Around,
    ):
        super().__init__()
        self.attn, self.cross, self.ff = attn, cross, ff
        self.side_by_side = around.place in ("parallel", "parallel_two")
        self.attn_residual = None if attn is None else around.residual(around.attn_normed)
        self.cross_residual = None if cross is None else around.residual()
        self.ff_residual = None if ff is None or around.place == "parallel" else around.residual()

    def forward(
        self, x: Tensor, scheme: PositionScheme, plan: LayerPlan, cross_plan: CrossPlan | None = None
    ) -> Tensor:
        """[B T M] -> [B T M]."""
        attn, cross, ff = self.attn, self.cross, self.ff
        if attn is not None and self.attn_residual is not None:
            x = self._attended(x, lambda n: attn(n, scheme, plan), self.attn_residual)
        if cross is not None and self.cross_residual is not None:
            if cross_plan is None:
                raise ValueError("this block attends to a context: pass context=[batch, tokens, dim]")
            x = self.cross_residual(x, lambda n: cross(n, scheme, cross_plan))
        if ff is not None and self.ff_residual is not None and not self.side_by_side:
            x = self.ff_residual(x, ff)
        return x

    def _attended(self, x: Tensor, attend: Callable[[Tensor], Tensor], residual: Residual) -> Tensor:
        """After attention, and after the feedforward too where it stands beside it."""
        ff = self.ff
        if ff is None or not self.side_by_side:
            return residual(x, attend)
        if self.ff_residual is None:
            return residual(x, lambda n: attend(n) + ff(n))
        return x + residual.branched(x, attend) + self.ff_residual.branched(x, ff)
