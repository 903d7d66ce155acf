"""Whole runs: resume is bit-equal, interrupts save, bad numbers stop, and what a run leaves behind."""

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from tests.support.training_runs import config, raw_config
from x_positional.errors import NonFiniteLoss, UserError
from x_positional.training import TrainConfig, train
from x_positional.training.checkpoints.checkpoint import open_checkpoint
from x_positional.training.data.windows import Windows
from x_positional.training.loop.engine import Engine
from x_positional.training.loop.log import read_curve
from x_positional.training.loop.training_loop import TrainingLoop


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return open_checkpoint(folder).model_tensors()


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def changed(base: TrainConfig, **sections: dict[str, Any]) -> TrainConfig:
    raw = base.model_dump(mode="json")
    for section, values in sections.items():
        raw[section].update(values)
    return TrainConfig.model_validate(raw)


def losses(folder: Path) -> list[float]:
    return read_curve(folder / "log.jsonl", "train", "loss")[1]


def test_a_resumed_run_is_bit_equal_to_one_that_never_stopped(tmp_path: Path):
    whole, parts, other = (config(tmp_path, dir=str(tmp_path / name)) for name in ("whole", "parts", "other"))
    assert train(whole).finished
    first = train(changed(parts, run={"stop_after": 3}))
    assert (first.step, first.finished, first.interrupted) == (3, False, False)
    torch.manual_seed(12345)  # whatever else the process drew in between does not count
    second = train(changed(parts, run={"stop_after": 6}), resume=True)
    assert second.step == 6
    assert train(parts, resume=True).finished
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    one, two = (open_checkpoint(tmp_path / name).optimizer_tensors() for name in ("whole", "parts"))
    assert same(one, two)
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts"), "the windows or the dropout differed"
    train(changed(other, run={"seed": 8}))
    assert not same(weights(tmp_path / "whole"), weights(tmp_path / "other"))


def test_each_step_takes_the_next_windows_also_after_a_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    taken: list[int] = []
    batch = Windows.batch

    def remember(self: Windows, first: int, count: int) -> torch.Tensor:
        taken.extend(range(first, first + count))
        return batch(self, first, count)

    monkeypatch.setattr(Windows, "batch", remember)
    base = config(tmp_path)
    train(changed(base, run={"stop_after": 3}))
    train(base, resume=True)
    assert taken == list(range(8 * 3 * 2))


def test_dropout_and_accumulation_take_part(tmp_path: Path):
    """The run above proves nothing about what changes nothing."""
    runs = {"plain": config(tmp_path)}
    still = {"dropout": 0.0}
    layers = {**raw_config(tmp_path)["model"]["layers"], "attn": still, "ff": {"dropout": 0.0, "mult": 2}}
    runs["still"] = changed(runs["plain"], model={"emb_dropout": 0.0, "layers": layers})
    runs["single"] = changed(runs["plain"], run={"accumulate": 1})
    for name, run in runs.items():
        train(changed(run, run={"dir": str(tmp_path / name), "steps": 3}))
    assert len({losses(tmp_path / name)[-1] for name in runs}) == 3


@pytest.mark.parametrize("loss", [{}, {"label_smoothing": 0.1, "z_loss": 1e-2}])
def test_accumulation_equals_one_large_batch(tmp_path: Path, loss: dict[str, float]):
    layers = {**raw_config(tmp_path)["model"]["layers"], "attn": {}, "ff": {}}
    base = changed(config(tmp_path), model={"emb_dropout": 0.0, "layers": layers})
    for name, batch, accumulate in (("large", 6, 1), ("small", 2, 3)):
        run = {"dir": str(tmp_path / name), "batch_size": batch, "accumulate": accumulate, "steps": 4, **loss}
        train(changed(base, run=run))
    large, small = weights(tmp_path / "large"), weights(tmp_path / "small")
    for name in large:
        torch.testing.assert_close(large[name], small[name], rtol=0, atol=2e-5)


