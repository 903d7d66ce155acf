"""A mixture of experts: each token goes through a few of many feedforwards, which a router chooses.

N tokens, M model dim, E experts, K experts of a token, P = N * K pairs of a token and an expert, F inner width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from typing_extensions import Self

from x_positional.modules.feedforward import FeedForward, Inner

ScoreKind = Literal["softmax", "sigmoid"]
TINY = 1e-20
"""Added to a sum that divides, so that scores that are all zero give zero."""


@dataclass(frozen=True, kw_only=True)
class Routing:
    """How a router chooses: the fields of `MoEConfig` that say it."""

    top_k: int
    score: ScoreKind = "softmax"
    renorm: bool = True
    scale: float = 1.0
    groups: int = 1
    top_groups: int = 1


class Chosen(NamedTuple):
    """experts: [N K] numbers. weights: [N K], in float32 or wider."""

    experts: Tensor
    weights: Tensor


class Router(nn.Module):
    """Scores every expert for every token, in float32 or wider, and chooses.

    correction: [E], added to the scores for the choice alone. It is a parameter without a gradient: whoever trains moves it,
    up for experts that get too few tokens. It never becomes narrower than float32: scores lie close together.
    """

    def __init__(self, dim: int, experts: int, routing: Routing, *, bias: bool = False, correction: bool = False):
        super().__init__()
        self.routing = routing
        self.weight = nn.Parameter(torch.empty(experts, dim))
        nn.init.kaiming_uniform_(self.weight, a=math.sqrt(5))
        self.bias = nn.Parameter(torch.zeros(experts)) if bias else None
        self.correction = nn.Parameter(torch.zeros(experts), requires_grad=False) if correction else None

    def forward(self, x: Tensor) -> Chosen:
        """[N M] -> K experts for each."""
        wide, rule = torch.promote_types(x.dtype, torch.float32), self.routing
        logits = F.linear(x.to(wide), self.weight.to(wide), None if self.bias is None else self.bias.to(wide))
        scores = logits.softmax(-1) if rule.score == "softmax" else logits.sigmoid()
        merit = logits  # in the order of the scores, and distinct where they saturate
        if self.correction is not None:
            merit = scores + self.correction
        elif rule.groups > 1:
            merit = scores
        if rule.groups > 1:
            merit = self._in_groups(merit)
        experts = merit.topk(rule.top_k, dim=-1).indices
        weights = scores.gather(-1, experts)
        if rule.renorm:
            weights = weights / (weights.sum(-1, keepdim=True) + TINY)
        return Chosen(experts, weights if rule.scale == 1.0 else weights * rule.scale)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`.to(...)` and its kin."""
        held = self.correction

        def wide(x: Tensor) -> Tensor:
            new = fn(x)
            narrow = new.dtype not in (torch.float32, torch.float64)
            return x.to(new.device) if narrow and x is held else new

        return super()._apply(wide, recurse)

    def _in_groups(self, merit: Tensor) -> Tensor:
        """[N E] -> [N E]: -inf outside of the best groups, by the sum of their best two."""
        grouped = merit.unflatten(-1, (self.routing.groups, -1))
        best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.routing.top_groups, dim=-1).indices
        kept = torch.zeros_like(grouped[..., 0], dtype=torch.bool).scatter(-1, best, True)
        return grouped.masked_fill(~kept[..., None], float("-inf")).flatten(-2)


