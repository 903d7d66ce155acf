"""Which device `auto` is, and what this CPU computes fast: bfloat16 products that it has no instructions for are very slow."""

import platform
from dataclasses import dataclass, field
from pathlib import Path

import torch

_X86 = ("avx512_bf16", "amx_bf16", "avx10_2")
_ARM = ("bf16", "svebf16")


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