def test_training_learns(tmp_path: Path):
    result = train(config(tmp_path, steps=150, batch_size=8, accumulate=1, eval_every=150, save_every=150))
    assert losses(tmp_path / "run")[0] > 5
    assert result.validation is not None
    assert result.validation.loss < 2.2  # 5.5 nats is a guess, 2.5 the frequency of the letters


def test_a_run_leaves_config_log_plot_and_checkpoints(tmp_path: Path):
    base = config(tmp_path, steps=9, keep=1, trackers=["tensorboard"])
    result = train(base)
    folder = tmp_path / "run"
    assert {file.name for file in folder.iterdir()} == {
        ".lock",
        "config.yaml",
        "log.jsonl",
        "loss.png",
        "checkpoints",
        "trackers",
    }
    saved = open_checkpoint(folder)
    assert saved.config_text() == (folder / "config.yaml").read_text() == base.to_yaml()
    assert result.checkpoint == saved.path
    best = saved.trainer["best"]["step"]
    assert {int(path.name[5:]) for path in saved.path.parent.iterdir()} == {9, best}
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in entries if entry["event"] == "train"] == list(range(1, 10))
    assert [entry["step"] for entry in entries if entry["event"] == "validation"] == [4, 8, 9]
    last = [entry for entry in entries if entry["event"] == "train"][-1]
    assert last["tokens"] == 9 * 3 * 2 * 33
    assert last["bits_per_byte"] == pytest.approx(last["loss"] / np.log(2))
    assert {"lr", "grad_norm", "tokens_per_s"} <= last.keys()
    assert any(file.stat().st_size > 500 for file in (folder / "trackers" / "x-positional").glob("events*"))
    assert (folder / "loss.png").read_bytes()[:4] == b"\x89PNG"


def test_the_first_line_says_scheme_backend_dtype_size_and_length(tmp_path: Path):
    console = Console(width=400, record=True, file=io.StringIO())
    result = train(config(tmp_path, steps=3), console=console)
    line = console.export_text().splitlines()[0]
    count = sum(parameter.numel() for parameter in result.engine.net.parameters())
    for part in ("position rope", "backend sdpa (", "float32 on cpu", f"{count:,} parameters", "trained length 33"):
        assert part in line


@pytest.mark.parametrize("stop", ["signal", "signal after the last log"])
def test_an_interrupt_saves_and_the_run_goes_on_bit_equal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str):
    base = config(tmp_path, log_every=1 if stop == "signal" else 5)
    train(changed(base, run={"dir": str(tmp_path / "whole")}))
    step = Engine.step

    def step_and_interrupt(self: Engine, number: int):
        if number == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return step(self, number)

    monkeypatch.setattr(Engine, "step", step_and_interrupt)
    before = signal.getsignal(signal.SIGINT)
    result = train(base)
    assert (result.step, result.interrupted, result.finished) == (3, True, False)
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.undo()
    assert train(base, resume=True).finished
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))


@pytest.mark.parametrize("bad", ["loss", "gradient"])
@pytest.mark.parametrize(("log_every", "eval_every"), [(1, 100), (3, 100), (100, 100), (100, 8)])
def test_a_bad_number_stops_with_the_step_and_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: str, log_every: int, eval_every: int
):
    step = Engine.step

    def poisoned(self: Engine, number: int):
        loss, norm, rate = step(self, number)
        if number == 5:
            return (loss * float("nan"), norm, rate) if bad == "loss" else (loss, norm + float("inf"), rate)
        return loss, norm, rate

    monkeypatch.setattr(Engine, "step", poisoned)
    with pytest.raises(
        NonFiniteLoss, match=r"stopped at step 6: .*last good checkpoint is .*step-00000004.*optimizer\.lr"
    ):
        train(config(tmp_path, steps=12, log_every=log_every, eval_every=eval_every))
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000004"]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