class Experts(nn.Module):
    """E feedforwards as stacked weights: up [E F M] (2F rows with glu), down [E M F], and their biases. Each token gets exactly
    what its experts give, whatever else is in the batch: nothing is dropped and no expert has a capacity."""

    def __init__(
        self,
        experts: int,
        dim: int,
        width: int,
        inner: Inner,
        *,
        bias: bool = False,
        up_bias: bool | None = None,
        dropout: float = 0.0,
    ):
        super().__init__()
        self.inner, self.dropout, rows = inner, nn.Dropout(dropout), inner.width(width)
        self.up = nn.Parameter(torch.empty(experts, rows, dim).uniform_(-(dim**-0.5), dim**-0.5))
        self.down = nn.Parameter(torch.empty(experts, dim, width).uniform_(-(width**-0.5), width**-0.5))
        self.up_bias = nn.Parameter(torch.zeros(experts, rows)) if (bias if up_bias is None else up_bias) else None
        self.down_bias = nn.Parameter(torch.zeros(experts, dim)) if bias else None

    def forward(self, x: Tensor, experts: Tensor) -> Tensor:
        """[P M] rows and their experts [P] -> [P M].

        Rows are sorted by expert, and each expert that has some reads its weights once; the host looks at the device to learn
        how many there are, which ends a graph of torch.compile. Compiled, no more rows than there are experts gather the
        weights of theirs instead: one graph, and at most one copy of all weights.
        """
        few = torch.compiler.is_compiling() and len(x) <= len(self.up)
        return self._gathered(x, experts) if few else self._sorted(x, experts)

    def _gathered(self, x: Tensor, experts: Tensor) -> Tensor:
        x = (self.up[experts] @ x[..., None]).squeeze(-1)
        x = self.dropout(self.inner(x if self.up_bias is None else x + self.up_bias[experts]))
        x = (self.down[experts] @ x[..., None]).squeeze(-1)
        return x if self.down_bias is None else x + self.down_bias[experts]

    def _sorted(self, x: Tensor, experts: Tensor) -> Tensor:
        order = experts.argsort(stable=True)
        pieces = x[order].split(experts.bincount(minlength=len(self.up)).tolist())
        # unbound once: the gradient of a stack taken apart is one stack, not one for each expert
        parts = zip(
            pieces, self.up.unbind(), self.down.unbind(), *map(self._each, (self.up_bias, self.down_bias)), strict=True
        )
        out = [
            F.linear(self.dropout(self.inner(F.linear(rows, up, up_bias))), down, down_bias)
            for rows, up, down, up_bias, down_bias in parts
            if len(rows)
        ]
        return torch.cat([x[:0], *out])[order.argsort()]

    def _each(self, bias: Tensor | None) -> tuple[Tensor, ...] | list[None]:
        return [None] * len(self.up) if bias is None else bias.unbind()


class MixtureOfExperts(nn.Module):
    """The sum of what a token's experts give, by weight, and of a shared feedforward. [... M] -> [... M].

    weigh: the weight multiplies what an expert gives ("output") or is given ("input"). shared: every token goes through it;
    shared_gate: times the sigmoid of a learned projection of the token.

    There is no loss here that spreads tokens over experts; to train from scratch, add one, or move `router.correction`.
    """

    def __init__(
        self,
        router: Router,
        experts: Experts,
        *,
        weigh: Literal["output", "input"] = "output",
        shared: FeedForward | None = None,
        shared_gate: nn.Linear | None = None,
    ):
        super().__init__()
        self.router, self.experts, self.weigh = router, experts, weigh
        self.shared, self.shared_gate = shared, shared_gate

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        out = self._routed(flat)
        if self.shared is not None:
            shared = self.shared(flat)
            out = out + (shared if self.shared_gate is None else shared * self.shared_gate(flat).sigmoid())
        return out.reshape(x.shape)

    def idle(self) -> int:
        """Numbers in the experts that one token does not go through."""
        count = len(self.router.weight)
        return sum(p.numel() for p in self.experts.parameters()) // count * (count - self.router.routing.top_k)

    def _routed(self, x: Tensor) -> Tensor:
        """[N M] -> [N M]."""
        experts, weights = self.router(x)
        weights, (N, K) = weights.to(x.dtype), experts.shape
        rows = x.unsqueeze(1).expand(-1, K, -1)
        if self.weigh == "input":
            rows = rows * weights[..., None]
        out = self.experts(rows.flatten(0, 1), experts.flatten()).unflatten(0, (N, K))
        return out.sum(1) if self.weigh == "input" else (weights.unsqueeze(1) @ out).squeeze(1)
