"""Trackers of accelerate get the numbers of the log and the config, or one line tells what is missing before training."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.training_runs import config, raw_config
from x_positional.errors import UserError
from x_positional.training import TrainConfig, train
from x_positional.training.loop.log import check_trackers

tracking = pytest.importorskip("accelerate.tracking", reason="accelerate is not installed")


class Recorder(tracking.GeneralTracker):
    """A tracker of the user, as `register_tracker_class` takes it."""

    name = "recorder"
    requires_logging_directory = False
    fails = False
    events: list[Any]

    def __init__(self, project: str, **_: Any) -> None:
        super().__init__()
        type(self).events = [project]

    @property
    def tracker(self) -> None:
        return None

    def start(self) -> None:
        if self.fails:
            raise OSError("not logged in:\nrun login")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.events.append(values)

    def log(self, values: dict[str, Any], step: int | None, **_: Any) -> None:
        self.events.append((step, values))

    def finish(self) -> None:
        self.events.append("finished")


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> type[Recorder]:
    monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, "recorder", Recorder)
    return Recorder


def test_a_tracker_gets_the_numbers_of_the_log_and_the_config(tmp_path: Path, recorder: type[Recorder]):
    train(config(tmp_path, steps=3, trackers=["recorder"], project="mine", eval_every=3))
    project, settings, *numbers, end = recorder.events
    assert (project, end) == ("mine", "finished")
    assert settings["model.layers.dim"] == 24
    assert settings["run.trackers"] == '["recorder"]'
    assert all(isinstance(value, str | float | int) for value in settings.values())
    assert [(step, next(iter(values)).split("/")[0]) for step, values in numbers] == [
        (1, "train"),
        (2, "train"),
        (3, "train"),
        (3, "validation"),
        (3, "end"),
    ]
    assert {"train/loss", "train/lr", "train/grad_norm", "train/tokens_per_s"} <= numbers[0][1].keys()


def test_a_tracker_that_cannot_start_is_one_line_before_training(
    tmp_path: Path, recorder: type[Recorder], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(recorder, "fails", True)
    with pytest.raises(UserError, match=r"^run\.trackers: recorder cannot start: not logged in: run login$"):
        train(config(tmp_path, trackers=["recorder"]))
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_unknown_and_missing_trackers_are_refused_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tracking, "get_available_trackers", lambda: [tracking.LoggerType.TENSORBOARD])
    check_trackers(["tensorboard"])
    with pytest.raises(
        UserError, match=r"unknown tracker 'wand'; did you mean 'wandb'\?; mlflow is not installed: pip inst"
    ):
        check_trackers(["wand", "mlflow", "tensorboard"])
    with pytest.raises(UserError, match="wandb is not installed"):
        train(config(tmp_path, trackers="wandb"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(("old", "trackers"), [(False, ()), (True, ("tensorboard",))])
def test_configs_of_older_runs_are_read(tmp_path: Path, old: bool, trackers: tuple[str, ...]):
    run = TrainConfig.model_validate(raw_config(tmp_path, tensorboard=old)).run
    assert run.trackers == trackers


def test_without_trackers_none_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    assert train(config(tmp_path, steps=3)).finished
