"""Which device `auto` is, and what a CPU computes slowly: bfloat16 without instructions for it, and denormal numbers."""

import ctypes
import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

_X86 = ("avx512_bf16", "amx_bf16", "avx10_2")
_ARM = ("bf16", "svebf16")
_PAUSE_SOFT = 1
"""`omp_pause_soft` of OpenMP 5.0, section 3.2.44: idle threads end, settings stay."""


@dataclass(frozen=True)
class Cpu:
    """What was detected about the CPU."""

    machine: str = field(default_factory=platform.machine)
    """Architecture, as `x86_64`."""
    capability: str = field(default_factory=torch.backends.cpu.get_cpu_capability)
    """The instructions that torch's kernels use, as `AVX2`."""
    flags: frozenset[str] | None = field(default_factory=lambda: cpu_flags(Path("/proc/cpuinfo")))
    """Those that Linux reports; None elsewhere."""

    @property
    def has_bf16(self) -> bool | None:
        """Whether it has instructions for bfloat16 products; None if that is unknown."""
        if self.flags is not None:
            return not self.flags.isdisjoint((*_X86, *_ARM))
        below = self.machine.lower() in ("x86_64", "amd64") and not self.capability.startswith("AVX512")
        return False if below else None


def cpu_flags(file: Path) -> frozenset[str] | None:
    """The flags in `/proc/cpuinfo`: `flags` on x86, `Features` on ARM; None where there is no such line."""
    try:
        lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = [line.partition(":")[2].split() for line in lines if line.startswith(("flags", "Features"))]
    return frozenset(found[0]) if found else None


def bf16_warning(cpu: Cpu | None = None) -> str | None:
    """The warning for bfloat16 on a CPU without instructions for it, with what was detected; None where it has them."""
    cpu = Cpu() if cpu is None else cpu
    if cpu.has_bf16 is not False:
        return None
    names = f"none of {', '.join(_X86 if cpu.machine.lower() in ('x86_64', 'amd64') else _ARM)}"
    return (
        f"bfloat16 on this CPU is emulated ({cpu.machine}, {cpu.capability}, {names}): training can be 100 times slower than "
        "in float32. Use float32 (run.precision: fp32)"
    )


def resolve_device(name: str) -> str:
    """`auto` is CUDA if available, otherwise the CPU; any other name is returned unchanged."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return name


@contextmanager
def denormals_flushed() -> Iterator[bool]:
    """Denormal numbers become zero on this CPU: in all threads of torch's operators, or, where that is impossible, in none.

    With a steep bias the probabilities of far tokens are denormal, and a training step without this takes up to twice as long.

    Yields:
        Whether they are flushed.
    """
    if _flushes():  # already so for the caller
        yield True
        return
    flushed = torch.set_flush_denormal(True)
    if flushed and not _restart_workers():
        torch.set_flush_denormal(False)
        flushed = False
    try:
        yield flushed
    finally:
        if flushed:
            torch.set_flush_denormal(False)
            _restart_workers()


def _flushes() -> bool:
    """Whether this thread flushes denormal numbers; those of Python are computed by the same unit."""
    return sys.float_info.min / 2 == 0.0


def _restart_workers() -> bool:
    """End the OpenMP workers of this thread, and return whether that was possible.

    Each thread has a mode of its own, which it takes from the thread that starts it: those that exist keep the old one. The
    next operator starts new ones.
    """
    if torch.get_num_threads() == 1:
        return True
    linked = ctypes.CDLL(torch._C.__file__)  # looks names up in the OpenMP library that torch is linked to
    pause = getattr(linked, "omp_pause_resource_all", None)
    return pause is not None and pause(_PAUSE_SOFT) == 0
