"""The steps of one call of `generate` that run as a compiled graph, and when they do.

B batch, M model dim, V vocabulary.
"""

import logging
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from x_positional.attention.cache import KVCache
from x_positional.attention.cache_fixed import FixedCache, fixed_state, grown_size, padded_rows
from x_positional.attention.cache_slots import SlotTable
from x_positional.generation.sampling import race_times, usable_temperature
from x_positional.generation.step.captured import CapturedStep, step_of
from x_positional.generation.step.graph import GRAPHS, CompileError, Drawn, Graph, GraphDraw, fingerprint
from x_positional.schemes.precision import wide_dtype

Compile = bool | Literal["auto"]
"""Whether to compile the decoding step: "auto" does where it pays."""

PAYS_AFTER = 20_000
"""Steps of a model after which "auto" compiles: half a minute of compiling, at a millisecond or two that each step gains."""

_log = logging.getLogger(__name__)


class CompiledSteps:
    """The steps of one call, after the prompt is in the cache.

    Args:
        net: the model, in eval mode.
        cache: holds the prompt. It follows each step if `stores`; otherwise it stays as it is.
        draw: the draw in the graph, if it is.
        temperature: of the draw.
        by_row: rows may end at different steps.
        stores: the cache outlives the call.
        backend: of torch.compile; None is that of `GRAPHS`.
    """

    def __init__(
        self,
        net: Any,
        cache: KVCache,
        draw: GraphDraw | None,
        temperature: float,
        *,
        by_row: bool,
        stores: bool,
        backend: Any = None,
    ):
        self.net, self.cache, self.draw = net, cache, draw
        self.by_row, self.stores = by_row, stores
        self.backend = GRAPHS.backend if backend is None else backend
        self.before, self.span, self.batch = cache.state, cache.span, cache.batch_size
        self.rows = 1 << (self.batch - 1).bit_length()
        dtype = next(net.parameters()).dtype
        self.temperature: Tensor | None = None
        if temperature and draw:
            usable = usable_temperature(temperature, dtype)
            self.temperature = torch.tensor(usable, dtype=wide_dtype(dtype), device=cache.device)
        self._hold(cache)
        self.key = self._key()

    @cached_property
    def graph(self) -> Graph:
        """The graph, compiled at the first step. Finding it hashes the whole fingerprint, so that happens once."""
        return GRAPHS.get(self.net, self.key, self.backend)

    @property
    def ready(self) -> bool:
        """Whether the graph is compiled."""
        graph = GRAPHS.find(self.net, self.key)
        return graph is not None and graph.ready

    @property
    def failed(self) -> bool:
        """Whether torch could not compile the graph in an earlier call."""
        graph = GRAPHS.find(self.net, self.key)
        return graph is not None and graph.error is not None

    def feed(
        self, token: Tensor, alive: Tensor, generator: torch.Generator | None, *, draws: bool
    ) -> tuple[Tensor, Drawn | None]:
        """Feed one token a row, [B].

        Args:
            token: [B].
            alive: [B] rows that have not ended.
            generator: of the draw.
            draws: the draw is used, so it takes from the generator.

        Returns:
            The hidden state [B M] that predicts the next token, and what the graph draws.

        Raises:
            CompileError: before anything is changed.
            CacheError: parameters changed since the cache was filled.
        """
        self.cache.check(self.cache.owner, self.batch, token.device, self.net.stamp())
        if self.span == self.held.size:
            self._hold(self.cache.in_state(self.held.state(self.span)))
        held, rows = self.held, self.rows
        alive_rows = padded_rows(alive, rows) if self.by_row else None
        inputs = padded_rows(token, rows), alive_rows, held.changing, held.stored
        times = self._times(token, generator, draws)
        step = self.step = self.step or step_of(self.graph, token.device, keeps=self.stores)
        x, drawn, held.changing = step(self.net, held.form, self.draw, *inputs, self.reach, self.temperature, times)
        self.span += 1
        if self.stores:
            self._store()
        if self.rows != self.batch:
            x, drawn = x[: self.batch], drawn and (drawn[0][: self.batch], drawn[1][: self.batch])
        return x, drawn if draws else None

    def _hold(self, cache: KVCache) -> None:
        """Take the tensors of a cache, with room for more tokens."""
        self.held = FixedCache(cache, fixed_state(cache, grown_size(self.span), self.rows))
        self.step: Graph | CapturedStep | None = None
        self.reach = torch.empty(self.held.size, 0, device=cache.device)
        for tensor, dim in (*self.held.sizes(), (self.reach, 0)):
            torch._dynamo.maybe_mark_dynamic(tensor, dim)  # a symbol of the graph, where that is possible

    def _times(self, token: Tensor, generator: torch.Generator | None, draws: bool) -> Tensor | None:
        """[rows V] of `race`."""
        if self.temperature is None:
            return None
        logits = torch.empty(self.batch, self.net.num_tokens, dtype=self.temperature.dtype, device=token.device)
        return padded_rows(race_times(logits, generator) if draws else torch.ones_like(logits), self.rows)

    def _store(self) -> None:
        """Bring the cache up to date."""
        state, batch, rows = self.held.state(self.span), self.batch, self.rows
        if rows != batch:
            state = replace(state.map(lambda t: t[:batch] if t.shape[0] == rows else t), batch_size=batch)
        if self.before.lengths is None and not self.by_row:  # rows are alike: the host knows where tokens are
            tables = tuple(
                SlotTable(capacity=table.capacity) if old.index is None else table
                for old, table in zip(self.before.tables, state.tables, strict=True)
            )
            state = replace(state, lengths=None, tables=tables)
        self.cache.commit(state)

    def _key(self) -> tuple[Any, ...]:
        """What the graph depends on."""
        how = self.rows, self.by_row, self.draw, self.temperature is None, self.backend
        return fingerprint(self.net), self.held.signature(), how


