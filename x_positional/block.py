"""One block: self-attention, cross-attention and feedforward around a residual stream, norms wherever a model wants them.

B batch, T tokens, M model dim.
"""

from collections.abc import Callable
from typing import Literal

from torch import Tensor, nn

from x_positional.attention import Attention, CrossAttention, CrossPlan, LayerPlan
from x_positional.feedforward import FeedForward
from x_positional.norms import Norm
from x_positional.scheme import PositionScheme

NormPlace = Literal["pre", "post", "sandwich", "parallel"]


class Residual(nn.Module):
    """x + after(branch(before(x))), then `outer`; a norm that is None is left out."""

    def __init__(self, before: Norm | None = None, after: Norm | None = None, outer: Norm | None = None):
        super().__init__()
        self.before, self.after, self.outer = before, after, outer

    def forward(self, x: Tensor, branch: Callable[[Tensor], Tensor]) -> Tensor:
        out = branch(x if self.before is None else self.before(x))
        x = x + (out if self.after is None else self.after(out))
        return x if self.outer is None else self.outer(x)


def residual(place: NormPlace, norm: Callable[[], Norm]) -> Residual:
    """Where norms sit: pre (before the branch), post (after the sum), sandwich (before and after the branch)."""
    if place == "post":
        return Residual(outer=norm())
    return Residual(before=norm(), after=norm() if place == "sandwich" else None)


class Block(nn.Module):
    """Self-attention, cross-attention, feedforward, each optional, each in its own residual; or attention and feedforward
    side by side on one normed input (`parallel`, as in GPT-J and PaLM)."""

    def __init__(
        self, attn: Attention | None, cross: CrossAttention | None, ff: FeedForward | None, place: NormPlace,
        norm: Callable[[], Norm],
    ):  # fmt: skip
        super().__init__()
        self.attn, self.cross, self.ff = attn, cross, ff
        self.parallel = place == "parallel"
        self.attn_residual = None if attn is None else residual(place, norm)
        self.cross_residual = None if cross is None else residual(place, norm)
        self.ff_residual = None if ff is None or self.parallel else residual(place, norm)

    def forward(
        self, x: Tensor, scheme: PositionScheme, plan: LayerPlan, cross_plan: CrossPlan | None = None
    ) -> Tensor:
        """[B T M] -> [B T M]."""
        attn, cross, ff = self.attn, self.cross, self.ff
        if attn is not None and self.attn_residual is not None:
            if self.parallel and ff is not None:
                x = self.attn_residual(x, lambda n: attn(n, scheme, plan) + ff(n))
            else:
                x = self.attn_residual(x, lambda n: attn(n, scheme, plan))
        if cross is not None and self.cross_residual is not None:
            if cross_plan is None:
                raise ValueError("this block attends to a context: pass context=[batch, tokens, dim]")
            x = self.cross_residual(x, lambda n: cross(n, scheme, cross_plan))
        if ff is not None and self.ff_residual is not None:
            x = self.ff_residual(x, ff)
        return x
