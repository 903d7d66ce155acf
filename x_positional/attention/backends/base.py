"""The interface of attention backends. They see tensors and functions, never modules.

B batch, T query tokens, S key tokens, H query heads, G key/value heads, D head dim, E value dim.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._C._functorch import (  # type: ignore[import-not-found]
    is_functorch_wrapped_tensor,
    peek_interpreter_stack,
)

from x_positional.errors import BackendError
from x_positional.schemes.base import AttentionContext, Bias, Kernel, Span
from x_positional.schemes.terms import ScoreTerm

RowFn = Callable[[Tensor, Tensor | None, Tensor, AttentionContext], Tensor]


class ScoreOps(NamedTuple):
    """What is done to the scores of one layer, in this order: scale * q.k + biases, soft cap, transform, mask, sinks."""

    scale: float
    content: Bias | None = None
    """The part of the bias that depends on the layer's content."""
    transform: RowFn | None = None
    """(scores, visible, unrotated q, ctx) -> scores, on whole rows."""
    row_term: Callable[[Tensor, AttentionContext], ScoreTerm | None] | None = None
    """(unrotated q, ctx) -> `transform` in place and without autograd, or None."""
    unrotated_q: Tensor | None = None
    """[B H T D], for `transform` and `row_term`."""
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
    term: ScoreTerm | None = None
    """The bias for blocks of queries, where it has such a form."""
    native: Any = None
    """The backend's own form of mask and bias."""


WIDE_BLOCK = 1024
"""Queries in a block on devices other than a CPU: enough to fill them. On a CPU a block has to fit its cache."""


def block_size(on_cpu: int, device: torch.device) -> int:
    """Queries in a block."""
    return on_cpu if device.type == "cpu" else WIDE_BLOCK


def blocks_of(ctx: AttentionContext, size: int) -> list[tuple[Span, Span]]:
    """Blocks of `size` queries, each with the range of keys visible to them."""
    rows = (Span(start, min(start + size, ctx.T)) for start in range(0, ctx.T, size))
    return [(block, ctx.keys_of(block)) for block in rows]


def autocasts(device: str) -> bool:
    """Whether autocast is enabled on a type of device."""
    return torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)


def no_autocast() -> AbstractContextManager[object]:
    """Disables autocast on a CPU, which would compute products in half precision."""
    return torch.autocast("cpu", enabled=False) if autocasts("cpu") else nullcontext()


def inside_torch_func(x: Tensor) -> bool:
    """Whether a transform of torch.func (grad, vmap, ...) runs over a tensor."""
    return not torch.compiler.is_compiling() and is_functorch_wrapped_tensor(x)


def torch_func_runs() -> bool:
    """Whether a transform of torch.func (grad, vmap, ...) is active, over whatever tensor: checkpoints fail there."""
    return not torch.compiler.is_compiling() and peek_interpreter_stack() is not None


@dataclass(frozen=True)
class SeededDropout:
    """Dropout that is drawn for one part of the probabilities at a time, and is drawn again in the backward pass.

    A probability has 16 random bits: the share that is kept is exact to 2^-17, and `factor` belongs to the share itself.
    """

    rate: float
    """The share of probabilities to drop."""
    seed: int

    @classmethod
    def drawn(cls, rate: float) -> "SeededDropout":
        """With a seed of torch's default generator, which manual_seed and activation checkpointing repeat."""
        return cls(rate, int(cls.drawn_in_graph()))

    @staticmethod
    def drawn_in_graph() -> Tensor:
        """The seed [] alone, which a graph of torch.compile holds as a tensor."""
        return torch.randint(2**62, ())

    @property
    def _dropped(self) -> int:
        """Of 2^16 numbers."""
        return round(self.rate * 2**16)

    @property
    def factor(self) -> float:
        """One over the share that is kept; 0 where all are dropped."""
        kept = 2**16 - self._dropped
        return 2**16 / kept if kept else 0.0

    def kept(self, places: Sequence[int], count: int) -> Tensor:
        """[places, count] bool: each row depends on its place, a number, alone."""
        bits, generator = torch.empty(len(places), -(-count // 4), dtype=torch.int64), torch.Generator()
        for row, place in zip(bits, places, strict=True):
            row.random_(torch.iinfo(torch.int64).min, None, generator=generator.manual_seed(self.seed + place))
        if self._dropped == 2**16:
            return torch.zeros(len(places), count, dtype=torch.bool)
        return (bits.view(torch.int16) >= self._dropped - 2**15)[:, :count]


def drop(probabilities: Tensor, rate: float) -> Tensor:
    """Dropout. A rate of 0 is decided in Python, since a compiler may hold rates as symbols, which F.dropout's flag cannot be."""
    return F.dropout(probabilities, rate) if rate > 0 else probabilities


class _OnceDifferentiable(torch.autograd.Function):
    """A gradient as it is, whose own gradient is refused."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, message: str) -> Tensor:
        ctx.message = message
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        raise BackendError(ctx.message)


def refuse_second_derivative(out: Tensor, kernel: str, backend: str) -> None:
    """Make a second derivative through a fused kernel raise BackendError in place of torch's error, which names no way out.

    Costs a hook that does nothing unless the first backward pass has create_graph=True.

    Args:
        out: of the kernel, before any other operation.
        kernel: prefix of the names of the kernel's nodes in the autograd graph. Others are differentiable twice.
        backend: the name of the backend.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or is_functorch_wrapped_tensor(out):
        return  # first: reading grad_fn breaks the graph
    node = out.grad_fn
    if node is None or not node.name().startswith(kernel):
        return
    message = (
        f"backend={backend!r} runs a fused kernel, which torch cannot differentiate twice. For second derivatives "
        "(gradient penalties, Hessians) build the model with backend='eager', or backend='blockwise' for less memory."
    )

    def mark(gradients: tuple[Tensor | None, ...], _: Any) -> tuple[Tensor | None, ...] | None:
        if not torch.is_grad_enabled():
            return None
        return tuple(None if g is None else _OnceDifferentiable.apply(g, message) for g in gradients)

    node.register_hook(mark)


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
