"""Where the time of a decoded token goes: weights, attention, sampling, other operators, compiled graphs, host."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from x_positional.evidence.benchmark.clock import synchronize

PARTS = {
    "weights": (
        "aten::mm",
        "aten::addmm",
        "aten::mv",
        "aten::addmv",
        "aten::linear",
        "mkldnn",
        "mkl::",
        "int8pack",
        "int4pack",
    ),
    "attention": ("attention", "aten::bmm", "aten::baddbmm", "aten::_softmax", "aten::softmax"),
    "sampling": ("aten::argmax", "aten::topk", "aten::sort", "aten::multinomial", "aten::max", "aten::exponential_"),
    "compiled graph": ("Torch-Compiled", "CompiledFxGraph", "graph_", "cpp_fused", "triton"),
}
OTHER, HOST = "other operators", "host"


@dataclass(frozen=True)
class Part:
    """One line of the answer."""

    name: str
    seconds: float
    """A token."""
    calls: float
    """Operators a token."""


@dataclass(frozen=True)
class Profile:
    """A token of one side."""

    seconds: float
    """A token, measured without the profiler."""
    parts: list[Part]
    """Operators by kind, and the host: what is left of the time of a token."""
    largest: list[Part]
    """The operators that took longest by themselves."""


def profile_decode(generate: Callable[[int], object], new: int, device: torch.device, largest: int = 8) -> Profile:
    """Profile decoding. generate: decodes so many tokens after a fixed prompt; it must be warmed up."""
    each = (_wall(generate, new + 1, device) - _wall(generate, 1, device)) / new
    many, few = _operators(generate, new + 1, device), _operators(generate, 1, device)
    operators = {
        name: Part(name, (total - few.get(name, (0.0, 0))[0]) / new, (calls - few.get(name, (0.0, 0))[1]) / new)
        for name, (total, calls) in many.items()
    }
    return Profile(
        each, _parts(operators.values(), each), sorted(operators.values(), key=lambda p: -p.seconds)[:largest]
    )


def _wall(generate: Callable[[int], object], new: int, device: torch.device) -> float:
    """The fastest of three calls."""
    times = []
    for _ in range(3):
        synchronize(device)
        started = time.perf_counter()
        generate(new)
        synchronize(device)
        times.append(time.perf_counter() - started)
    return min(times)


def _operators(generate: Callable[[int], object], new: int, device: torch.device) -> dict[str, tuple[float, int]]:
    """Operator -> seconds by itself, calls."""
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities) as profiler:
        generate(new)
        synchronize(device)
    events: Iterable[Any] = profiler.key_averages()
    return {e.key: ((e.self_device_time_total if on_cuda else e.self_cpu_time_total) / 1e6, e.count) for e in events}


def _parts(operators: Iterable[Part], each: float) -> list[Part]:
    """Sums by kind. The host is what operators do not explain. The profiler slows them a little, so the host is a lower bound,
    and sums beyond the time of a token are scaled down to it."""
    operators = list(operators)
    scale = min(1.0, each / max(sum(operator.seconds for operator in operators), 1e-12))
    sums = {name: [0.0, 0.0] for name in (*PARTS, OTHER)}
    for operator in operators:
        kind = kind_of(operator.name)
        sums[kind][0] += operator.seconds * scale
        sums[kind][1] += operator.calls
    parts = [Part(name, total, calls) for name, (total, calls) in sums.items() if calls > 0]
    return [*parts, Part(HOST, max(0.0, each - sum(part.seconds for part in parts)), 0.0)]


def kind_of(operator: str) -> str:
    """The part that an operator belongs to: the first one with a word of its name."""
    if operator.startswith("aten::max_pool"):
        return OTHER
    return next((kind for kind, words in PARTS.items() if any(word in operator for word in words)), OTHER)
