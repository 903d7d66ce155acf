"""A compiled decoding step captured as a CUDA graph: the host launches one graph a token instead of every kernel.

CUDA runs a graph on the addresses it was captured with. Keys and values are written in place, so theirs are fixed for as long as
a cache does not grow. The small inputs get buffers: they are copied in before each replay, and results are copied out after it.
A capture therefore belongs to one call and one size of its cache, and is made anew when the cache grows, once in 256 tokens. The
compiled code is shared by all of them.

Why not `torch.compile(mode="reduce-overhead")`: its graph trees copy inputs whose address changes, and skip graphs that mutate
such inputs, so keys and values would be copied at each step, or need buffers that belong to the model and serve one call at a time.
They also capture one graph for each number of slots, hold all of them, and still go through torch.compile's Python at each token.
The capture here replaces that as well.

Each capture has a memory pool of its own. A pool shared by the captures of a model would save the activations of one token, but
the graphs of two concurrent calls would overwrite each other's intermediate results.

B batch, M model dim, V vocabulary.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from x_positional.attention.cache_fixed import FixedForm
from x_positional.generation.step.graph import Drawn, Graph, GraphDraw

RUNS_BEFORE_CAPTURE = 3
"""Steps that run without a capture: the first one compiles, and the next ones load and tune what a capture must not."""

Result = tuple[Tensor, Drawn | None]
"""Hidden state [B M], and what was drawn."""

_log = logging.getLogger(__name__)


class Recorder(Protocol):
    """Captures work on a device, and replays it."""

    def capture(self, work: Callable[[], Result]) -> Result:
        """Record what `work` launches, without running it. Returns the tensors that each replay writes to."""
        ...

    def replay(self) -> None:
        """Run what was captured, on the tensors that it was captured with."""
        ...


class CudaRecorder:
    """One CUDA graph.

    It is captured on a stream of its own, since the default stream cannot be. `thread_local` lets other threads allocate memory
    meanwhile. cuBLAS keeps one workspace a stream: as torch's own graph trees do, it is dropped before and after, so that a capture
    takes its workspace from its own pool, where nobody else frees or uses it.
    """

    _capturing = threading.Lock()

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], Result]) -> Result:
        from torch._inductor.cudagraph_trees import clear_cublas_manager  # takes seconds, and is loaded by now

        side = torch.cuda.Stream(self._device)
        # torch.cuda.graph does not leave the stream where a capture fails, so that is done around it
        with (
            self._capturing,
            torch.cuda.device(self._device),
            torch.cuda.stream(side),
            clear_cublas_manager(),
            torch.cuda.graph(self._graph, stream=side, capture_error_mode="thread_local"),
        ):
            return work()

    def replay(self) -> None:
        self._graph.replay()


RECORDERS: dict[str, Callable[[torch.device], Recorder]] = {"cuda": CudaRecorder}
"""What captures on a type of device. Without an entry, compiled steps run as they are."""


class CapturedStep:
    """`decode_step` for the tensors of one cache: compiled at first, then captured, then replayed.

    A step that cannot be captured runs compiled, and its `Graph` remembers why.

    Args:
        graph: the compiled step.
        recorder: captures and replays it.
        keeps: the tensors of a step must outlive the next one.
    """

    def __init__(self, graph: Graph, recorder: Recorder, *, keeps: bool) -> None:
        self._graph, self._recorder, self._keeps = graph, recorder, keeps
        self._runs = 0
        self._buffers: _Buffers | None = None
        self._handed_out: list[Tensor] | None = None

    def __call__(
        self,
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
        """As `decode_step`. All but token, alive, changing and times are the same tensors at each call."""
        constant = net, form, draw, stored, reach, temperature
        if self._buffers is None and self._may_capture():
            self._buffers = self._capture(_Buffers(token, alive, changing, times), constant)
        buffers = self._buffers
        if buffers is None:
            return _run(self._graph, constant, token, alive, changing, times)
        buffers.fill(token, alive, None if changing is self._handed_out else changing, times)
        self._recorder.replay()
        x, drawn = self._result
        self._handed_out = [t.clone() for t in buffers.changing] if self._keeps else buffers.changing
        return x.clone(), drawn and (drawn[0].clone(), drawn[1].clone()), self._handed_out

    def _may_capture(self) -> bool:
        self._runs += 1
        return self._runs > RUNS_BEFORE_CAPTURE and self._graph.capture_error is None

    def _capture(self, buffers: "_Buffers", constant: "_Constant") -> "_Buffers | None":
        """The buffers that a replay reads; None if the step cannot be captured, which then has had no effect."""

        def work() -> Result:
            x, drawn, after = _run(self._graph, constant, buffers.token, buffers.alive, buffers.changing, buffers.times)
            for held, new in zip(buffers.changing, after, strict=True):
                held.copy_(new)
            return x, drawn

        try:
            self._result = self._recorder.capture(work)
        except Exception as error:  # one of the step itself is raised again when it runs without a capture
            self._graph.capture_error = _reason(error)
            _log.warning(
                "the decoding step cannot be captured as a CUDA graph (%s); it runs compiled, without one.",
                self._graph.capture_error,
            )
            return None
        self._graph.captures += 1
        # a replay reads these addresses, whoever else lets go of them
        self._held = constant, [t.detach() for t in (*constant[0].parameters(), *constant[0].buffers())]
        return buffers


def _reason(error: BaseException) -> str:
    """The first lines of an error and of the one that caused it: leaving a failed capture raises another error."""
    causes = [error] if error.__context__ is None else [error.__context__, error]
    return ", then ".join(f"{type(e).__name__}: {next(iter(str(e).splitlines()), '')}" for e in causes)


_Constant = tuple[Any, FixedForm, GraphDraw | None, Sequence[Tensor], Tensor, Tensor | None]
"""net, form, draw, stored, reach, temperature."""


def _run(
    graph: Graph,
    constant: _Constant,
    token: Tensor,
    alive: Tensor | None,
    changing: Sequence[Tensor],
    times: Tensor | None,
) -> tuple[Tensor, Drawn | None, list[Tensor]]:
    net, form, draw, stored, reach, temperature = constant
    return graph(net, form, draw, token, alive, changing, stored, reach, temperature, times)


class _Buffers:
    """Copies of the inputs that differ from step to step, at addresses of their own."""

    def __init__(self, token: Tensor, alive: Tensor | None, changing: Sequence[Tensor], times: Tensor | None) -> None:
        self.token = token.clone()
        self.alive = None if alive is None else alive.clone()
        self.changing = [t.clone() for t in changing]
        self.times = None if times is None else times.clone()

    def fill(
        self, token: Tensor, alive: Tensor | None, changing: Sequence[Tensor] | None, times: Tensor | None
    ) -> None:
        """Take the inputs of the next step. changing: None if the buffers hold them already."""
        self.token.copy_(token)
        if self.alive is not None and alive is not None:
            self.alive.copy_(alive)
        if self.times is not None and times is not None:
            self.times.copy_(times)
        for held, new in zip(self.changing, self.changing if changing is None else changing, strict=True):
            if held is not new:
                held.copy_(new)


def step_of(graph: Graph, device: torch.device, *, keeps: bool) -> Graph | CapturedStep:
    """The step of one call for one cache. keeps: as in `CapturedStep`."""
    recorder = RECORDERS.get(device.type)
    return graph if recorder is None else CapturedStep(graph, recorder(device), keeps=keeps)
