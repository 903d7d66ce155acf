"""How long a job takes: both libraries in turn, several rounds, medians."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from benchmarks.models import VOCAB, make

LIBRARIES = ("ours", "theirs")


@dataclass(frozen=True, kw_only=True)
class Job:
    """batch rows of `length` tokens; a decode job has `new` tokens after a prompt of `length`."""

    name: str
    batch: int
    length: int
    new: int = 0


def _tokens(job: Job, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(0, VOCAB, (job.batch, job.length), generator=generator).to(device)


def _forward(model: nn.Module, tokens: Tensor, job: Job) -> Callable[[], object]:
    @torch.no_grad()
    def run() -> object:
        return model.net(tokens)

    model.eval()
    return run


def _train(model: nn.Module, tokens: Tensor, job: Job) -> Callable[[], object]:
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    tokens = torch.cat([tokens, tokens[:, :1]], dim=1)  # so that `length` tokens are read

    def run() -> object:
        optimizer.zero_grad(set_to_none=True)
        loss = model(tokens)
        loss.backward()
        optimizer.step()
        return loss

    return run


def _decode(model: nn.Module, tokens: Tensor, job: Job) -> Callable[[], object]:
    model.eval()
    return lambda: model.generate(tokens, job.new, temperature=0.0, cache_kv=True)


KINDS = {"forward": _forward, "train": _train, "decode": _decode}


def prepare(library: str, scheme: str, job: Job, device: torch.device) -> Callable[[], object]:
    """A function that does the job once."""
    model = make(library, scheme, job.length + job.new + 1, device)  # theirs reads the token it predicts, too
    return KINDS[job.name.split()[0]](model, _tokens(job, device), job)


def _seconds(run: Callable[[], object], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def compare(scheme: str, job: Job, device: torch.device, rounds: int) -> dict[str, float]:
    """Median seconds of each library, measured in turn so that a busy machine slows both."""
    runs = {library: prepare(library, scheme, job, device) for library in LIBRARIES}
    for run in runs.values():
        run()
    times: dict[str, list[float]] = {library: [] for library in LIBRARIES}
    for turn in range(rounds):
        for library in LIBRARIES if turn % 2 else reversed(LIBRARIES):
            times[library].append(_seconds(runs[library], device))
    return {library: statistics.median(values) for library, values in times.items()}


_PEAK = """
import re, torch
from pathlib import Path
from benchmarks.measure import Job, prepare
run = prepare({library!r}, {scheme!r}, {job!r}, torch.device("cpu"))
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again from what is resident now
def kilobytes(): return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
before = kilobytes()
run()
print((kilobytes() - before) * 1024)
"""


def peak_bytes(library: str, scheme: str, job: Job, device: torch.device) -> int:
    """The most memory the job takes beyond the model: allocator peak on CUDA, resident peak of a fresh process on CPU
    (Linux)."""
    if device.type == "cuda":
        run = prepare(library, scheme, job, device)
        run()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    code = _PEAK.format(library=library, scheme=scheme, job=job)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return int(done.stdout.strip().splitlines()[-1])