def refusals(net: Any, original: Any, cache: KVCache | None, length_dependent: Iterable[Any]) -> Iterator[str]:
    """Why a decoding step cannot be compiled."""
    if net is not original:
        yield "the model is in training mode, so it decodes on a copy of its modules. Call model.eval() first"
    if cache is None:
        yield "cache_kv=False computes the whole sequence at each step"
    if names := ", ".join(type(scheme).__name__ for scheme in length_dependent):
        yield f"{names} changes the keys of earlier tokens as the sequence grows, so the cache is recomputed on the way"
    if cache is not None and cache.state.weights_move:
        yield "a wrapper in the model changes its parameters at each call"
    if next(net.parameters()).device.type == "cpu" and not cpp_compilers():
        yield "no C++ compiler was found. Install g++ or clang++, or set the environment variable CXX"


def worth_a_look(net: Any, count: int) -> bool:
    """Whether "auto" may compile: there is a graph, or the model has been asked for enough steps, these `count` included."""
    return GRAPHS.count_steps(net, count) >= PAYS_AFTER or GRAPHS.any_of(net)


def pays(steps: CompiledSteps) -> bool:
    """Whether "auto" compiles: the graph exists, or the model has been asked for enough steps on a CPU and has not failed yet."""
    if steps.failed:
        return False
    return steps.ready or (GRAPHS.count_steps(steps.net, 0) >= PAYS_AFTER and steps.cache.device.type == "cpu")


def announce() -> None:
    """Log that the next step takes long."""
    _log.warning(
        "compiling the decoding step of this model (about half a minute, once for each batch size up to a power of two); "
        "compile=False decodes without."
    )


def give_up(error: CompileError) -> None:
    """Log that decoding goes on without a graph."""
    _log.warning("%s Decoding goes on without.", error)


def cpp_compilers() -> list[str]:
    """The C++ compilers that torch would try, of those that exist."""
    from torch._inductor.config import cpp  # takes seconds to import

    wanted = cpp.cxx
    names = wanted if isinstance(wanted, list | tuple) else [wanted]
    return [name for name in names if name and shutil.which(name)]
