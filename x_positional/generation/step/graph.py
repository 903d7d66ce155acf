"""One decoding step as one compiled graph, shared by all calls on a model.

The graph takes the cache as tensors (`attention/cache_fixed.py`), so it serves every prompt and length. torch.compile would
check at each step that nothing in the model changed, which takes longer than the step of a small model. Here the structure is
checked once a call, by `fingerprint`, and parameters at each step, by the cache.

B batch, M model dim, V vocabulary.
"""

import itertools
import threading
import types
import weakref
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from x_positional.attention.cache_fixed import FixedForm, changing_leaves
from x_positional.errors import InputError
from x_positional.generation.sampling import FILTERS, LogitsFilter, race

INDUCTOR = "inductor"
"""The backend of torch.compile that generates code."""

Drawn = tuple[Tensor, Tensor]
"""Tokens [B] and the largest filtered logits [B]."""


@dataclass(frozen=True)
class GraphDraw:
    """A draw that is part of the graph: filters with their options."""

    filters: tuple[tuple[LogitsFilter, tuple[tuple[str, Any], ...]], ...]

    @classmethod
    def of(cls, filters: Iterable[LogitsFilter]) -> "GraphDraw | None":
        """The draw with these filters; None where one is a function of the caller's, which might not compile."""
        known = [f for f in filters if isinstance(f, partial) and f.func in FILTERS.values()]
        if len(known) < len(list(filters)):
            return None
        return cls(tuple((f.func, tuple(sorted(f.keywords.items()))) for f in known))

    def __call__(self, logits: Tensor, temperature: Tensor | None, times: Tensor | None) -> Drawn:
        """Logits [B V] -> a token a row. temperature: [], None is 0. times: [B V] of `race`, None at temperature 0."""
        for keep, options in self.filters:
            logits = keep(logits, **dict(options))
        if temperature is None or times is None:
            largest, tokens = logits.max(-1)
            return tokens, largest
        return race(logits, temperature, times)


def decode_step(
    net: Any,
    form: FixedForm,
    draw: GraphDraw | None,
    token: Tensor,
    alive: Tensor | None,
    changing: Sequence[Tensor],
    stored: Sequence[Tensor],
    reach: Tensor,
    temperature: Tensor | None,
    times: Tensor | None,
) -> tuple[Tensor, Drawn | None, list[Tensor]]:
    """Reads one token a row and draws the next one.

    Args:
        net: the model.
        form: of the cache.
        draw: how the next token is drawn; None leaves that to the caller.
        token: [B].
        alive: [B] bool, rows that have not ended; None for all of them.
        changing, stored: the cache's tensors; `stored` is written to.
        reach: [N 0]; N is an upper bound of every index after this step, exclusive. It is a size since those can be symbols.
        temperature: [] of the draw; None is 0.
        times: [B V] of the draw.

    Returns:
        The hidden state [B M] that predicts the next token, what was drawn, and the tensors that replace `changing`.
    """
    form.unite_sizes(changing, stored, reach.shape[0])
    cache = form.cache.in_state(form.state(changing, stored, reach.shape[0] - 1))
    mask = None if alive is None else alive[:, None]
    x = net(token[:, None], mask=mask, cache=cache, return_embeddings=True, checked=True)[:, -1]
    return x, None if draw is None else draw(net.logits(x), temperature, times), changing_leaves(cache.state)


