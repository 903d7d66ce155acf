"""The interface of attention backends. They see tensors and functions, never modules.

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
    """What is done to the scores of one layer, in this order: scale * q.k + biases, soft cap, transform, mask, sinks."""

    scale: float
    content: Bias | None = None
    """The part of the bias that depends on the layer's content."""
    transform: RowFn | None = None
    """(scores, visible, unrotated q, ctx) -> scores, on whole rows."""
    unrotated_q: Tensor | None = None
    """[B H T D], for `transform`."""
    softcap: float | None = None
    """c: scores become c * tanh(score / c)."""
    sinks: Tensor | None = None
    """[H] logits of a key without a value."""
    dropout: float = 0.0
    """Of the probabilities."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What the layers of one kind share in a forward pass."""

    ctx: AttentionContext
    bias: Bias | None
    """The part of the bias that depends on positions alone."""
    native: Any = None
    """The backend's own form of mask and bias."""


def blocks_of(ctx: AttentionContext, size: int) -> list[tuple[Span, Span]]:
    """Blocks of `size` queries, each with the range of keys visible to them."""
    rows = (Span(start, min(start + size, ctx.T)) for start in range(0, ctx.T, size))
    return [(block, ctx.keys_of(block)) for block in rows]


class Backend:
    """A way to compute attention. `prepare` runs once per forward pass and kind of layer, `attend` once per layer."""

    name: ClassVar[str]
    kernels: ClassVar[frozenset[Kernel]]
    """The classes of schemes that it supports."""
    refuses: ClassVar[dict[str, str]] = {}
    """Score features that it does not support, each with the reason."""
    portable: ClassVar[bool] = True
    """Runs on every device and in every dtype."""

    def prepare(self, ctx: AttentionContext, bias: Bias | None, dtype: torch.dtype) -> Prepared:
        """The work that all layers of a kind share."""
        return Prepared(ctx=ctx, bias=bias)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, prepared: Prepared, ops: ScoreOps) -> Tensor:
        """[B H T D], [B G S D], [B G S E] -> [B H T E]."""
        raise BackendError(f"backend {self.name!r} does not implement attend().")
