"""FlexAttention: biases and masks are functions inside the kernel, so there is no T x S tensor.

B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head dim, E value dim.
"""

import functools
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from x_positional.attention.backends.base import Backend, Prepared, ScoreOps
from x_positional.errors import BackendError
from x_positional.schemes.base import AttentionContext, Bias


@functools.cache
def _compiled(functions: tuple[Any, ...]) -> Callable[..., Tensor]:
    """FlexAttention compiled for score and mask functions with this code.

    torch counts recompilations per code object, and after a few of them runs the function uncompiled. So every combination of
    functions gets a code object of its own, in which only shapes and captured tensors vary.
    """

    def run(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
        return flex_attention(q, k, v, **options)

    run.__code__ = run.__code__.replace()
    return torch.compile(run, dynamic=True)


def _code_of(fn: Any) -> Any:
    """The code of a function and of the functions that it captures: equal where it traces to the same kernel."""
    if isinstance(fn, list | tuple):
        return tuple(map(_code_of, fn))
    if not isinstance(fn, FunctionType):
        return None
    return fn.__code__, tuple(_code_of(cell.cell_contents) for cell in fn.__closure__ or ())


def _uncompiled(q: Tensor, k: Tensor, v: Tensor, **options: Any) -> Any:
    """The reference. torch warns that it is slow; `describe()` says so too."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="flex_attention called without torch.compile")
        return flex_attention(q, k, v, **options)


class Flex(Backend):
    """Compiled on CUDA. On CPU it runs uncompiled, forward only: a reference, not a fast path."""

    name = "flex"
    kernels = frozenset(("fused", "bias"))
    refuses: ClassVar[dict[str, str]] = {
        "sinks": "FlexAttention does not support attention sinks",
        "dropout": "FlexAttention does not support dropout",
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
        biases = [b.fn for b in (prepared.bias, ops.content) if b is not None]
        # a tensor, because a captured float would be compiled in: another value, another kernel
        cap = None if ops.softcap is None else q.new_full((), ops.softcap, dtype=torch.float32)
        if on_cpu:
            run = _uncompiled
        elif torch.compiler.is_compiling():
            run = flex_attention
        else:
            run = _compiled((_code_of(biases), _code_of(prepared.ctx.visible), cap is None))

        def score_mod(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            for fn in biases:
                score = score + fn(b, h, i, j)  # float32 if either is; torch traces this with scores in the dtype of q
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
