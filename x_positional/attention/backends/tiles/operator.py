"""Attention by tiles as an operator of torch: one node of a graph of torch.compile, for any number of tiles.

A graph holds tensors and numbers, but no objects. So a plan is written as those, and read again at each call.

B batch, T query tokens, S key tokens, H heads, D head dim, E value dim.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from x_positional.attention import masks
from x_positional.attention.backends.base import SeededDropout, no_autocast
from x_positional.attention.backends.tiles.cap_and_sinks import sink_gradient
from x_positional.attention.backends.tiles.distance import DistanceBias
from x_positional.attention.backends.tiles.forward import empty_results, forward_pass
from x_positional.attention.backends.tiles.geometry import TilePlan, blocks_for
from x_positional.attention.backends.tiles.gradients import tile_gradients
from x_positional.errors import BackendError
from x_positional.schemes.base import AttentionContext, AttentionWindow
from x_positional.schemes.precision import widened
from x_positional.schemes.terms import Rebuilt, SumTerm

FIELDS = tuple(f.name for f in fields(AttentionContext) if f.name not in ("window", "memo", "visible"))
"""Of a context: all but the window, the memo, and the mask, which follows from the others."""


@dataclass
class Written:
    """What a plan consists of, in the order in which it was written."""

    inputs: list[Tensor] = field(default_factory=list)
    """Floating tensors of the terms, which may have a gradient; half precision as float32."""
    others: list[Tensor] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    reals: list[float] = field(default_factory=list)
    code: list[str] = field(default_factory=list)
    """Of each value what it is."""
    complete: bool = True
    """False where something cannot be written."""

    def write(self, value: Any) -> None:
        """Tensors, numbers, None, tuples, the context in place of which `context` is read, and objects with `arguments`."""
        if isinstance(value, Tensor) and value.is_floating_point():
            self._put("input" if value.requires_grad else "fixed", self.inputs, widened(value))
        elif isinstance(value, Tensor):
            self._put("other", self.others, value)
        elif value is None or isinstance(value, bool):
            self.code.append({None: "none", False: "false", True: "true"}[value])
        elif isinstance(value, float):
            self._put("real", self.reals, value)
        elif isinstance(value, AttentionContext):
            self.code.append("context")
        elif isinstance(value, tuple):
            self._put_all("tuple", value)
        elif isinstance(value, Rebuilt):
            arguments = value.arguments
            if arguments is None:
                self.complete = False
            else:
                self._put_all(value.kind(), arguments)
        else:
            self._put("int", self.numbers, value)

    def write_context(self, ctx: AttentionContext) -> None:
        """All that a context consists of."""
        for name in FIELDS:
            value = getattr(ctx, name)
            if isinstance(value, Tensor):  # positions may be floats, and have no gradient
                self._put("other", self.others, value)
            else:
                self.write(value)
        for part in (ctx.window.size, ctx.window.chunk, ctx.window.keep_first, ctx.visible is not None):
            self.write(part)

    def _put(self, code: str, where: list[Any], value: Any) -> None:
        self.code.append(code)
        where.append(value)

    def _put_all(self, code: str, parts: Sequence[Any]) -> None:
        self.code.append(f"{code} {len(parts)}")
        for part in parts:
            self.write(part)


@dataclass(frozen=True)
class Reader:
    """Reads what was written."""

    sources: dict[str, Iterator[Any]]
    code: Iterator[str]
    context: AttentionContext | None = None

    def read(self) -> Any:
        """The next value."""
        code = next(self.code)
        if code in self.sources:
            return next(self.sources[code])
        plain = {"none": None, "false": False, "true": True, "context": self.context}
        if code in plain:
            return plain[code]
        kind, count = code.split()
        parts = tuple(self.read() for _ in range(int(count)))
        return parts if kind == "tuple" else Rebuilt.kinds[kind](*parts)

    def read_context(self) -> AttentionContext:
        """The context."""
        given = {name: self.read() for name in FIELDS}
        size, chunk, keep_first, hides = (self.read() for _ in range(4))
        ctx = AttentionContext(**given, window=AttentionWindow(size, chunk, keep_first))
        return replace(ctx, visible=masks.visible(ctx)) if hides else ctx


def attend_in_graph(
    tensors: Sequence[Tensor], sinks: Tensor | None, ctx: AttentionContext, scale: float, terms: SumTerm, dropout: float
) -> Tensor | None:
    """The operator's result [B H T E] for q, k and v; None where a term cannot be written."""
    written = Written()
    written.write_context(ctx)
    written.write(float(scale))
    written.write(SeededDropout.drawn_in_graph() if dropout > 0 else None)
    written.write(float(dropout))
    written.write(terms)
    if not written.complete:
        return None
    q, k, v = tensors
    inputs, others = written.inputs, written.others
    code = ",".join(written.code)
    return _attention(q, k, v, sinks, inputs, others, written.numbers, written.reals, code)[0]


