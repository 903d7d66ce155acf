"""What a scheme adds to attention scores, measured by calling its hooks: by query and key, and by distance.

B batch, T query tokens, S key tokens, H heads, G key/value heads, D head dim, M model dim, N distances.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from x_positional.attention.backends.eager import replace_hidden, share_heads
from x_positional.plotting.contexts import at_distances, last_query, square
from x_positional.plotting.schemes import PlottedScheme
from x_positional.schemes.base import AttentionContext, LayerView, PositionScheme
from x_positional.schemes.context import add

CONTENT_HOOKS = ("key_state", "query_state", "content_bias", "layer_bias", "transform_scores")
SAMPLES, MOST_KEYS = 8, 4096
"""Random sequences that a content-dependent bias is averaged over, and the most keys each can have."""
RANDOM_STD = 0.3
"""Standard deviation of random parameters, used where the initial ones add nothing."""


@dataclass(frozen=True)
class ScoreBias:
    """What is added to scores."""

    values: Tensor
    """[H T S] or [H N] logits, NaN where a key is masked."""
    content_dependent: bool
    """Measured on random queries, keys and inputs."""
    randomized: bool
    """Measured with random parameters, because the initial ones add nothing."""


def adds_bias(scheme: PositionScheme) -> bool:
    """Whether the scheme adds to scores."""
    return scheme.overrides("bias") or reads_content(scheme)


def reads_content(scheme: PositionScheme) -> bool:
    """Whether what the scheme adds depends on queries, keys or inputs."""
    return any(map(scheme.overrides, CONTENT_HOOKS))


def bias_map(plotted: PlottedScheme, tokens: int) -> ScoreBias:
    """[H T S] with T = S = tokens; for one random sequence if content-dependent."""
    ctx = square(plotted, tokens)
    return _measured(plotted, lambda scheme: _added(scheme, plotted, ctx)[0])


def farthest(plotted: PlottedScheme) -> int:
    """The largest distance to plot.

    It is limited by the number of random keys if content-dependent, and by room on both sides if not causal.
    """
    if reads_content(plotted.scheme):
        return min(plotted.horizon, MOST_KEYS - 1)
    return plotted.horizon if plotted.dims.causal or plotted.scheme.limit is None else plotted.horizon // 2


def bias_of_distance(plotted: PlottedScheme, distances: Tensor) -> ScoreBias:
    """[H N] at integer distances [N]; averaged over random sequences if content-dependent."""
    if not reads_content(plotted.scheme):
        ctx = at_distances(plotted, distances)
        return _measured(plotted, lambda scheme: _added(scheme, plotted, ctx)[0, :, 0])
    ctx = replace(last_query(plotted, int(distances.max()) + 1), batch=SAMPLES)
    keys = ctx.S - 1 - distances.clamp(min=0)  # content-dependent schemes are causal
    return _measured(plotted, lambda scheme: _added(scheme, plotted, ctx)[:, :, 0].mean(0)[:, keys])


@torch.no_grad()
def _measured(plotted: PlottedScheme, measure: Callable[[PositionScheme], Tensor]) -> ScoreBias:
    """Measure with the parameters of a stage, or with the initial ones; with random ones if the latter add nothing."""
    scheme = plotted.scheme
    values, randomized = measure(scheme), False
    if plotted.stage is None and not values.nan_to_num().any():
        scheme, randomized = copy.deepcopy(scheme), True
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            for parameter in scheme.parameters():
                nn.init.normal_(parameter, std=RANDOM_STD)
        values = measure(scheme)
    return ScoreBias(values, reads_content(scheme), randomized)


def _added(scheme: PositionScheme, plotted: PlottedScheme, ctx: AttentionContext) -> Tensor:
    """[B H T S]: what all hooks add, NaN where the key is masked. Random content has unit variance in every channel."""
    dims = plotted.dims
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
            [
                scheme.content_bias(q, ctx, scheme.key_state(x), scheme.query_state(x[:, ctx.S - ctx.T :])),
                scheme.layer_bias(_random_layer(plotted, q, k, draw), ctx),
            ]
        )
        if content is not None:
            total = total + replace_hidden(content.dense(ctx, ctx.every_row, ctx.every_key), visible)
        scores = q @ share_heads(k, dims.heads).mT * dims.head_dim**-0.5 + total
        total = total + scheme.transform_scores(scores, visible, q, ctx) - scores
    return total if visible is None else total.masked_fill(~visible, torch.nan)


def _random_layer(plotted: PlottedScheme, q: Tensor, k: Tensor, draw: torch.Generator) -> LayerView:
    """A layer with random projections that preserve the variance."""
    dims = plotted.dims

    def projection(heads: int) -> Callable[[Tensor], Tensor]:
        weight = torch.randn(heads, dims.head_dim, dims.dim, generator=draw) * dims.dim**-0.5
        return lambda vectors: torch.einsum("nm,hdm->hnd", vectors, weight)

    return LayerView(q=q, k=k, scale=dims.head_dim**-0.5, to_q=projection(dims.heads), to_k=projection(dims.kv_heads))
