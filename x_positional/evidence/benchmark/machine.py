"""What a machine is called, and what it allows: bytes read a second, operations of matrix products a second."""

import hashlib
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from x_positional.evidence.benchmark.clock import seconds

PACKAGES = ("torch", "transformers", "x-transformers", "rotary-embedding-torch", "x-positional")
LARGE = 512 * 2**20
"""Bytes of the buffer whose reading is the bandwidth: more than most caches hold."""
MATRIX = 2048
"""Rows and columns of the matrix whose product with itself is the matrix rate."""
LEAST_MATRIX = 256
PROBE = 0.1
"""Seconds of one measurement of the limits, about, at most."""
REPEATS = 5
COLUMNS = 1024
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Limits:
    """What the machine did within some tens of milliseconds."""

    bandwidth: float
    """Bytes read a second: the faster of a large buffer, and one as large as what the work reads."""
    matrix_rate: float
    """Operations a second of a large matrix product, in the dtype of the work."""

    def seconds(self, bytes_read: float, operations: float) -> float:
        """The time below which the work cannot be done: the larger of reading and multiplying."""
        return max(bytes_read / self.bandwidth, operations / self.matrix_rate)


class Probe:
    """Measures the limits again and again, since what a machine allows drifts with its neighbours.

    What would take longer than `budget` allows is left out, or smaller: the larger of two buffers, and the matrices.

    Args:
        bytes_read: of the work, 0 if it is not limited by reading.
        dtype: of the work.
        device: that it runs on.
        budget: seconds that one measurement may take, about.
    """

    def __init__(self, bytes_read: float, dtype: str, device: torch.device, budget: float = PROBE) -> None:
        self._device, self._part = device, budget / 3  # two reads at most, and a product
        sizes = {LARGE, max(COLUMNS * 4, int(bytes_read))} if bytes_read else {LARGE}
        self._reads: list[tuple[int, Callable[[], object]]] = []
        for size in sorted(sizes):
            count, read, spent = _reader(size, device)
            if not self._reads or spent <= self._part:
                self._reads.append((count, read))
        self._size, self._product = self._matrix(DTYPES[dtype])
        self.found: list[Limits] = []
        """One a call of `sample`."""

    def sample(self) -> float:
        """Measure once. Returns the seconds that it took."""
        start = time.perf_counter()
        bandwidth = max(count / self._fastest(read) for count, read in self._reads)
        self.found.append(Limits(bandwidth, 2 * self._size**3 / self._fastest(self._product)))
        return time.perf_counter() - start

    def _matrix(self, dtype: torch.dtype) -> tuple[int, Callable[[], object]]:
        """Rows and columns of a matrix whose product with itself fits the budget, and that product."""
        size = MATRIX if self._device.type == "cpu" else 4 * MATRIX
        while True:
            matrix = torch.ones(size, size, dtype=dtype, device=self._device)
            product = partial(torch.mm, matrix, matrix)
            product()  # the first one starts threads and loads kernels
            if size <= LEAST_MATRIX or seconds(product, self._device) <= self._part:
                return size, product
            size //= 2

    def _fastest(self, run: Callable[[], object]) -> float:
        """Of up to REPEATS calls, as the budget allows."""
        times = [seconds(run, self._device)]
        while len(times) < REPEATS and sum(times) + times[-1] <= self._part:
            times.append(seconds(run, self._device))
        return min(times)


def _reader(size: int, device: torch.device) -> tuple[int, Callable[[], object], float]:
    """Bytes of a buffer, the faster of two ways to read it with all threads, and its seconds."""
    matrix = torch.ones(max(1, size // (4 * COLUMNS)), COLUMNS, device=device)
    reads: list[Callable[[], object]] = [matrix.sum, partial(torch.mv, matrix, torch.ones(COLUMNS, device=device))]
    times = [min(seconds(read, device) for _ in range(2)) for read in reads]
    return matrix.nbytes, reads[times.index(min(times))], min(times)


def measure_limits(dtype: str, device: torch.device) -> Limits:
    """One measurement that takes its time: about a second."""
    probe = Probe(0, dtype, device, budget=1.0)
    probe.sample()
    return probe.found[0]


def name_of(device: torch.device) -> str:
    """The GPU, or the processor and its number of CPUs."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", cpuinfo.read_text()) if cpuinfo.is_file() else None
    processor = found[1] if found else platform.processor() or platform.machine()
    return f"{processor}, {os.cpu_count()} CPUs"


def slug(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def versions() -> dict[str, str]:
    """Of what is installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@cache
def source_hash() -> str:
    """A short hash of the package's source, by which a recorded row is known to be of this version."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if path.parent != Path(__file__).parent:  # a change of the harness does not age its rows
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def describe(device: torch.device) -> dict[str, Any]:
    """What a record says about the machine."""
    capability = torch.backends.cpu.get_cpu_capability() if device.type == "cpu" else ""
    return {
        "name": name_of(device),
        "device": device.type,
        "threads": torch.get_num_threads(),
        "instructions": capability,
        "versions": versions(),
        "limits": {name: asdict(measure_limits(name, device)) for name in DTYPES},
    }