def test_a_rate_that_is_far_too_high_is_stopped(tmp_path: Path):
    base = changed(config(tmp_path, steps=40, save_every=40), optimizer={"lr": 1e30, "clip": None})
    with pytest.raises(NonFiniteLoss, match=r"No checkpoint was saved before it\. Lower optimizer\.lr \(now 1e\+30\)"):
        train(base)


def test_an_existing_run_is_not_overwritten(tmp_path: Path):
    base = config(tmp_path, steps=3)
    train(base)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(
        UserError, match=r"already has checkpoints up to step-00000003; add --resume to continue that run"
    ):
        train(base)
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"run": {"seed": 8}}, "seed is 8; the checkpoint has 7"),
        ({"run": {"batch_size": 4}}, "windows_per_step is 8; the checkpoint has 6"),
        ({"data": {"seq_len": 20}}, "seq_len is 20; the checkpoint has 33"),
        ({"data": {"val_fraction": 0.2}}, "data is .*; the checkpoint has"),
        ({"model": {"emb_dropout": 0.2}}, "the model section differs"),
        ({"run": {"steps": 4}}, r"the checkpoint is at step 4 of run\.steps=4; raise run\.steps"),
        ({"run": {"seed": 8, "batch_size": 4}}, "(?s)seed is 8.*windows_per_step is 8"),
    ],
)
def test_a_resume_that_would_not_be_the_same_run_is_refused(tmp_path: Path, sections, message: str):
    base = config(tmp_path)
    train(changed(base, run={"stop_after": 4}))
    with pytest.raises(UserError, match=message):
        train(changed(base, **sections), resume=True)


def test_more_steps_and_another_rate_may_be_asked_of_a_resumed_run(tmp_path: Path):
    base = config(tmp_path)
    train(base)
    result = train(changed(base, run={"steps": 11}, optimizer={"lr": 1e-4}), resume=True)
    assert result.step == 11
    rates = read_curve(tmp_path / "run" / "log.jsonl", "train", "lr")[1]
    assert rates[-1] < 1.1e-5 < rates[7]


def test_there_must_be_something_to_resume(tmp_path: Path):
    with pytest.raises(UserError, match=r"no checkpoint to resume from in .*; omit --resume"):
        train(config(tmp_path), resume=True)
    assert not (tmp_path / "run").exists()


def test_a_stop_before_the_start_is_refused(tmp_path: Path):
    base = config(tmp_path)
    train(changed(base, run={"stop_after": 4}))
    with pytest.raises(UserError, match=r"run\.stop_after=4 is not after step 4"):
        train(changed(base, run={"stop_after": 4}), resume=True)


def test_a_model_that_the_validator_refuses_is_not_trained(tmp_path: Path):
    layers = {**raw_config(tmp_path)["model"]["layers"], "kv_heads": 2, "position": {"kind": "rope", "dim": 10}}
    base = changed(config(tmp_path), model={"layers": layers})
    with pytest.raises(UserError) as caught:
        train(base)
    assert "heads=3" in str(caught.value)
    assert "10" in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"run\.device=cuda, but torch finds no CUDA device"):
        train(config(tmp_path, device="cuda"))


def test_bfloat16_autocast_keeps_float32_weights(tmp_path: Path):
    console = Console(width=400, record=True, file=io.StringIO())
    train(config(tmp_path, precision="bf16"), console=console)
    assert "float32 weights, bfloat16 autocast" in console.export_text()
    assert {tensor.dtype for tensor in weights(tmp_path / "run").values()} == {torch.float32}
    train(config(tmp_path, dir=str(tmp_path / "full")))
    difference = max(abs(a - b) for a, b in zip(losses(tmp_path / "run"), losses(tmp_path / "full"), strict=True))
    assert 0 < difference < 0.05


def test_float64_is_float64_throughout_and_resumes(tmp_path: Path):
    base = config(tmp_path, precision="fp64")
    console = Console(width=400, record=True, file=io.StringIO())
    train(changed(base, run={"dir": str(tmp_path / "whole")}), console=console)
    assert "| float64 on cpu |" in console.export_text()
    train(changed(base, run={"stop_after": 5}))
    assert train(base, resume=True).finished
    assert same(weights(tmp_path / "whole"), weights(tmp_path / "run"))
    saved = open_checkpoint(tmp_path / "run")
    assert {tensor.dtype for tensor in weights(tmp_path / "run").values()} == {torch.float64}
    assert same(saved.optimizer_tensors(), open_checkpoint(tmp_path / "whole").optimizer_tensors())


