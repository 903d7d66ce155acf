"""bfloat16 on a CPU that emulates it: warned of where it would be used, with what was detected."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from tests.support.training_runs import config
from x_positional.training import train
from x_positional.training.cpu import Cpu, bf16_warning, cpu_flags


@pytest.mark.parametrize(
    ("machine", "capability", "flags", "known"),
    [
        ("x86_64", "AVX2", "fpu avx2", False),
        ("x86_64", "AVX512", "fpu avx512f avx512_vnni", False),
        ("x86_64", "AVX512", "fpu avx512f avx512_bf16", True),
        ("x86_64", "AVX512", "amx_bf16", True),
        ("aarch64", "DEFAULT", "fp asimd bf16", True),
        ("aarch64", "DEFAULT", "fp asimd", False),
        ("AMD64", "AVX2", None, False),
        ("AMD64", "AVX512", None, None),
        ("arm64", "DEFAULT", None, None),
    ],
)
def test_what_is_detected_decides(machine: str, capability: str, flags: str | None, known: bool | None):
    cpu = Cpu(machine, capability, None if flags is None else frozenset(flags.split()))
    assert cpu.has_bf16 is known
    warning = bf16_warning(cpu)
    assert (warning is not None) == (known is False)
    if warning is not None:
        assert machine in warning
        assert capability in warning
        assert "run.precision: fp32" in warning


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2\nbugs\t\t: x\n", {"fpu", "avx2"}),
        ("Features\t: fp bf16\n", {"fp", "bf16"}),
        ("x", None),
    ],
)
def test_flags_are_read_from_cpuinfo(tmp_path: Path, text: str, flags: set[str] | None):
    (tmp_path / "cpuinfo").write_text(text)
    assert cpu_flags(tmp_path / "cpuinfo") == flags
    assert cpu_flags(tmp_path / "absent") is None


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_train_and_its_first_line_warn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str):
    monkeypatch.setattr("x_positional.training.cpu.Cpu", lambda: Cpu("x86_64", "AVX2", frozenset()))
    console = Console(width=400, record=True, file=io.StringIO())
    train(config(tmp_path, precision=precision, steps=3), console=console)
    lines = console.export_text().splitlines()
    assert ("bfloat16 autocast (emulated by this CPU) on cpu" in lines[0]) == (precision == "bf16")
    warned = [
        line for line in lines if line.startswith("warning: bfloat16 on this CPU is emulated (x86_64, AVX2, none of")
    ]
    assert len(warned) == (precision == "bf16")
