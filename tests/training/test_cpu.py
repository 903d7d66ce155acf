"""What a CPU computes slowly: bfloat16 that it emulates is warned of, and denormal numbers are flushed while a model trains."""

import io
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from tests.support.training_runs import config, raw_config
from x_positional.training import TrainConfig, cpu, train
from x_positional.training.checkpoints.checkpoint import open_checkpoint
from x_positional.training.cpu import Cpu, bf16_warning, cpu_flags, denormals_flushed
from x_positional.training.loop.engine import Engine


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
    found = Cpu(machine, capability, None if flags is None else frozenset(flags.split()))
    assert found.has_bf16 is known
    warning = bf16_warning(found)
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


@pytest.fixture
def two_threads() -> Iterator[None]:
    """Operators with a worker, which has started before the test."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    kept_denormals()
    yield
    torch.set_num_threads(before)


def kept_denormals() -> float:
    """The fraction of denormal products that an operator on all threads keeps."""
    return float((torch.full((1 << 18,), 2.0**-100) * 2.0**-40).view(torch.int32).ne(0).double().mean())


needs_denormals = pytest.mark.skipif(
    not torch.set_flush_denormal(False), reason="this CPU has no mode without denormal numbers"
)


@needs_denormals
@pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP library is found on Linux")
@pytest.mark.usefixtures("two_threads")
def test_denormals_are_flushed_in_every_thread_and_kept_again():
    assert kept_denormals() == 1.0
    with denormals_flushed() as flushed:
        assert flushed
        assert kept_denormals() == 0.0
        with denormals_flushed() as again:
            assert again
        assert kept_denormals() == 0.0, "the inner one has ended what the outer one began"
        x = torch.full((1 << 18,), 2.0**-70, requires_grad=True)
        (x * 2.0**-70).backward(torch.full_like(x, 2.0**-70))
        assert x.grad is not None
        assert not x.grad.view(torch.int32).any()
    assert kept_denormals() == 1.0


@needs_denormals
@pytest.mark.usefixtures("two_threads")
def test_where_workers_cannot_be_reached_no_thread_flushes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "_restart_workers", lambda: False)
    with denormals_flushed() as flushed:
        assert not flushed
        assert kept_denormals() == 1.0
    assert kept_denormals() == 1.0


@needs_denormals
@pytest.mark.skipif(sys.platform != "linux", reason="torch's OpenMP library is found on Linux")
@pytest.mark.usefixtures("two_threads")
def test_training_flushes_and_a_resumed_run_is_bit_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """ALiBi's first head of 8 gives tokens at a distance of 175 or more a denormal probability."""
    step, kept = Engine.step, list[float]()

    def watched(engine: Engine, index: int):
        kept.append(kept_denormals())
        return step(engine, index)

    monkeypatch.setattr(Engine, "step", watched)
    raw = raw_config(tmp_path, steps=4, batch_size=1, accumulate=1, eval_every=4, save_every=2, eval_tokens=256)
    raw["model"]["max_seq_len"] = 256
    raw["model"]["layers"] |= {"depth": 1, "heads": 8, "head_dim": 4, "position": "alibi"}
    for name in ("whole", "parts"):
        raw["run"]["dir"] = str(tmp_path / name)
        if name == "parts":
            train(TrainConfig.model_validate({**raw, "run": {**raw["run"], "stop_after": 2}}))
        assert train(TrainConfig.model_validate(raw), resume=name == "parts").finished
    assert kept == [0.0] * 8
    assert kept_denormals() == 1.0, "the mode of the caller has changed"
    whole, parts = (open_checkpoint(tmp_path / name) for name in ("whole", "parts"))
    for one, two in (
        (whole.model_tensors(), parts.model_tensors()),
        (whole.optimizer_tensors(), parts.optimizer_tensors()),
    ):
        assert one.keys() == two.keys()
        assert all(torch.equal(one[name], two[name]) for name in one)
