"""Self-attention and cross-attention: project, rotate, cache, attend.

B batch, T query tokens, S key tokens, H heads, G key/value heads, D head dim, M model dim, C context dim.
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from x_positional.attention.backends import Prepared, ScoreOps
from x_positional.attention.plan import CrossPlan, LayerPlan
from x_positional.errors import InputError
from x_positional.modules.plain import linear, plain_weight
from x_positional.modules.qk_norm import HeadNorm
from x_positional.schemes.base import LayerView, PositionScheme, Span
from x_positional.schemes.context import add


class Heads(nn.Module):
    """What every kind of attention shares.

    Args:
        dim: M.
        heads: H.
        kv_heads: G.
        head_dim: D.
        bias: of the projections.
        out_bias: of the output projection; None follows `bias`.
        dropout: of attention probabilities.
        q_norm, k_norm: norms of queries and keys, or None.
        norm_after: these norms come after rotation, not before.
        scale: of the scores; None is head_dim ** -0.5.
        softcap: c; scores become c * tanh(score / c).
        sinks: a learned logit per head of a key without a value.
        clip: projections are clamped to [-clip, clip].
        value_dim: width of a head's values; None is head_dim.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        bias: bool = False,
        out_bias: bool | None = None,
        dropout: float = 0.0,
        q_norm: HeadNorm | None = None,
        k_norm: HeadNorm | None = None,
        norm_after: bool = False,
        scale: float | None = None,
        softcap: float | None = None,
        sinks: bool = False,
        clip: float | None = None,
        value_dim: int | None = None,
    ):
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self.softcap, self.dropout, self.clip = softcap, dropout, clip
        self.q_norm, self.k_norm, self.norm_after = q_norm, k_norm, norm_after
        self.sinks = nn.Parameter(torch.zeros(heads)) if sinks else None
        self.to_out = nn.Linear(heads * (value_dim or head_dim), dim, bias=bias if out_bias is None else out_bias)

    def rotate_and_norm(
        self, x: Tensor, norm: HeadNorm | None, rotate: Callable[[Tensor, Any], Tensor], tables: Any
    ) -> Tensor:
        """[B H T D] -> [B H T D'], rotated, then normed if norms come after rotation."""
        x = rotate(x, tables)
        return norm(x) if norm is not None and self.norm_after else x

    def split_and_norm(self, x: Tensor, norm: HeadNorm | None) -> Tensor:
        """[B T H*D] -> [B H T D], normed if norms come before rotation, then clipped."""
        return self.norm_and_clip(self.split(x), norm)

    def norm_and_clip(self, x: Tensor, norm: HeadNorm | None) -> Tensor:
        """[B H T D], normed if norms come before rotation, then clamped to [-clip, clip] (OLMo, MPT)."""
        x = x if norm is None or self.norm_after else norm(x)
        return x if self.clip is None else x.clamp(-self.clip, self.clip)

    def split(self, x: Tensor) -> Tensor:
        """[B T H*D] -> [B H T D]."""
        return torch.unflatten(x, -1, (-1, self.head_dim)).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """[B H T D] -> [B T M]."""
        return linear(self.to_out, x.transpose(1, 2).flatten(-2))

    def ops(
        self,
        scheme: PositionScheme | None,
        x: Tensor,
        content: Tensor,
        state: Tensor | None,
        prepared: Prepared,
        view: LayerView | None = None,
        rows: bool = False,
    ) -> ScoreOps:
        """What is done to this layer's scores.

        Args:
            scheme: None where positions do not apply.
            x: [B T M], what queries are projected from.
            content: [B H T D], the unrotated queries.
            state: of all keys.
            prepared: masks and biases that layers share.
            view: for schemes that read the layer.
            rows: whether the scheme transforms whole rows.
        """
        bias = None if scheme is None else scheme.content_bias(content, prepared.ctx, state, scheme.query_state(x))
        if view is not None and scheme is not None:
            bias = add([bias, scheme.layer_bias(view, prepared.ctx)])
        return ScoreOps(
            scale=self.scale,
            softcap=self.softcap,
            sinks=self.sinks,
            dropout=self.dropout if self.training else 0.0,
            content=bias,
            transform=scheme.transform_scores if rows and scheme is not None else None,
            row_term=scheme.row_term if rows and scheme is not None else None,
            unrotated_q=content if rows else None,
        )


