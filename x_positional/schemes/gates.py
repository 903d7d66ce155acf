"""Base of every bias that sums gates between two tokens: a decay that depends on the content of each token, valid in any cache.

B batch, T query tokens, S key tokens, H heads, M model dim.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from x_positional.errors import PositionError
from x_positional.schemes.base import NO_TOKEN, AttentionContext, Bias, PositionScheme, Span
from x_positional.schemes.precision import exact_dtype
from x_positional.schemes.terms import ScoreBlock, ScoreTerm


class _Difference(torch.autograd.Function):
    """[B H T], [B H S], both float64 -> their differences [B H T S] in a narrower dtype, rounded once, and -inf where
    hidden. In one pass, because autograd would keep a float64 tensor of that size."""

    @staticmethod
    def forward(at_query: Tensor, at_key: Tensor, visible: Tensor | None, dtype: torch.dtype) -> Tensor:  # type: ignore[override]
        out = at_query.new_empty(*at_query.shape, at_key.shape[-1], dtype=dtype)
        torch.sub(at_query[..., None], at_key[..., None, :], out=out)
        return out if visible is None else out.masked_fill_(~visible, float("-inf"))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        """Backward needs no inputs."""

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        """For torch.func.vmap: one more leading dimension, of `info.batch_size`, in each tensor."""
        at_query, at_key, visible, dtype = inputs
        query_dim, key_dim, mask_dim, _ = in_dims

        def batched(x: Tensor, dim: int | None) -> Tensor:
            return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)

        visible = visible if visible is None or mask_dim is None else visible.movedim(mask_dim, 0)
        return _Difference.apply(batched(at_query, query_dim), batched(at_key, key_dim), visible, dtype), 0

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads  # zero at hidden keys, whose probability is 0
        wide = exact_dtype(grad.device)
        return grad.sum(-1, dtype=wide), -grad.sum(-2, dtype=wide), None, None


@dataclass(frozen=True)
class GateBias(Bias):
    """The difference of two sums of log f, both in float64."""

    at_query: Tensor
    """[B H T], summed up to each query."""
    at_key: Tensor
    """[B H S], summed up to each key."""
    dtype: torch.dtype
    """Of the bias."""

    def dense(self, ctx: AttentionContext, rows: Span, keys: Span) -> Tensor:
        if torch.compiler.is_compiling():
            return super().dense(ctx, rows, keys)  # the compiler fuses it
        at_query, at_key = self.at_query[..., rows.cut], self.at_key[..., keys.cut]
        return _Difference.apply(at_query, at_key, ctx.visible_rows(rows, keys), self.dtype)  # type: ignore[no-any-return]

    def term(self, ctx: AttentionContext, blocks: Sequence[tuple[Span, Span]]) -> ScoreTerm:
        return GateTerm(self.at_query, self.at_key)


class GateTerm(ScoreTerm):
    """The same without autograd. For keys that precede every query of a block the difference is split at the first query:
    both parts have the sign of the whole, so no digits cancel, and each is added in the dtype of the scores.

    Args:
        at_query, at_key: as in GateBias.
    """

    def __init__(self, at_query: Tensor, at_key: Tensor):
        self.inputs = (at_query, at_key)

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.inputs

    def add(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> None:
        at_query = inputs[0][block.row, block.heads.cut, block.queries.cut, None]
        at_key = inputs[1][block.row, block.heads.cut, None, block.keys.cut]
        first, far = at_query[:, :1], block.earlier
        scores[..., :far] += (first - at_key[..., :far]).to(scores.dtype)
        scores[..., :far] += (at_query - first).to(scores.dtype)
        scores[..., far:] += (at_query - at_key[..., far:]).to(scores.dtype)

    def differentiate(self, grad: Tensor, kept: None, sums: Sequence[Tensor | None], block: ScoreBlock) -> None:
        at_query, at_key = sums
        if at_query is not None:
            at_query[block.row, block.heads.cut, block.queries.cut] += grad.sum(-1)
        if at_key is not None:
            at_key[block.row, block.heads.cut, block.keys.cut] -= grad.sum(-2)

    def recorded(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        at_query = inputs[0][block.row, block.heads.cut, block.queries.cut, None]
        return scores + (at_query - inputs[1][block.row, block.heads.cut, None, block.keys.cut]).to(scores.dtype)


class GatedScheme(PositionScheme):
    """bias = sum_{t=n+1..m} log f_t for query m and key n: override `log_gates`.

    log f is cached with each key, in float32: the sums reach -1e3, where bfloat16 has steps of 8. They are accumulated in
    float64, so that the difference of two sums is exact to rounding and packed documents do not affect each other.
    """

    causal_only = True
    continuous = False
    per_layer = True

    def log_gates(self, x: Tensor) -> Tensor:
        """[B T M] -> [B T H], at most 0, in float32 or wider."""
        raise TypeError(f"{type(self).__name__} defines no log_gates(x)")

    def key_state(self, x: Tensor) -> Tensor:
        return self.log_gates(x).transpose(1, 2)[..., None]

    def content_bias(self, q: Tensor, ctx: AttentionContext, state: Tensor | None, query_state: None) -> Bias:
        if state is None:
            raise PositionError(
                f"{type(self).__name__} needs key state, which cross-attention does not have. Use another scheme there."
            )
        narrow, wide = state.dtype, exact_dtype(state.device)
        log_f = state[..., 0].masked_fill((ctx.kv_index == NO_TOKEN)[:, None], 0).to(wide)  # [B H S]
        order = ctx.key_order()
        if order is None:
            at_key = log_f.cumsum(-1)
            first = ctx.q_start - ctx.kv_start
            at_query = at_key[..., first : first + ctx.T].clone()  # a copy: flex reads each gradient once
        else:
            index = order[:, None].expand_as(log_f)
            at_key = torch.zeros_like(log_f).scatter(-1, index, log_f.gather(-1, index).cumsum(-1))
            order, queries = order.expand(ctx.batch, -1), ctx.q_index.expand(ctx.batch, -1).contiguous()
            own = torch.searchsorted(ctx.kv_index.expand(ctx.batch, -1).gather(1, order), queries)
            at_query = at_key.gather(-1, order.gather(1, own)[:, None].expand(-1, log_f.shape[1], -1))

        def difference(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return (at_query[b, h, i] - at_key[b, h, j]).to(narrow)

        return GateBias(difference, ctx.batch, ctx.heads, at_query, at_key, narrow)
