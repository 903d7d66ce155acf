"""Sharded parameters: processes train as one does under every scheme, and their checkpoints fit any number of processes."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.draws import draws
from tests.support.sharded import FORMS, records, run_of, wanted
from x_positional import from_pretrained
from x_positional.cli.convert import convert
from x_positional.errors import DamagedCheckpoint, PretrainedError, UserError
from x_positional.pretrained.integrity import damage_of, newest_good
from x_positional.training import train
from x_positional.training.checkpoints.checkpoint import open_checkpoint
from x_positional.training.checkpoints.sharded import restore
from x_positional.training.config import TrainConfig
from x_positional.training.loop.log import LOG, read_curve
from x_positional.training.loop.train import TrainResult

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork"),
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch was built without distributed"),
]
ROOT = Path(__file__).parents[2]
BOUNDS = {"fp32": 2e-5, "fp64": 1e-10}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What tests.support.sharded writes: figures, exit codes, and a run that was killed and continued."""
    folder = tmp_path_factory.mktemp("sharded")
    command = [sys.executable, "-m", "tests.support.sharded", str(folder), draws("some", "all")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(command, capture_output=True, text=True, timeout=3000, check=False, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    return folder


@pytest.fixture(scope="module")
def alone(folder: Path) -> dict[str, dict[str, Any]]:
    return records(folder, 1, wanted(draws(False, True)))


@pytest.fixture(scope="module")
def whole(folder: Path) -> TrainResult:
    """The run of `folder`, in one process without an end."""
    return train(run_of(folder, 1, dir=str(folder / "whole")))


@pytest.fixture
def run(folder: Path, tmp_path: Path) -> Path:
    """A copy of the run, whose newest checkpoint four processes wrote at step 2."""
    shutil.copytree(folder / "run", tmp_path / "run")
    return tmp_path / "run"


def codes(folder: Path) -> dict[str, list[int]]:
    return json.loads((folder / "codes.json").read_text())


@pytest.mark.parametrize("processes", draws([2], [2, 4]))
def test_sharded_steps_are_those_of_one_process(folder: Path, alone: dict[str, dict[str, Any]], processes: int):
    assert codes(folder)[str(processes)] == [0] * processes
    together = json.loads((folder / f"{processes}.json").read_text())
    assert {name.rsplit(" ", 1)[0] for name in together} == FORMS.keys()
    for name, found in together.items():
        bound = BOUNDS[name.rsplit(" ", 1)[1]]
        assert found["loss"] == pytest.approx(alone[name]["loss"], rel=0, abs=bound), name
        assert found["norm"] == pytest.approx(alone[name]["norm"], rel=0, abs=bound), name
        assert alone[name]["held"] == 1
        assert found["held"] < 1.3 / processes, name  # rows that do not divide evenly, as those of 3 experts


def test_a_killed_process_ends_the_others_in_one_line(folder: Path):
    assert codes(folder)["killed"] == [2, -9]
    line = (folder / "killed-0.err").read_text()
    assert line.startswith("error: process 0 stops because another process was killed or crashed. Continue from ")
    assert line.endswith("step-00000001 with --resume.\n")
    assert line.count("\n") == 1


def test_processes_with_other_configs_are_refused(folder: Path):
    assert codes(folder)["differ"] == [2, 2]
    assert "run.seed is 8 in process 1, 7 in process 0" in (folder / "differ-0.err").read_text()
    assert "process 1 stops because the main process failed" in (folder / "differ-1.err").read_text()
    assert not (folder / "differ").exists()


def test_a_run_continues_at_another_number_of_processes(folder: Path, run: Path, whole: TrainResult):
    """Two processes until one was killed, then four, then one."""
    assert codes(folder)["four"] == [0] * 4
    train(continued(folder, run), resume=True)
    for event, name in (("train", "loss"), ("train", "grad_norm"), ("validation", "loss")):
        expected, found = (dict(zip(*read_curve(at / LOG, event, name), strict=True)) for at in (whole.folder, run))
        same_steps = {step: found[step] for step in expected}  # a session that ends at step 2 validates there too
        assert same_steps == pytest.approx(expected, rel=0, abs=1e-10)
    expected, found = (open_checkpoint(at).model_tensors() for at in (whole.folder, run))
    assert expected.keys() == found.keys()
    assert all((found[name] - tensor).abs().max() < 1e-10 for name, tensor in expected.items())


def continued(folder: Path, run: Path, **options: Any) -> TrainConfig:
    """For one process, which runs all windows of a step in place of four."""
    return run_of(folder, 1, dir=str(run), **options)


def test_other_windows_are_refused(folder: Path, run: Path):
    with pytest.raises(UserError, match="windows_per_step is 4; the checkpoint has 8"):
        train(continued(folder, run, accumulate=2), resume=True)


def test_a_sharded_checkpoint_is_read_whole(folder: Path, run: Path, whole: TrainResult, tmp_path: Path):
    checkpoint = open_checkpoint(run)
    assert checkpoint.shards == 4
    assert damage_of(checkpoint.path) is None
    names = {file.name for file in checkpoint.path.iterdir()}
    assert names == {"config.yaml", "trainer.json", "model", "optimizer"}
    tensors, moments = checkpoint.model_tensors(), checkpoint.optimizer_tensors()
    expected = open_checkpoint(whole.folder / "checkpoints/step-00000002")
    assert tensors.keys() == expected.model_tensors().keys()
    for name, tensor in {**expected.model_tensors(), **expected.optimizer_tensors()}.items():
        assert ({**tensors, **moments}[name] - tensor).abs().max() < 1e-10, name
    convert(run, tmp_path / "native", "native", model_type=None, dtype=None)
    for model in (from_pretrained(run), from_pretrained(tmp_path / "native")):
        assert all(torch.equal(parameter, tensors[name]) for name, parameter in model.named_parameters())


def test_a_damaged_shard_is_refused(folder: Path, run: Path):
    path = open_checkpoint(run).path
    file = next((path / "model").glob("shard-00003-*"))
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    message = f"the digest of model/{file.name} does not match"
    with pytest.raises(DamagedCheckpoint, match=message):
        train(continued(folder, run), resume=True)
    with pytest.raises(PretrainedError, match=message):
        from_pretrained(run)
    file.write_bytes(content)
    (path / "model" / "more.safetensors").write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=r"model/more.safetensors is unexpected"):
        train(continued(folder, run), resume=True)
    with pytest.raises(PretrainedError, match=r"model/more.safetensors is unexpected"):
        from_pretrained(run)
    assert newest_good(path.parent) == path.with_name("step-00000001")
    train(continued(folder, run), resume=True, skip_damaged=True)
    assert open_checkpoint(run).step == 3


def test_a_whole_checkpoint_is_read_in_parts(whole: TrainResult):
    """As sharded processes read it."""
    checkpoint, engine = open_checkpoint(whole.checkpoint), whole.engine
    with torch.no_grad():
        for parameter in whole.net.parameters():
            parameter.zero_()
    restore(checkpoint, whole.net, engine.optimizer, engine.processes)
    tensors, moments = checkpoint.model_tensors(), checkpoint.optimizer_tensors()
    for name, parameter in whole.net.named_parameters():
        assert torch.equal(parameter, tensors[name])
        assert torch.equal(engine.optimizer.state[parameter]["exp_avg_sq"], moments[f"{name}/exp_avg_sq"])


def test_a_compiled_step_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match=r"run\.compile=true cannot be combined with run\.parallel=fsdp"):
        run_of(tmp_path, 1, compile=True)