class Attention(Heads):
    """Self-attention. Query head h reads key head h // (H / G).

    position_projections: schemes that project positions (DeBERTa) get projections of their own.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        *,
        bias: bool = False,
        position_projections: bool = False,
        **shared: Any,
    ):
        super().__init__(dim, heads, kv_heads, head_dim, bias=bias, **shared)
        self.widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        self.counts = [heads, kv_heads, kv_heads]
        self.to_qkv = nn.Linear(dim, sum(self.widths), bias=bias)
        own = position_projections
        self.position_q = nn.Linear(dim, self.widths[0], bias=bias) if own else None
        self.position_k = nn.Linear(dim, self.widths[1], bias=bias) if own else None

    def forward(self, x: Tensor, scheme: PositionScheme, plan: LayerPlan) -> Tensor:
        """[B T M] -> [B T M]."""
        q_norm, k_norm = self.q_norm, self.k_norm
        q, k, v = torch.split_with_sizes(self.split(linear(self.to_qkv, x)), self.counts, 1)
        q, k, v = self.norm_and_clip(q, q_norm), self.norm_and_clip(k, k_norm), self.norm_and_clip(v, None)
        content = q  # unrotated: what content-dependent terms read
        q = self.rotate_and_norm(q, q_norm, scheme.rotate_q, plan.tables)
        k = self.rotate_and_norm(k, k_norm, scheme.rotate_k, plan.tables)
        state = scheme.key_state(x)
        if plan.cache is not None and plan.view is not None:
            k, v, state = plan.cache.write(plan.layer, plan.view, k, v, state)
        view = None
        if plan.reads_layer:
            view = LayerView(q=content, k=k, scale=self.scale, to_q=self._queries_of, to_k=self._keys_of)
        ops = self.ops(scheme, x, content, state, plan.prepared, view, plan.whole_rows)
        if plan.kept_tokens is not None:
            moved = self.rotate_and_norm(content, q_norm, scheme.rotate_q, plan.kept_tokens.tables)
            kept_bias = plan.kept_tokens.bias(scheme, content, ops.content)
            ops = ops._replace(content=add([kept_bias, plan.kept_tokens.correction(moved, q, k, self.scale)]))
        if plan.maps is not None:
            plan.collect(q, k, ops)
        return self.join(plan.backend.attend(q, k, v, plan.prepared, ops))

    def _queries_of(self, vectors: Tensor) -> Tensor:
        """[N M] -> [H N D]: positions as queries."""
        return self._projected(vectors, self.position_q, Span(0, self.widths[0]), self.q_norm)

    def _keys_of(self, vectors: Tensor) -> Tensor:
        """[N M] -> [G N D]: positions as keys."""
        return self._projected(vectors, self.position_k, Span(self.widths[0], sum(self.widths[:2])), self.k_norm)

    def _projected(self, vectors: Tensor, own: nn.Linear | None, rows: Span, norm: HeadNorm | None) -> Tensor:
        if own is not None:
            return self.split_and_norm(own(vectors)[None], norm)[0]
        weight = plain_weight(self.to_qkv)
        if weight is None:
            return self.split_and_norm(self.to_qkv(vectors)[None, ..., rows.cut], norm)[0]
        bias = None if self.to_qkv.bias is None else self.to_qkv.bias[rows.cut]
        return self.split_and_norm(F.linear(vectors, weight[rows.cut], bias)[None], norm)[0]


class CrossAttention(Heads):
    """Attention to a context, whose keys are computed once and kept in the cache."""

    def __init__(
        self, dim: int, heads: int, kv_heads: int, head_dim: int, *, context_dim: int, bias: bool = False, **shared: Any
    ):
        super().__init__(dim, heads, kv_heads, head_dim, bias=bias, **shared)
        self.to_q = nn.Linear(dim, heads * head_dim, bias=bias)
        self.to_kv = nn.Linear(context_dim, 2 * kv_heads * head_dim, bias=bias)

    def forward(self, x: Tensor, scheme: PositionScheme, plan: CrossPlan) -> Tensor:
        """[B T M] -> [B T M]."""
        content = self.split_and_norm(self.to_q(x), self.q_norm)
        q = self.rotate_and_norm(content, self.q_norm, scheme.rotate_q if plan.rotated else no_rotation, plan.q_tables)
        k, v = self._keys(scheme, plan)
        ops = self.ops(scheme if plan.rotated else None, x, content, None, plan.prepared)
        if plan.maps is not None:
            plan.collect(q, k, ops)
        out = plan.backend.attend(q, k, v, plan.prepared, ops)
        return self.join(out if plan.reads is None else out * plan.reads)

    def _keys(self, scheme: PositionScheme, plan: CrossPlan) -> tuple[Tensor, Tensor]:
        held = None if plan.cache is None else plan.cache.cross[plan.layer]
        if held is not None:
            return held
        if plan.context is None:
            raise InputError("cross-attention needs context=, or a cache that already holds its keys.")
        k, v = self.to_kv(plan.context).chunk(2, dim=-1)
        k, v = self.split_and_norm(k, self.k_norm), self.split_and_norm(v, None)
        k = self.rotate_and_norm(k, self.k_norm, scheme.rotate_k if plan.rotated else no_rotation, plan.k_tables)
        if plan.cache is not None:
            plan.cache.cross[plan.layer] = (k, v)
        return k, v


def no_rotation(x: Tensor, tables: Any) -> Tensor:
    """Used in place of a rotation where the context has no positions."""
    return x