class Graph:
    """`decode_step` compiled for one structure of model and cache. Threads may share it."""

    _numbers = itertools.count()

    def __init__(self, device: torch.device, backend: Any) -> None:
        # torch keeps its graphs with the code of a function, so each graph has a copy of that code
        code = decode_step.__code__.replace(co_name=f"decode_step_{next(self._numbers)}")
        step = types.FunctionType(code, decode_step.__globals__)
        options: dict[str, Any] = {"guard_filter_fn": _guards_of_sizes}
        if device.type == "cpu" and backend == INDUCTOR:
            from x_positional.generation.step import products  # imports what torch.compile needs now, for seconds

            options["cpp_wrapper"] = True
            if products.build():
                options["post_grad_custom_pre_pass"] = products.FewRows()
        self._run = torch.compile(step, fullgraph=True, dynamic=False, backend=backend, options=options)
        self._lock = threading.Lock()
        self.ready = False
        self.error: CompileError | None = None
        """Why it does not compile, once that was tried."""
        self.captures = 0
        """How often it was captured as a CUDA graph (`captured.py`)."""
        self.capture_error: str | None = None
        """Why that failed, after which it is not tried again."""

    def __call__(self, *inputs: Any) -> Any:
        """Runs the step, compiled at the first call. Raises CompileError."""
        if self.ready:
            return self._run(*inputs)
        with self._lock:
            if self.error is not None:
                raise self.error
            from torch._dynamo.exc import TorchDynamoException  # takes seconds, and by now torch.compile needs it

            try:
                out = self._run(*inputs)
            except TorchDynamoException as error:
                self.error = CompileError(_reason(error))
                raise self.error from error
            self.ready = True
        return out


def _guards_of_sizes(guards: Sequence[Any]) -> list[bool]:
    """Which of torch's checks stay. `fingerprint` and the key of a graph stand for the others."""
    return [guard.guard_type == "SHAPE_ENV" for guard in guards]


def _reason(error: Exception) -> str:
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"torch cannot compile the decoding step of this model: {line.rstrip('.')}. Pass compile=False."


class CompileError(InputError):
    """The decoding step of a model does not compile."""


class Graphs:
    """The graphs of every model that is alive."""

    def __init__(self) -> None:
        self.backend: Any = INDUCTOR
        self._of_model: weakref.WeakKeyDictionary[nn.Module, dict[Hashable, Graph]] = weakref.WeakKeyDictionary()
        self._steps: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()
        self._lock = threading.Lock()

    def get(self, net: nn.Module, key: Hashable, backend: Any) -> Graph:
        """The graph of a model with this key, compiled at its first call, by a backend of torch.compile."""
        with self._lock:
            known = self._of_model.setdefault(net, {})
            if key not in known:
                known[key] = Graph(next(net.parameters()).device, backend)
            return known[key]

    def find(self, net: nn.Module, key: Hashable) -> Graph | None:
        """That graph, if somebody has asked for it."""
        return self._of_model.get(net, {}).get(key)

    def of(self, net: nn.Module) -> list[Graph]:
        """All graphs of a model."""
        return list(self._of_model.get(net, {}).values())

    def any_of(self, net: nn.Module) -> bool:
        """Whether there is a graph of a model."""
        return net in self._of_model

    def count_steps(self, net: nn.Module, steps: int) -> int:
        """How many steps were asked of a model so far, with these."""
        with self._lock:
            self._steps[net] = self._steps.get(net, 0) + steps
            return self._steps[net]


GRAPHS = Graphs()


def fingerprint(net: nn.Module) -> Hashable:
    """What a graph depends on besides the values of tensors: every module, its hooks and plain attributes, and modes of torch."""
    device = next(net.parameters()).device.type
    modes = (
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled(device),
        torch.get_autocast_dtype(device),
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
        torch.get_float32_matmul_precision(),
    )
    return modes, tuple(_print_of(module) for module in net.modules())


def _print_of(module: nn.Module) -> Hashable:
    state = vars(module)
    plain = tuple((name, value) for name, value in state.items() if type(value) in _PLAIN)
    hooks = tuple(len(value) for name, value in state.items() if name.endswith("_hooks"))
    tensors = tuple(
        None if t is None else (tuple(t.shape), t.stride(), t.dtype, t.device, t.requires_grad)
        for held in (state["_parameters"], state["_buffers"])
        for t in held.values()
    )
    return id(module), plain, hooks, tensors


_PLAIN = (bool, int, float, str, type(None))
