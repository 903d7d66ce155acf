"""A training run that older code began, stopped half way, resumes and ends as it did then."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from tests.support.old_models import FIXTURES, RUN
from x_positional.training import TrainConfig, train
from x_positional.training.checkpoints.checkpoint import checkpoint_folders, open_checkpoint
from x_positional.training.loop.log import read_curve

THEN = json.loads((FIXTURES / "run_resumed.json").read_text("utf-8"))
STEPS, STOPPED = RUN["run"]["steps"], RUN["run"]["stop_after"]
TERMS = 3 * (16 + 8 + 17 + 16 + 16 + 32 + 16 + 16)
"""Summed terms of a step: from an input to a logit, and twice that for the way back."""
ROUNDING = (STEPS - STOPPED) * TERMS * torch.finfo(torch.float32).eps
"""Relative: every resumed step adds the rounding of its terms to the parameters that the loss is read from."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stopped run; its paths are relative to its folder."""
    shutil.copytree(FIXTURES / "run_stopped", tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Path("run")


def config(folder: Path) -> TrainConfig:
    return TrainConfig.model_validate(yaml.safe_load((folder / "config.yaml").read_text("utf-8")))


def test_config_and_checkpoint_read_as_they_were_written(folder: Path):
    run = {**RUN["run"], "stop_after": None}
    assert config(folder) == TrainConfig.model_validate({**RUN, "run": run})
    checkpoint = open_checkpoint(folder)
    assert checkpoint.step == STOPPED
    for name, read in (("model", checkpoint.model_tensors()), ("optimizer", checkpoint.optimizer_tensors())):
        written = load_file(checkpoint.path / f"{name}.safetensors")
        assert read.keys() == written.keys()
        assert all(torch.equal(read[key], written[key]) for key in written)


def test_it_resumes_and_ends_as_it_did(folder: Path):
    result = train(config(folder), resume=True)
    assert result.finished
    assert result.step == STEPS
    steps, losses = read_curve(folder / "log.jsonl", "train", "loss")
    assert list(steps) == list(range(1, STEPS + 1))
    assert losses[:STOPPED] == THEN["losses"][:STOPPED]
    assert losses == pytest.approx(THEN["losses"], rel=ROUNDING)
    assert read_curve(folder / "log.jsonl", "validation", "loss")[1] == pytest.approx(THEN["validation"], rel=ROUNDING)


def test_two_resumes_are_bit_equal(folder: Path):
    shutil.copytree(folder, "twin")
    one = train(config(folder), resume=True)
    two = train(
        config(folder).model_copy(update={"run": config(folder).run.model_copy(update={"dir": "twin"})}), resume=True
    )
    first, second = (open_checkpoint(result.folder).model_tensors() for result in (one, two))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_bound_on_losses_sees_a_lost_optimizer(folder: Path, monkeypatch: pytest.MonkeyPatch):
    """Without the moments of Adam the curve leaves the bound more than tenfold: the resume above did read them."""
    monkeypatch.setattr("x_positional.training.checkpoints.run_folder.load_optimizer", lambda *_: None)
    train(config(folder), resume=True)
    losses = read_curve(folder / "log.jsonl", "train", "loss")[1]
    assert max(abs(now / then - 1) for now, then in zip(losses, THEN["losses"], strict=True)) > 10 * ROUNDING
    assert len(checkpoint_folders(folder / "checkpoints")) == 2
