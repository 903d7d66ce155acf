"""torch's varlen_attn: the sequences of all rows concatenated, so the kernel sees neither padding nor other documents.

B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head dim; P tokens of all rows, N sequences.
"""

import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from x_positional.attention.backends.base import Backend, Prepared, ScoreOps
from x_positional.attention.backends.eager import share_heads
from x_positional.attention.backends.sdpa import Sdpa
from x_positional.errors import BackendError
from x_positional.schemes.base import NO_TOKEN, AttentionContext, Bias

VarlenKernel = Callable[..., Any]
HALF = (torch.float16, torch.bfloat16)
FLASH_MAX, FLASH_STEP = 256, 8
"""Flash attention supports head dims up to the first, in multiples of the second."""


@functools.cache
def torch_kernel() -> VarlenKernel | None:
    """torch's varlen_attn; None in a torch without one that takes a scale and a window."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    return varlen_attn if {"scale", "window_size"} <= inspect.signature(varlen_attn).parameters.keys() else None


def varlen_problems(device: str | None, dtype: torch.dtype | None, qk: int, v: int) -> list[str]:
    """Why torch's kernel does not support these; qk, v: head dims of queries and keys, and of values. None: not known yet."""
    found = {
        f"it runs on CUDA, and the device is {device}": device not in (None, "cuda"),
        f"it supports float16 and bfloat16, not {str(dtype).removeprefix('torch.')}": dtype not in (None, *HALF),
        f"it needs equal head dims of q, k and v, not {qk} and {v}": qk != v,
        f"it supports head dims up to {FLASH_MAX}, not {qk}": qk > FLASH_MAX,
        f"it needs a head dim that is a multiple of {FLASH_STEP}, not {qk}": bool(qk % FLASH_STEP),
        f"torch {torch.__version__} has no varlen_attn that takes a scale and a window": torch_kernel() is None,
    }
    return [problem for problem, holds in found.items() if holds]


@dataclass(frozen=True)
class Packed:
    """All rows concatenated."""

    offsets: Tensor
    """[N + 1] int32: where each sequence starts, and P."""
    longest: int
    """Tokens of the longest sequence."""
    slots: Tensor | None
    """[P] which of the B * T slots hold a token; None where all do."""


def pack(ctx: AttentionContext) -> Packed | None:
    """The rows, or the documents of packed rows, without padding. None where a document continues after another one, which
    would split it in two. Forces a device sync, once a forward pass."""
    names = torch.arange(ctx.batch, device=ctx.device).repeat_interleave(ctx.T)[None]
    if ctx.q_documents is not None:
        names = torch.cat([names, ctx.q_documents.flatten()[None]])
    slots = None
    if not ctx.ordered:
        slots = (ctx.q_index.expand(ctx.batch, -1).flatten() != NO_TOKEN).nonzero()[:, 0]
        names = names[:, slots]
    first = torch.ones_like(names[0], dtype=torch.bool)
    first[1:] = (names[:, 1:] != names[:, :-1]).any(dim=0)
    starts = first.nonzero()[:, 0]
    if ctx.q_documents is not None and names[:, starts].unique(dim=1).shape[1] < len(starts):
        return None
    offsets = torch.cat([starts, starts.new_tensor([len(first)])])
    longest = int(offsets.diff().max()) if len(starts) else 0
    return Packed(offsets.int(), longest, slots)