def test_bare_token_ids_are_trained_on(tmp_path: Path):
    np.save(tmp_path / "ids.npy", np.arange(3000) % 90)
    result = train(changed(config(tmp_path), data={"path": str(tmp_path / "ids.npy")}))
    assert result.validation is not None
    assert set(result.validation.bits) == {"bits_per_token"}
    assert open_checkpoint(tmp_path / "run").trainer["tokenizer"] is None


def test_a_log_that_was_cut_off_still_gives_its_curve(tmp_path: Path):
    log = tmp_path / "log.jsonl"
    lines = [{"event": "start", "step": 0}, *({"event": "train", "step": n, "loss": float(n)} for n in (1, 2, 3))]
    lines += [{"event": "start", "step": 1}, {"event": "train", "step": 2, "loss": 20.0}]
    log.write_text("\n".join(map(json.dumps, lines)) + '\n{"event": "tra')
    assert read_curve(log, "train", "loss") == ([1, 2], [1.0, 20.0])


def test_the_text_may_be_the_embedded_one(tmp_path: Path):
    base = changed(config(tmp_path, steps=3, eval_tokens=200), data={"path": None})
    assert train(base).corpus.source == "the embedded text"


def test_a_compiled_run_learns_the_same_and_saves_the_same_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Traced by the compiler, but not turned into machine code: that takes minutes and needs a C++ compiler."""
    calls = []

    def traced(module: torch.nn.Module) -> Any:
        calls.append(module)
        return compile_(module, backend="aot_eager")

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", traced)
    layers = {**raw_config(tmp_path)["model"]["layers"], "attn": {}, "ff": {"mult": 2}}
    for name, compiled in (("eager", False), ("compiled", True)):
        base = config(tmp_path, dir=str(tmp_path / name), compile=compiled, steps=3)
        train(changed(base, model={"emb_dropout": 0.0, "layers": layers}))
    assert len(calls) == 1
    np.testing.assert_allclose(losses(tmp_path / "compiled"), losses(tmp_path / "eager"), rtol=1e-5)
    assert weights(tmp_path / "compiled").keys() == weights(tmp_path / "eager").keys()


def test_the_loop_keeps_no_list_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made: list[TrainingLoop] = []
    create = TrainingLoop.__init__

    def remember(self: TrainingLoop, *args: Any) -> None:
        create(self, *args)
        made.append(self)

    monkeypatch.setattr(TrainingLoop, "__init__", remember)
    train(config(tmp_path, log_every=3))
    assert (made[0]._unread, made[0]._losses) == ([], [])


@pytest.mark.slow
@pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without distributed")
def test_two_processes_train_as_one_does_on_the_same_windows(tmp_path: Path):
    layers = {**raw_config(tmp_path)["model"]["layers"], "attn": {}, "ff": {"mult": 2}}
    device = "cpu" if torch.cuda.is_available() else "auto"
    base = changed(config(tmp_path, batch_size=4, device=device), model={"emb_dropout": 0.0, "layers": layers})
    train(changed(base, run={"dir": str(tmp_path / "one"), "accumulate": 1, "batch_size": 8}))
    file = tmp_path / "config.yaml"
    file.write_text(changed(base, run={"dir": str(tmp_path / "two"), "accumulate": 1}).to_yaml())
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    run = subprocess.run(
        [*command, "-m", "x_positional.cli.main", "train", str(file)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert run.stdout.count("steps done") == 1
    assert "on cpu, 2 processes |" in run.stdout
    np.testing.assert_allclose(losses(tmp_path / "two"), losses(tmp_path / "one"), rtol=1e-5)
