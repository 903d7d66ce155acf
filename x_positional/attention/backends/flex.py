"""FlexAttention: biases and masks as functions inside the kernel, so no T x S tensor exists.

B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head dim, E value dim.
"""

import functools
import warnings
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from x_positional.attention.backends.base import Backend, Prepared, ScoreOps
from x_positional.errors import BackendError
from x_positional.schemes.base import AttentionContext, Bias


@functools.cache
def _compiled() -> Callable[..., Tensor]:
    return torch.compile(flex_attention, dynamic=True)


def _uncompiled(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
    """The reference: torch warns that it is slow, which `describe()` has said already."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return flex_attention(q, k, v, **options)


class Flex(Backend):
    """Compiled on CUDA. On CPU it runs uncompiled, forward only: a reference, not a fast path."""

    name = "flex"
    kernels = frozenset(("fused", "bias"))
    refuses: ClassVar[dict[str, str]] = {
        "sinks": "FlexAttention has no attention sinks",
        "dropout": "FlexAttention has no dropout",
    }

    def prepare(self, ctx: AttentionContext, bias: Bias | None, dtype: torch.dtype) -> Prepared:
        if ctx.visible is None:
            return Prepared(ctx=ctx, bias=bias)
        batch = None if ctx.mask_batch == 1 else ctx.batch
        mask = create_block_mask(ctx.visible, batch, None, ctx.T, ctx.S, device=ctx.device)
        return Prepared(ctx=ctx, bias=bias, native=mask)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, prepared: Prepared, ops: ScoreOps) -> Tensor:
        on_cpu = q.device.type == "cpu"
        if on_cpu and torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad):
            raise BackendError("FlexAttention has no backward on CPU. Use backend='sdpa', or torch.no_grad().")
        run = _uncompiled if on_cpu else _compiled()
        if torch.compiler.is_compiling():
            run = flex_attention
        biases = [b.fn for b in (prepared.bias, ops.content) if b is not None]
        cap = ops.softcap

        def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            for fn in biases:
                score = score + fn(b, h, i, j).to(score.dtype)
            return score if cap is None else cap * torch.tanh(score / cap)

        return run(
            q,
            k,
            v,
            score_mod=score_mod if biases or cap is not None else None,
            block_mask=prepared.native,
            scale=ops.scale,
            enable_gqa=q.shape[1] != k.shape[1],
        )  # type: ignore[return-value]
