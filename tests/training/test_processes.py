"""Several processes: launched ones train one model, as one process does on the same windows, or are refused."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.draws import draws
from tests.support.launched import records
from tests.support.training_runs import config, text_file
from x_positional.errors import MainProcessFailed, UserError
from x_positional.training.loop import processes
from x_positional.training.loop.processes import Processes, refuse_launcher_options

ROOT = Path(__file__).parents[2]
TORCHRUN = ["torch.distributed.run", "--standalone", "--nproc_per_node=2"]
ACCELERATE = ["accelerate.commands.launch", "--num_processes=2", "--main_process_port=0"]
LAUNCHERS = {"torchrun": TORCHRUN, "accelerate": [*ACCELERATE, "--multi_gpu"]}

needs_distributed = pytest.mark.skipif(
    not torch.distributed.is_available(), reason="this torch was built without distributed"
)


def launch(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    return records(tmp_path_factory.mktemp("alone"), 1)


@pytest.mark.slow
@needs_distributed
@pytest.mark.parametrize("launcher", draws(["accelerate"], ["accelerate", "torchrun"]))
def test_two_launched_processes_train_as_one_does(tmp_path: Path, alone: dict[str, dict[str, Any]], launcher: str):
    """By default started by accelerate alone; torchrun starts those of test_run.py and test_finetune.py."""
    text_file(tmp_path)
    run = launch(*LAUNCHERS[launcher], "-m", "tests.support.launched", tmp_path)
    assert run.returncode == 0, run.stdout + run.stderr
    together = json.loads((tmp_path / "records.json").read_text())
    assert together.keys() == alone.keys()
    for name, one in alone.items():
        two = together[name]
        assert (one["processes"], two["processes"]) == (1, 2)
        wide = name.endswith("fp64")
        assert two["losses"] == pytest.approx(one["losses"], rel=0, abs=1e-10 if wide else 2e-5), name
        for parameter, gradient in one["gradients"].items():
            expected = torch.tensor(gradient, dtype=torch.float64)
            difference = (torch.tensor(two["gradients"][parameter], dtype=torch.float64) - expected).norm()
            assert difference <= (1e-12 if wide else 1e-6) * expected.norm(), f"{name}: {parameter}"


def test_ragged_targets_weigh_by_their_number(alone: dict[str, dict[str, Any]]):
    """Averaged per batch, the first loss would be another one: the comparison above sees it."""
    assert alone["Ragged fp64"]["losses"][0] != pytest.approx(alone["Windows fp64"]["losses"][0], abs=1e-3)


@pytest.mark.parametrize("windows", ["Windows", "Ragged"])
def test_float32_is_float64_up_to_rounding(alone: dict[str, dict[str, Any]], windows: str):
    narrow, wide = (alone[f"{windows} {precision}"]["losses"][0] for precision in ("fp32", "fp64"))
    assert 0 < abs(narrow - wide) < 1e-6 * wide


@pytest.mark.slow
@needs_distributed
@pytest.mark.skipif(torch.cuda.is_available(), reason="with GPUs accelerate starts all processes")
def test_accelerate_that_starts_one_process_of_two_is_refused(tmp_path: Path):
    file = tmp_path / "config.yaml"
    file.write_text(config(tmp_path, device="auto").to_yaml())
    run = launch(*ACCELERATE, "--cpu", "-m", "x_positional.cli.main", "train", file)
    assert run.returncode != 0
    assert "error: accelerate launch was asked for several processes but started one" in run.stderr
    assert "torchrun --nproc_per_node" in run.stderr
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", processes.WORLD_SIZES)
def test_processes_that_would_train_apart_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str):
    Processes(config(tmp_path).run)  # a process that has trained alone stays alone
    monkeypatch.setenv(name, "3")
    with pytest.raises(UserError, match=r"3 processes were launched, but 1 would train together.*use run\.device=cpu"):
        Processes(config(tmp_path).run)


def test_more_processes_than_devices_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(UserError, match="2 processes were launched on this machine, which has 1 CUDA devices"):
        Processes(config(tmp_path, device="auto").run)


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("ACCELERATE_MIXED_PRECISION", "bf16", "--mixed_precision .* set run.precision"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "--dynamo_backend .* set run.compile"),
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4", "--gradient_accumulation_steps .* set run.accumulate"),
        ("ACCELERATE_USE_FSDP", "true", "--use_fsdp .* set run.parallel=fsdp"),
        ("ACCELERATE_USE_DEEPSPEED", "true", "--use_deepspeed .* data-parallel"),
    ],
)
def test_options_of_the_launcher_are_not_ignored(variable: str, value: str, message: str):
    with pytest.raises(UserError, match=message):
        refuse_launcher_options({variable: value})
    for default in ("no", "NO", "false", ""):
        refuse_launcher_options({variable: default})


def test_an_error_of_the_main_process_stops_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    together = Processes(config(tmp_path).run)
    with pytest.raises(OSError, match="full"):
        together.on_main(lambda: (_ for _ in ()).throw(OSError("full")))
    monkeypatch.setattr(together, "main", False)
    monkeypatch.setattr(together, "any", lambda flag: True)
    with pytest.raises(MainProcessFailed, match="the main process failed"):
        together.on_main(lambda: pytest.fail("only the main process runs it"))
