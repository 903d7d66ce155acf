"""What a scheme adds to scores, asked from its hooks: per head as a map of queries and keys, and along the distance.

B batch, T query tokens, S key tokens, H heads, G key/value heads, D head dim, M model dim, N distances.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from x_positional.attention.backends.eager import replace_hidden, share_heads
from x_positional.plotting.contexts import at_distances, last_query, square
from x_positional.plotting.part import Part
from x_positional.schemes.base import AttentionContext, LayerView, PositionScheme
from x_positional.schemes.context import add

CONTENT_HOOKS = ("key_state", "content_bias", "layer_bias", "transform_scores")
SAMPLES, MOST_KEYS = 8, 4096
"""Texts of random content that a bias of content is averaged over, and the most keys that each has."""
STIR = 0.3
"""Spread of parameters that are drawn at random because those at the start add nothing."""


@dataclass(frozen=True)
class Added:
    """values: [H T S] or [H N] logits, NaN where a key is hidden. of_content: measured on random queries, keys and
    inputs. stirred: parameters were drawn at random, because with those at the start nothing is added."""

    values: Tensor
    of_content: bool
    stirred: bool


def adds(scheme: PositionScheme) -> bool:
    """Whether it adds anything to scores."""
    return scheme.overrides("bias") or reads_content(scheme)


def reads_content(scheme: PositionScheme) -> bool:
    """Whether what it adds depends on queries, keys or inputs."""
    return any(map(scheme.overrides, CONTENT_HOOKS))


def bias_map(part: Part, tokens: int) -> Added:
    """[H T S], T = S = tokens; of one random text where content counts."""
    ctx = square(part, tokens)
    return _lively(part.scheme, lambda scheme: _added(scheme, part, ctx)[0])


def farthest(part: Part) -> int:
    """The largest distance to ask for: content is made for every key between, and limits leave room on both sides."""
    if reads_content(part.scheme):
        return min(part.horizon, MOST_KEYS - 1)
    return part.horizon if part.dims.causal or part.scheme.limit is None else part.horizon // 2


def bias_of_distance(part: Part, asked: Tensor) -> Added:
    """[H N] at whole distances [N]; the mean over random texts where content counts."""
    if not reads_content(part.scheme):
        ctx = at_distances(part, asked)
        return _lively(part.scheme, lambda scheme: _added(scheme, part, ctx)[0, :, 0])
    ctx = replace(last_query(part, int(asked.max()) + 1), batch=SAMPLES)
    keys = ctx.S - 1 - asked.clamp(min=0)  # content counts only under a causal mask
    return _lively(part.scheme, lambda scheme: _added(scheme, part, ctx)[:, :, 0].mean(0)[:, keys])


@torch.no_grad()
def _lively(scheme: PositionScheme, measure: Callable[[PositionScheme], Tensor]) -> Added:
    """Measured as it is at the start; with random parameters where that is nothing at all."""
    values, stirred = measure(scheme), False
    if not values.nan_to_num().any():
        scheme, stirred = copy.deepcopy(scheme), True
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            for parameter in scheme.parameters():
                nn.init.normal_(parameter, std=STIR)
        values = measure(scheme)
    return Added(values, reads_content(scheme), stirred)


def _added(scheme: PositionScheme, part: Part, ctx: AttentionContext) -> Tensor:
    """[B H T S]: what the three hooks add, NaN where the key is hidden. Content has unit variance in every channel."""
    dims = part.dims
    visible = ctx.visible_rows(ctx.every_row)
    total = torch.zeros(ctx.batch, dims.heads, ctx.T, ctx.S)
    bias = scheme.bias(ctx)
    if bias is not None:
        total = total + replace_hidden(bias.dense(ctx, ctx.every_row, ctx.every_key), visible)
    if reads_content(scheme):
        draw = torch.Generator().manual_seed(0)
        q = torch.randn(ctx.batch, dims.heads, ctx.T, dims.head_dim, generator=draw)
        k = torch.randn(ctx.batch, dims.kv_heads, ctx.S, dims.head_dim, generator=draw)
        x = torch.randn(ctx.batch, ctx.S, dims.dim, generator=draw)
        content = add(
            [scheme.content_bias(q, ctx, scheme.key_state(x)), scheme.layer_bias(_layer(part, q, k, draw), ctx)]
        )
        if content is not None:
            total = total + replace_hidden(content.dense(ctx, ctx.every_row, ctx.every_key), visible)
        scores = q @ share_heads(k, dims.heads).mT * dims.head_dim**-0.5 + total
        total = total + scheme.transform_scores(scores, visible, q, ctx) - scores
    return total if visible is None else total.masked_fill(~visible, torch.nan)


def _layer(part: Part, q: Tensor, k: Tensor, draw: torch.Generator) -> LayerView:
    """A layer with random projections that keep the variance."""
    dims = part.dims

    def projection(heads: int) -> Callable[[Tensor], Tensor]:
        weight = torch.randn(heads, dims.head_dim, dims.dim, generator=draw) * dims.dim**-0.5
        return lambda vectors: torch.einsum("nm,hdm->hnd", vectors, weight)

    return LayerView(q=q, k=k, scale=dims.head_dim**-0.5, to_q=projection(dims.heads), to_k=projection(dims.kv_heads))
