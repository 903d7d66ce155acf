"""Mixture of experts: a router sends each token through a few of many feedforwards.

N tokens, M model dim, E experts, K experts of a token, P = N * K (token, expert) pairs, F inner width.
"""

import math
from collections.abc import Callable
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from x_positional.attention.integers import quantize_rows
from x_positional.modules.dropout import Dropout
from x_positional.modules.feedforward import FeedForward, GatedActivation
from x_positional.modules.quantized import IntegerWeights, frozen, int8_linear
from x_positional.schemes.precision import wide_dtype

ScoreKind = Literal["softmax", "sigmoid"]
WeighKind = Literal["output", "input"]
TINY = 1e-20
"""Added to a divisor, so that scores that are all zero give zero."""


class RoutedExperts(NamedTuple):
    """The experts of each token."""

    experts: Tensor
    """[N K] their numbers."""
    weights: Tensor
    """[N K] float32 or wider."""


class Router(nn.Module):
    """Scores every expert for every token, in float32 or wider, and selects the best.

    Args:
        dim: M.
        experts: E.
        top_k: K, experts of a token.
        score: what turns logits into scores.
        renorm: the weights of a token's experts are divided by their sum.
        scale: weights are multiplied by it.
        groups: experts are divided into as many groups (DeepSeek-V3).
        top_groups: experts come from as many groups, those with the largest sum of their best scores.
        group_best: how many scores of a group that sum includes.
        bias: of the logits.
        correction: a parameter [E] that is added to the scores for the selection alone (DeepSeek-V3, Wang et al. 2024,
            arXiv:2408.15664). It has no gradient: the training loop moves it, up for experts that get too few tokens. It stays in
            float32 or wider, because scores are close together.
    """

    def __init__(
        self,
        dim: int,
        experts: int,
        *,
        top_k: int,
        score: ScoreKind = "softmax",
        renorm: bool = True,
        scale: float = 1.0,
        groups: int = 1,
        top_groups: int = 1,
        group_best: int = 2,
        bias: bool = False,
        correction: bool = False,
    ):
        super().__init__()
        self.top_k, self.score, self.renorm, self.scale = top_k, score, renorm, scale
        self.groups, self.top_groups, self.group_best = groups, top_groups, group_best
        self.weight = nn.Parameter(torch.empty(experts, dim))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.bias = nn.Parameter(torch.zeros(experts)) if bias else None
        self.correction = nn.Parameter(torch.zeros(experts), requires_grad=False) if correction else None

    def forward(self, x: Tensor) -> RoutedExperts:
        """[N M] -> K experts for each token."""
        wide = wide_dtype(x.dtype)
        logits = F.linear(x.to(wide), self.weight.to(wide), None if self.bias is None else self.bias.to(wide))
        scores = logits.softmax(-1) if self.score == "softmax" else logits.sigmoid()
        merit = logits  # ordered like the scores, and distinct where those saturate
        if self.correction is not None:
            merit = scores + self.correction
        elif self.groups > 1:
            merit = scores
        if self.groups > 1:
            merit = self._in_groups(merit)
        experts = merit.topk(self.top_k, dim=-1).indices
        weights = scores.gather(-1, experts)
        if self.renorm:
            weights = weights / (weights.sum(-1, keepdim=True) + TINY)
        return RoutedExperts(experts, weights if self.scale == 1.0 else weights * self.scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`.to(...)`, `.half()` and the like, which leave `correction` wide."""
        held = self.correction

        def wide(x: Tensor) -> Tensor:
            new = fn(x)
            narrow = new.dtype not in (torch.float32, torch.float64)
            return x.to(new.device) if narrow and x is held else new

        return super()._apply(wide, recurse)

    def _in_groups(self, merit: Tensor) -> Tensor:
        """[N E] -> [N E]: -inf outside the best groups, ranked by the sum of their best scores."""
        grouped = torch.unflatten(merit, -1, (self.groups, -1))
        best = grouped.topk(self.group_best, dim=-1).values.sum(-1).topk(self.top_groups, dim=-1).indices
        kept = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, True)
        return grouped.masked_fill(~kept[..., None], float("-inf")).flatten(-2)


class Experts(nn.Module):
    """E feedforwards as stacked weights: up [E F M] (2F rows with glu), down [E M F], and their biases. The output of a token
    does not depend on the rest of the batch: no token is dropped and no expert has a capacity.

    Args:
        experts: E.
        dim: M.
        width: F, channels after the activation.
        activation: between the two projections.
        bias: of both projections.
        up_bias: bias of the first projection; None follows `bias`.
        dropout: before the second projection.
    """

    def __init__(
        self,
        experts: int,
        dim: int,
        width: int,
        activation: GatedActivation,
        *,
        bias: bool = False,
        up_bias: bool | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.activation, self.dropout, rows = activation, Dropout(dropout), activation.up_width(width)
        self.up = nn.Parameter(torch.empty(experts, rows, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.down = nn.Parameter(torch.empty(experts, dim, width).uniform_(-(width**-0.5), width**-0.5))
        self.up_bias = nn.Parameter(torch.zeros(experts, rows)) if (bias if up_bias is None else up_bias) else None
        self.down_bias = nn.Parameter(torch.zeros(experts, dim)) if bias else None
        self.up_scale = self.down_scale = None  # of int8 weights

    def forward(self, x: Tensor, experts: Tensor) -> Tensor:
        """[P M] rows and their experts [P] -> [P M].

        Rows are sorted by expert, and each expert that has any reads its weights once. The host needs the counts, which forces a
        device sync and breaks the graph of torch.compile. When compiling, at most E rows gather their experts' weights instead: a
        single graph, and at most one copy of all weights.
        """
        few = torch.compiler.is_compiling() and len(x) <= len(self.up)
        return self._gathered(x, experts) if few else self._sorted(x, experts)

    def _gathered(self, x: Tensor, experts: Tensor) -> Tensor:
        x = _of_each(x, experts, self.up, self.up_scale)
        x = self.dropout(self.activation(x if self.up_bias is None else x + self.up_bias[experts]))
        x = _of_each(x, experts, self.down, self.down_scale)
        return x if self.down_bias is None else x + self.down_bias[experts]

    def _sorted(self, x: Tensor, experts: Tensor) -> Tensor:
        order = experts.argsort(stable=True)
        pieces = x[order].split(experts.bincount(minlength=len(self.up)).tolist())
        # unbind once: its gradient is one stack, and not one per expert
        parts = zip(
            pieces,
            self.up.unbind(),
            self.down.unbind(),
            *map(self._each, (self.up_bias, self.down_bias, self.up_scale, self.down_scale)),
            strict=True,
        )
        out = [
            _linear(self.dropout(self.activation(_linear(rows, up, up_bias, up_scale))), down, down_bias, down_scale)
            for rows, up, down, up_bias, down_bias, up_scale, down_scale in parts
            if len(rows)
        ]
        return torch.cat([x[:0], *out])[order.argsort()]

    def _each(self, stacked: Tensor | None) -> tuple[Tensor, ...] | list[None]:
        return [None] * len(self.up) if stacked is None else stacked.unbind()


def _linear(x: Tensor, weight: Tensor, bias: Tensor | None, scale: Tensor | None) -> Tensor:
    """`F.linear`; `scale`: of the rows of an int8 weight."""
    return F.linear(x, weight, bias) if scale is None else int8_linear(x, weight, scale, bias)


def _of_each(x: Tensor, experts: Tensor, stacked: Tensor, scale: Tensor | None) -> Tensor:
    """Rows [P K] times the matrices [P N K] of their experts -> [P N]."""
    out = (stacked[experts].to(x.dtype) @ x[..., None]).squeeze(-1)
    return out if scale is None else out * scale[experts].to(x.dtype)


class Int8Experts(IntegerWeights, Experts):
    """`Experts` with int8 weights and scales up_scale [E F], down_scale [E M] of their rows: see `modules/quantized.py`.

    Args:
        layer: what it replaces. It shares the biases.
    """

    integers = ("up", "down")

    def __init__(self, layer: Experts):
        nn.Module.__init__(self)
        self.activation, self.dropout = layer.activation, layer.dropout
        (up, up_scale), (down, down_scale) = quantize_rows(layer.up), quantize_rows(layer.down)
        self.up, self.down, self.up_scale, self.down_scale = map(frozen, (up, down, up_scale, down_scale))
        self.up_bias, self.down_bias = layer.up_bias, layer.down_bias
        self.train(layer.training)


class MixtureOfExperts(nn.Module):
    """The weighted sum of a token's experts, plus a shared feedforward. [... M] -> [... M].

    There is no load-balancing loss; to train from scratch, add one, or move `router.correction`.

    Args:
        router: selects the experts.
        experts: all of them.
        weigh: the weight multiplies an expert's "output" or its "input".
        shared: a feedforward that every token goes through.
        shared_gate: its output is multiplied by the sigmoid of this projection of the token.
    """

    def __init__(
        self,
        router: Router,
        experts: Experts,
        *,
        weigh: WeighKind = "output",
        shared: FeedForward | None = None,
        shared_gate: nn.Linear | None = None,
    ):
        super().__init__()
        self.router, self.experts, self.weigh = router, experts, weigh
        self.total, self.used = len(experts.up), router.top_k
        self.shared, self.shared_gate = shared, shared_gate

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = self._routed(flat)
        if self.shared is not None:
            shared = self.shared(flat)
            out = out + (shared if self.shared_gate is None else shared * self.shared_gate(flat).sigmoid())
        return out.reshape(x.shape)

    def idle(self) -> int:
        """Parameters in the experts that a token does not use."""
        scales = sum(s.numel() for s in self.experts.scales()) if isinstance(self.experts, IntegerWeights) else 0
        held = sum(p.numel() for p in self.experts.parameters()) - scales
        return held // self.total * (self.total - self.used)

    def _routed(self, x: Tensor) -> Tensor:
        """[N M] -> [N M]."""
        experts, weights = self.router(x)
        weights, (N, K) = weights.to(x.dtype), experts.shape
        rows = x.unsqueeze(1).expand(-1, K, -1)
        if self.weigh == "input":
            rows = rows * weights[..., None]
        out = torch.unflatten(self.experts(rows.flatten(0, 1), experts.flatten()), 0, (N, K))
        return out.sum(1) if self.weigh == "input" else (weights.unsqueeze(1) @ out).squeeze(1)
