"""Self-attention and cross-attention: project, rotate, cache, attend.

B batch, T query tokens, S key tokens, H heads, G key/value heads, D head dim, M model dim, C context dim.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from x_positional.anchors import Anchors
from x_positional.backends import Backend, Planned, ScoreOps
from x_positional.cache import KeyView, KVCache
from x_positional.context import add
from x_positional.scheme import PositionScheme

QKNormKind = Literal["rms", "rms_per_head", "l2"]


@dataclass(frozen=True, kw_only=True)
class LayerPlan:
    """What one layer needs of the forward pass's plan. `layer` is its number in the cache."""

    layer: int
    planned: Planned
    backend: Backend
    tables: Any
    view: KeyView | None = None
    cache: KVCache | None = None
    anchors: Anchors | None = None


@dataclass(frozen=True, kw_only=True)
class CrossPlan:
    """What one layer's cross-attention needs. `reads` is False for rows whose context is empty: they get zeros."""

    layer: int
    planned: Planned
    backend: Backend
    context: Tensor | None  # [B S C]; None where the cache holds the keys already
    q_tables: Any = None
    k_tables: Any = None
    rotated: bool = False
    reads: Tensor | None = None  # [B 1 1 1] bool
    cache: KVCache | None = None


class HeadNorm(nn.Module):
    """Norm of queries or keys over the head dim, before rotation: rms with a gain per channel (shared by heads, or one
    for each), or plain l2. [B H T D] -> [B H T D]."""

    EPS: ClassVar[dict[QKNormKind, float]] = {"rms": 1e-6, "rms_per_head": 1e-12, "l2": 1e-12}
    """rms_per_head divides by the bare length, as in x-transformers; its eps only keeps zero finite."""

    def __init__(self, kind: QKNormKind, heads: int, head_dim: int):
        super().__init__()
        self.eps, self.head_dim, self.unit = self.EPS[kind], head_dim, kind == "l2"
        shape = {"rms": (head_dim,), "rms_per_head": (heads, 1, head_dim)}.get(kind)
        self.gain = None if shape is None else nn.Parameter(torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        if self.unit or self.gain is None:
            return F.normalize(x, dim=-1, eps=self.eps)
        return F.rms_norm(x, (self.head_dim,), None, self.eps) * (self.gain + 1.0)


class _Heads(nn.Module):
    """The parts that self- and cross-attention share."""

    def __init__(
        self, dim: int, heads: int, kv_heads: int, head_dim: int, *, bias: bool = False, dropout: float = 0.0,
        qk_norm: QKNormKind | None = None, scale: float | None = None, softcap: float | None = None,
        sinks: bool = False,
    ):  # fmt: skip
        super().__init__()
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.scale = head_dim**-0.5 if scale is None else scale
        self.softcap, self.dropout = softcap, dropout
        self.q_norm = None if qk_norm is None else HeadNorm(qk_norm, heads, head_dim)
        self.k_norm = None if qk_norm is None else HeadNorm(qk_norm, kv_heads, head_dim)
        self.sinks = nn.Parameter(torch.zeros(heads)) if sinks else None
        self.to_out = nn.Linear(heads * head_dim, dim, bias=bias)

    def split(self, x: Tensor) -> Tensor:
        """[B T H*D] -> [B H T D]."""
        return x.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)

    def join(self, x: Tensor) -> Tensor:
        """[B H T D] -> [B T M]."""
        return self.to_out(x.transpose(1, 2).flatten(-2))

    def ops(self, scheme: PositionScheme | None, content: Tensor, state: Tensor | None, planned: Planned) -> ScoreOps:
        """What happens to this layer's scores; `scheme` is None where no position applies."""
        rows = scheme is not None and scheme.capabilities().kernel == "rows"
        return ScoreOps(
            scale=self.scale, softcap=self.softcap, sinks=self.sinks, dropout=self.dropout if self.training else 0.0,
            content=None if scheme is None else scheme.content_bias(content, planned.ctx, state),
            transform=scheme.transform_scores if rows and scheme is not None else None,
            unrotated_q=content if rows else None,
        )  # fmt: skip


class Attention(_Heads):
    """Self-attention. Query head h reads key head h // (H / G)."""

    def __init__(self, dim: int, heads: int, kv_heads: int, head_dim: int, *, bias: bool = False, **shared: Any):
        super().__init__(dim, heads, kv_heads, head_dim, bias=bias, **shared)
        self.widths = [heads * head_dim, kv_heads * head_dim, kv_heads * head_dim]
        self.to_qkv = nn.Linear(dim, sum(self.widths), bias=bias)

    def forward(self, x: Tensor, scheme: PositionScheme, plan: LayerPlan) -> Tensor:
        """[B T M] -> [B T M]."""
        q, k, v = map(self.split, self.to_qkv(x).split(self.widths, dim=-1))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        content = q  # before rotation: what content-dependent terms read
        q, k = scheme.rotate_q(q, plan.tables), scheme.rotate_k(k, plan.tables)
        state = scheme.key_state(x)
        if plan.cache is not None and plan.view is not None:
            k, v, state = plan.cache.write(plan.layer, plan.view, k, v, state)
        ops = self.ops(scheme, content, state, plan.planned)
        if plan.anchors is not None:
            moved = scheme.rotate_q(content, plan.anchors.tables)
            ops = replace(ops, content=add([ops.content, plan.anchors.correction(moved, q, k, self.scale)]))
        return self.join(plan.backend.attend(q, k, v, plan.planned, ops))


class CrossAttention(_Heads):
    """Attention to a context. Its keys are computed once and kept by the cache."""

    def __init__(
        self, dim: int, heads: int, kv_heads: int, head_dim: int, *, context_dim: int, bias: bool = False, **shared: Any
    ):
        super().__init__(dim, heads, kv_heads, head_dim, bias=bias, **shared)
        self.to_q = nn.Linear(dim, heads * head_dim, bias=bias)
        self.to_kv = nn.Linear(context_dim, 2 * kv_heads * head_dim, bias=bias)

    def forward(self, x: Tensor, scheme: PositionScheme, plan: CrossPlan) -> Tensor:
        """[B T M] -> [B T M]."""
        q = self.split(self.to_q(x))
        q = q if self.q_norm is None else self.q_norm(q)
        content = q
        if plan.rotated:
            q = scheme.rotate_q(q, plan.q_tables)
        k, v = self._keys(scheme, plan)
        ops = self.ops(scheme if plan.rotated else None, content, None, plan.planned)
        out = plan.backend.attend(q, k, v, plan.planned, ops)
        return self.join(out if plan.reads is None else out * plan.reads)

    def _keys(self, scheme: PositionScheme, plan: CrossPlan) -> tuple[Tensor, Tensor]:
        held = None if plan.cache is None else plan.cache.cross[plan.layer]
        if held is not None:
            return held
        if plan.context is None:
            raise ValueError("cross-attention needs context= (or a cache that has seen it)")
        k, v = map(self.split, self.to_kv(plan.context).chunk(2, dim=-1))
        k = k if self.k_norm is None else self.k_norm(k)
        if plan.rotated:
            k = scheme.rotate_k(k, plan.k_tables)
        if plan.cache is not None:
            plan.cache.cross[plan.layer] = (k, v)
        return k, v
