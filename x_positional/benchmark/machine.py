"""What a machine is called, and what it allows: bytes read a second, operations of matrix products a second."""

import hashlib
import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from x_positional.benchmark.clock import synchronize

PACKAGES = ("torch", "transformers", "x-transformers", "rotary-embedding-torch", "x-positional")
LARGE = 512 * 2**20
"""Bytes of the buffer whose reading is the bandwidth: more than most caches hold."""
MATRIX = 2048
"""Rows and columns of the matrix whose product with itself is the matrix rate."""
COLUMNS = 1024
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True)
class Limits:
    """What the machine did just before a row was measured."""

    bandwidth: float
    """Bytes read a second: the faster of a large buffer, and one as large as what the work reads."""
    matrix_rate: float
    """Operations a second of a large matrix product, in the dtype of the work."""

    def seconds(self, bytes_read: float, operations: float) -> float:
        """The time below which the work cannot be done: the larger of reading and multiplying."""
        return max(bytes_read / self.bandwidth, operations / self.matrix_rate)


def measure_limits(bytes_read: float, dtype: str, device: torch.device, repeats: int = 5) -> Limits:
    """Measure both, in a fraction of a second. bytes_read: of the work, 0 if it is not limited by reading."""
    sizes = {LARGE, max(COLUMNS * 4, int(bytes_read))} if bytes_read else {LARGE}
    return Limits(
        max(_bandwidth(size, device, repeats) for size in sizes), _matrix_rate(DTYPES[dtype], device, repeats)
    )


def _bandwidth(size: int, device: torch.device, repeats: int) -> float:
    """The fastest of several reads with all threads: a sum, and a product of a matrix and a vector."""
    matrix = torch.ones(max(1, size // (4 * COLUMNS)), COLUMNS, device=device)
    vector = torch.ones(COLUMNS, device=device)
    reads: list[Callable[[], object]] = [matrix.sum, lambda: torch.mv(matrix, vector)]
    return matrix.nbytes / min(_fastest(read, device, repeats) for read in reads)


def _matrix_rate(dtype: torch.dtype, device: torch.device, repeats: int) -> float:
    size = MATRIX if device.type == "cpu" else 4 * MATRIX
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    return 2 * size**3 / _fastest(lambda: matrix @ matrix, device, repeats)


def _fastest(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    run()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        run()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


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
        "limits": {name: asdict(measure_limits(0, name, device)) for name in DTYPES},
    }
