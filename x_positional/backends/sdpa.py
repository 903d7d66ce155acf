"""torch's scaled_dot_product_attention: flash and memory-efficient kernels where they apply.

B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head dim, E value dim.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional.backends.base import Backend, Planned, ScoreOps
from x_positional.scheme import AttentionContext, Bias, Rows


class Sdpa(Backend):
    """The lower triangle and "everything" need no mask tensor; any other mask or bias is one additive tensor."""

    name = "sdpa"
    kernels = frozenset(("fused", "bias"))
    refuses: ClassVar[dict[str, str]] = {
        "softcap": "scaled_dot_product_attention has no place for a soft cap on scores",
        "sinks": "scaled_dot_product_attention has no attention sinks",
    }

    def plan(self, ctx: AttentionContext, bias: Bias | None, dtype: torch.dtype) -> Planned:
        rows = Rows(0, ctx.T)
        if bias is not None:
            return Planned(ctx=ctx, bias=bias, native=bias.dense(ctx, rows).to(dtype))
        mask = None if ctx.visible is None or ctx.plain_causal else ctx.visible_rows(rows)
        return Planned(ctx=ctx, bias=None, native=mask)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, planned: Planned, ops: ScoreOps) -> Tensor:
        mask: Tensor | None = planned.native
        if ops.content is not None:
            content = ops.content.dense(planned.ctx, Rows(0, q.shape[2])).to(q.dtype)
            mask = content if mask is None or mask.dtype == torch.bool else mask + content
        elif mask is not None and mask.dtype not in (torch.bool, q.dtype):
            mask = mask.to(q.dtype)
        is_causal = mask is None and planned.ctx.visible is not None
        return F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=ops.dropout, is_causal=is_causal, scale=ops.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # fmt: skip
