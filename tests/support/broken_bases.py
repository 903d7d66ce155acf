"""Correct schemes whose classes take `Dims`, as bases of the broken ones.

B batch, T query tokens, S key tokens, H heads, D head dim, M model dim.
"""

from torch import Tensor

from x_positional.schemes import (
    AlibiBias,
    CopeScores,
    ForgettingBias,
    LearnedAbsolute,
    RelativeBias,
    RopeEmbedding,
    SinusoidalEmbedding,
    alibi_slopes,
)
from x_positional.schemes.base import AttentionContext, Dims


class PlainRope(RopeEmbedding):
    def __init__(self, dims: Dims):
        super().__init__(dims.head_dim)


class PlainAlibi(AlibiBias):
    def __init__(self, dims: Dims):
        super().__init__(dims.heads, alibi_slopes(dims.heads))


class PlainCope(CopeScores):
    def __init__(self, dims: Dims):
        super().__init__(dims.head_dim)


class PlainForgetting(ForgettingBias):
    def __init__(self, dims: Dims):
        super().__init__(dims.dim, dims.heads)


class PlainRelative(RelativeBias):
    def __init__(self, dims: Dims):
        super().__init__(dims.dim, dims.heads, dims.causal, width=3, extent=24)


class PlainSinusoidal(SinusoidalEmbedding):
    def __init__(self, dims: Dims):
        super().__init__(dims.embed_dim)


class PlainLearned(LearnedAbsolute):
    def __init__(self, dims: Dims):
        super().__init__(dims.max_seq_len or 64, dims.embed_dim)


def pairs(ctx: AttentionContext) -> tuple[Tensor, Tensor]:
    """Positions of queries and keys, [B T] and [B S]."""
    return ctx.q_positions.expand(ctx.batch, -1), ctx.kv_positions.expand(ctx.batch, -1)
