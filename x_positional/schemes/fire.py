"""FIRE: a small MLP maps distance, as a fraction of the query's position, to a bias per head.

B batch, T query tokens, S key tokens, H heads, E hidden width; biases in logits, after scaling.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.base import AttentionContext, Bias, Dims, PositionScheme, Span
from x_positional.schemes.precision import widened
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.values import MAX_LENGTH, MAX_WIDTH

SMALLEST = 1e-6
"""Of the normaliser, so that a threshold or scale trained to 0 gives no NaN."""


@dataclass(frozen=True)
class FireFunction(Bias):
    """The bias of pairs: `fraction` is pointwise, and the MLP is applied to all heads at once."""

    fraction: Callable[[Tensor, Tensor, Tensor], Tensor]
    """(b, q_idx, kv_idx) -> the input of the MLP."""
    layers: tuple[Tensor, Tensor, Tensor, Tensor]
    """Weights and biases: [E], [E], [H E], [H]."""

    def dense(self, ctx: AttentionContext, rows: Span, keys: Span) -> Tensor:
        if torch.compiler.is_compiling():
            return super().dense(ctx, rows, keys)  # the compiler fuses it
        b = torch.arange(self.batch, device=ctx.device)[:, None, None]
        i = torch.arange(rows.start, rows.stop, device=ctx.device)[:, None]
        x = self.fraction(b, i, torch.arange(keys.start, keys.stop, device=ctx.device))
        w1, b1, w2, b2 = self.layers
        hidden = torch.relu(x[..., None] * w1 + b1)
        bias = (hidden @ w2.t() + b2).movedim(-1, 1)
        visible = ctx.visible_rows(rows, keys)
        return bias if visible is None else bias.masked_fill(~visible, float("-inf"))


class Affine(nn.Module):
    """A matrix [O I] and a bias [O], which FIRE's function of pairs reads. `nn.Linear` may be wrapped, as LoRA or int8 weights do,
    and then is more than its matrix; this map is too small to gain from either.

    Initial values are those of `nn.Linear`.
    """

    def __init__(self, width_in: int, width_out: int):
        super().__init__()
        bound = width_in**-0.5
        self.weight = nn.Parameter(torch.empty(width_out, width_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(width_out).uniform_(-bound, bound))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Both in float32 or wider."""
        return widened(self.weight), widened(self.bias)


class FireBias(PositionScheme):
    """bias = MLP(psi(i - j) / psi(max(i, L)))_h, psi(x) = log(|c| x + 1), i and j the positions of query and key (FIRE: Li et al.
    2023, arXiv:2310.04418). c and L are learned; the MLP has one hidden layer with ReLU.

    Up to position L the bias is a function of distance; beyond, distances are seen as fractions of the query's position.

    Args:
        heads: H.
        width: E.
        scale: c before training.
        threshold: L before training.
    """

    absolute = True
    causal_only = True

    def __init__(self, heads: int, width: int = 32, scale: float = 0.1, threshold: float = 512.0):
        super().__init__()
        self.heads, self.initial_threshold = heads, threshold
        self.scale = nn.Parameter(torch.full((1,), scale))  # a dimension, as fully_shard refuses scalars
        self.threshold = nn.Parameter(torch.ones(1))  # of its initial value: so that both train at the same rate
        self.to_hidden, self.to_bias = Affine(1, width), Affine(width, heads)

    def bias(self, ctx: AttentionContext) -> Bias:
        (column, b1), (w2, b2) = self.to_hidden(), self.to_bias()
        w1, scale, dtype = column[:, 0], widened(self.scale[0]).abs(), column.dtype
        q, k = ctx.q_positions.expand(ctx.batch, -1), ctx.kv_positions.expand(ctx.batch, -1)
        threshold = (widened(self.threshold[0]) * self.initial_threshold).abs()
        longest = torch.log1p(scale * torch.maximum(q.to(dtype), threshold)).clamp(min=SMALLEST)

        def fraction(b: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return torch.log1p(scale * (q[b, i] - k[b, j]).clamp(min=0).to(dtype)) / longest[b, i]

        units = list(zip(w1.unbind(), b1.unbind(), w2.unbind(1), strict=True))

        def fn(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            x, total = fraction(b, i, j), b2[h]
            for weight, shift, out in units:
                total = total + out[h] * torch.relu(x * weight + shift)
            return total

        return FireFunction(fn, ctx.mask_batch, self.heads, fraction, (w1, b1, w2, b2))


class Fire(SchemeConfig):
    """`position="fire"`."""

    kind: Literal["fire"] = "fire"
    width: int = Field(default=32, gt=0, le=MAX_WIDTH)
    """The hidden width of the MLP."""
    scale: float = Field(default=0.1, gt=0)
    """c, the factor of distances in the logarithm, before training."""
    threshold: float = Field(default=512.0, gt=0, le=MAX_LENGTH)
    """L, the position from which on distances are fractions of the query's position, before training."""
    summary: ClassVar[str] = "an MLP of distance as a fraction of the query's position"
    paper: ClassVar[str] = "Li et al. 2023, arXiv:2310.04418"

    def build(self, dims: Dims) -> FireBias:
        return FireBias(dims.heads, self.width, self.scale, self.threshold)
