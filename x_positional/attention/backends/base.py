"""What every attention backend is given and returns. Backends see tensors and functions, never modules.

B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head dim, E value dim.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from x_positional.errors import BackendError
from x_positional.schemes.base import AttentionContext, Bias, Kernel, Span

RowFn = Callable[[Tensor, Tensor | None, Tensor, AttentionContext], Tensor]


@dataclass(frozen=True, kw_only=True)
class ScoreOps:
    """What happens to the scores of one layer: (scale * q.k + biases), soft cap, whole-row transform, mask, sinks."""

    scale: float
    content: Bias | None = None
    transform: RowFn | None = None  # (scores, visible, unrotated q, ctx) -> scores
    unrotated_q: Tensor | None = None  # [B H T D], what `transform` reads
    softcap: float | None = None
    sinks: Tensor | None = None  # [H] logits of a key with no value
    dropout: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """One forward pass of one kind of layer: where tokens are, the bias they share, and the kernel's own mask."""

    ctx: AttentionContext
    bias: Bias | None
    native: Any = None


def blocks_of(ctx: AttentionContext, size: int) -> list[tuple[Span, Span]]:
    """Blocks of `size` queries, each with the keys that they may see."""
    rows = (Span(start, min(start + size, ctx.T)) for start in range(0, ctx.T, size))
    return [(block, ctx.keys_of(block)) for block in rows]


class Backend:
    """A way to compute attention. `plan` runs once per forward pass and kind of layer, `attend` once per layer."""

    name: ClassVar[str]
    kernels: ClassVar[frozenset[Kernel]]  # what a scheme may need
    refuses: ClassVar[dict[str, str]] = {}  # score feature -> the reason
    portable: ClassVar[bool] = True  # runs on every device and in every dtype

    def prepare(self, ctx: AttentionContext, bias: Bias | None, dtype: torch.dtype) -> Prepared:
        """The part of the work that all layers of a kind share."""
        return Prepared(ctx=ctx, bias=bias)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, prepared: Prepared, ops: ScoreOps) -> Tensor:
        """[B H T D], [B G S D], [B G S E] -> [B H T E]."""
        raise BackendError(f"backend {self.name!r} defines no attend")