class Varlen(Backend):
    """Self-attention over whole sequences. Everything else runs on sdpa, with the same result: decoding with a cache,
    cross-attention, documents that continue after another one, attention_mask and prefix_len.

    Args:
        kernel: called like torch's `varlen_attn`, which is the default.
    """

    name = "varlen"
    kernels = frozenset(("fused",))
    portable = False
    refuses: ClassVar[dict[str, str]] = {
        "softcap": "varlen_attn does not support a soft cap on scores",
        "sinks": "varlen_attn does not support attention sinks",
        "dropout": "varlen_attn does not support dropout",
        "chunk": "varlen_attn supports windows, not chunks",
        "keep_first": "varlen_attn does not support keep_first beside a window",
        "scores": "varlen_attn does not support schemes that change scores",
    }

    def __init__(self, kernel: VarlenKernel | None = None):
        self.kernel, self.fallback = kernel, Sdpa()

    def prepare(self, ctx: AttentionContext, bias: Bias | None, dtype: torch.dtype) -> Prepared:
        packed = None
        if ctx.q_index is ctx.kv_index and ctx.custom_mask is None:  # self-attention of a whole pass
            self._refuse(
                {
                    "chunk": ctx.window.chunk is not None,
                    "keep_first": ctx.window.keep_first > 0,
                    "scores": bias is not None,
                }
            )
            packed = pack(ctx)
        return (
            self.fallback.prepare(ctx, bias, dtype) if packed is None else Prepared(ctx=ctx, bias=None, native=packed)
        )

    def attend(self, q: Tensor, k: Tensor, v: Tensor, prepared: Prepared, ops: ScoreOps) -> Tensor:
        packed = prepared.native
        if not isinstance(packed, Packed):
            return self.fallback.attend(q, k, v, prepared, ops)
        kernel = self._kernel(q, v, ops)
        if not packed.longest:  # padding alone
            return q.new_zeros(*q.shape[:3], v.shape[-1])
        options = {"enable_gqa": True} if takes_groups(kernel) else {}
        if not options:
            k, v = share_heads(k, q.shape[1]), share_heads(v, q.shape[1])
        out = kernel(
            *(_in_line(x, packed.slots) for x in (q, k, v)),
            packed.offsets,
            packed.offsets,
            packed.longest,
            packed.longest,
            scale=ops.scale,
            window_size=_window(prepared.ctx),
            **options,
        )
        if packed.slots is not None:
            line = out.new_zeros(q.shape[0] * q.shape[2], *out.shape[1:])
            out = line.index_copy(0, packed.slots, out)
        return torch.unflatten(out, 0, (q.shape[0], q.shape[2])).transpose(1, 2)

    def _kernel(self, q: Tensor, v: Tensor, ops: ScoreOps) -> VarlenKernel:
        """Raises BackendError where the kernel does not support what is needed."""
        asked = {
            "softcap": ops.softcap is not None,
            "sinks": ops.sinks is not None,
            "dropout": ops.dropout > 0,
            "scores": ops.content is not None or ops.transform is not None,
        }
        kernel = self.kernel or torch_kernel()
        theirs = varlen_problems(q.device.type, q.dtype, q.shape[-1], v.shape[-1]) if self.kernel is None else []
        self._refuse(asked, theirs)
        if kernel is None:
            raise BackendError(f"torch {torch.__version__} has no varlen_attn. Use backend='sdpa' or 'auto'.")
        return kernel

    def _refuse(self, asked: dict[str, bool], others: Sequence[str] = ()) -> None:
        found = [self.refuses[name] for name, is_on in asked.items() if is_on] + list(others)
        if found:
            raise BackendError(
                f"backend='varlen' does not support this: {'; '.join(found)}. Use backend='sdpa' or 'auto'."
            )


@functools.cache
def takes_groups(kernel: VarlenKernel) -> bool:
    """Whether it takes `enable_gqa`; otherwise key heads are repeated for it."""
    return "enable_gqa" in inspect.signature(kernel).parameters


def _in_line(x: Tensor, slots: Tensor | None) -> Tensor:
    """[B H T D] -> [P H D]."""
    line = x.transpose(1, 2).flatten(0, 1)
    return line if slots is None else line.index_select(0, slots)


def _window(ctx: AttentionContext) -> tuple[int, int]:
    """How many keys before and after its own are visible to a query; -1 is all."""
    side = -1 if ctx.window.size is None else ctx.window.size - 1
    return side, 0 if ctx.causal else side