def _plan(
    inputs: Sequence[Tensor], others: Sequence[Tensor], numbers: Sequence[int], reals: Sequence[float], code: str
) -> TilePlan:
    floats = iter(inputs)
    sources = {"input": floats, "fixed": floats, "other": iter(others), "int": iter(numbers), "real": iter(reals)}
    reader = Reader(sources, iter(code.split(",")))
    ctx = reader.read_context()
    scale, seed, rate = reader.read(), reader.read(), reader.read()
    dropout = None if seed is None else SeededDropout(rate, int(seed))
    return TilePlan(ctx, blocks_for(ctx), scale, replace(reader, context=ctx).read(), dropout)


def _wanted(code: str) -> list[bool]:
    """Which inputs need a gradient."""
    return [part == "input" for part in code.split(",") if part in ("input", "fixed")]


@torch.library.custom_op("x_positional::attention_by_tiles", mutates_args=())
def _attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    inputs: Sequence[Tensor],
    others: Sequence[Tensor],
    numbers: Sequence[int],
    reals: Sequence[float],
    code: str,
) -> tuple[Tensor, Tensor]:
    """The result [B H T E] and its log-sum-exp [B H T 1].

    Args:
        q, k, v: as in TiledAttention.
        sinks: [H].
        inputs, others, numbers, reals, code: as in Written.
    """
    with no_autocast():
        plan = _plan(inputs, others, numbers, reals, code)
        return forward_pass(plan, (q, k, v), sinks, inputs)[:2]


@_attention.register_fake
def _empty(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sinks: Tensor | None,
    inputs: Sequence[Tensor],
    others: Sequence[Tensor],
    numbers: Sequence[int],
    reals: Sequence[float],
    code: str,
) -> tuple[Tensor, Tensor]:
    return empty_results(q, v)


@torch.library.custom_op("x_positional::attention_by_tiles_backward", mutates_args=())
def _gradients(
    grad: Tensor,
    result: Sequence[Tensor],
    tensors: Sequence[Tensor],
    inputs: Sequence[Tensor],
    others: Sequence[Tensor],
    numbers: Sequence[int],
    reals: Sequence[float],
    code: str,
) -> list[Tensor]:
    """The gradients of q, k, v, the sinks and the inputs; an empty one where none is wanted.

    Args:
        grad: [B H T E].
        result: both results of `_attention`.
        tensors: q, k, v, and the sinks if there are some.
        inputs, others, numbers, reals, code: as for `_attention`.
    """
    (out, logsumexp), (q, k, v, *sinks) = result, tensors
    with no_autocast():
        plan = _plan(inputs, others, numbers, reals, code)
        bias = DistanceBias.of(plan, (q, k, v), inputs)
        found = tile_gradients(plan, bias, (q, k, v, out, logsumexp), inputs, grad, _wanted(code))
        of_sinks = [sink_gradient(own, out, logsumexp, grad) for own in sinks]
    of_each = [*found[:3], *of_sinks, *found[3:]]
    return [q.new_empty(0) if t is None else t for t in of_each]


@_gradients.register_fake
def _empty_gradients(
    grad: Tensor,
    result: Sequence[Tensor],
    tensors: Sequence[Tensor],
    inputs: Sequence[Tensor],
    others: Sequence[Tensor],
    numbers: Sequence[int],
    reals: Sequence[float],
    code: str,
) -> list[Tensor]:
    of_inputs = [t if asked else t.new_empty(0) for t, asked in zip(inputs, _wanted(code), strict=True)]
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (*tensors, *of_inputs)]


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, sinks, floats, others, *ctx.described = inputs
    tensors = (q, k, v) if sinks is None else (q, k, v, sinks)
    ctx.given, ctx.floats = len(tensors), len(floats)
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, *tensors, *floats, *others)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Any, ...]:
    saved, after = list(ctx.saved_tensors), 2 + ctx.given
    result, tensors, inputs, others = (
        saved[:2],
        saved[2:after],
        saved[after : after + ctx.floats],
        saved[after + ctx.floats :],
    )
    found = _gradients(grad, result, tensors, inputs, others, *ctx.described)
    of_sinks = found[3] if ctx.given > 3 else None
    of_inputs = [t if asked else None for t, asked in zip(found[ctx.given :], _wanted(ctx.described[-1]), strict=True)]
    return *found[:3], of_sinks, of_inputs, [None] * len(others), None, None, None


def _refuse(ctx: Any, *grads: Any) -> tuple[Any, ...]:
    raise BackendError(
        "A gradient of a gradient (create_graph=True) of attention in a graph of torch.compile is not computed. Call the model "
        'without torch.compile for it, or build it with backend="eager".'
    )


_attention.register_autograd(_backward, setup_context=_keep)
_gradients.register_autograd(_refuse)
