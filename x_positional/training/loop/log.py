"""The log of a run: one JSON object per line in `log.jsonl`, and the same numbers in accelerate's trackers."""

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any, TypeGuard

from x_positional.errors import UserError, did_you_mean, import_extra
from x_positional.training.config import TrainConfig

LOG = "log.jsonl"
LARGEST = sys.float_info.max
"""NaN, infinity and what is too large for a float are not drawn."""
Value = float | int | str | None


class RunLog:
    """Appends to the log of a run folder. Events: start, train, validation, end.

    Args:
        folder: The folder of the run.
        accelerator: Its trackers, once started, get every number as `event/name`; None for none.
    """

    def __init__(self, folder: Path, accelerator: Any = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / LOG
        self._stream = _appending(self._file)
        self._accelerator = accelerator

    def write(self, event: str, step: int, values: dict[str, Value]) -> None:
        """Write one line, and its numbers to the trackers. Raises `UserError` where the disk is full."""
        line = (json.dumps({"event": event, "step": step, **values}) + "\n").encode()
        try:
            while line:  # a disk that is nearly full takes a part of it
                line = line[self._stream.write(line) :]
        except OSError as error:
            raise UserError(
                f"cannot write {self._file}: {error.strerror}. Continue from the newest checkpoint with --resume."
            ) from error
        numbers = {f"{event}/{name}": value for name, value in values.items() if isinstance(value, (int, float))}
        if self._accelerator is not None and numbers:
            self._accelerator.log(numbers, step=step)

    def close(self) -> None:
        self._stream.close()
        if self._accelerator is not None:
            for tracker in self._accelerator.trackers:
                tracker.finish()


def check_trackers(names: Sequence[str]) -> None:
    """Raise `UserError` for trackers that accelerate does not know, or whose package is not installed."""
    if not names:
        return
    tracking = import_extra("accelerate.tracking", "run.trackers needs", "train")
    known = tracking.LOGGER_TYPE_TO_CLASS
    installed = {str(name) for name in tracking.get_available_trackers()}
    registered = set(known) - {str(name) for name in tracking.LoggerType}  # by register_tracker_class
    problems = [f"unknown tracker {name!r}; {did_you_mean(name, known)}" for name in names if name not in known]
    problems += [
        f"{name} is not installed: pip install {name}"
        for name in names
        if name in known.keys() - installed - registered
    ]
    if problems:
        raise UserError(f"run.trackers: {'; '.join(problems)}")


def start_trackers(accelerator: Any, config: TrainConfig) -> None:
    """Start the trackers of the run, in the main process, with its config; raises `UserError` where one cannot start."""
    if not config.run.trackers:
        return
    try:
        accelerator.init_trackers(config.run.project, _tracked(config))
    except Exception as error:  # not logged in, no network, a full disk: each tracker has errors of its own
        for tracker in accelerator.trackers:
            with suppress(Exception):  # some have not started
                tracker.finish()
        accelerator.trackers = []
        raise UserError(
            f"run.trackers: {' or '.join(config.run.trackers)} cannot start: {' '.join(str(error).split())}"
        ) from error


def _tracked(config: TrainConfig) -> dict[str, str | float]:
    """The config as a tracker takes it, strings and numbers only: without what is null or empty."""
    return {
        name: value if isinstance(value, (str, int, float)) else json.dumps(value)
        for name, value in config.flat().items()
        if value is not None and value != {}
    }


def _appending(file: Path) -> FileIO:
    """The log, open for whole lines: a line that a crash cut off is ended, so that it does not swallow the next one."""
    try:
        stream = FileIO(file, "a+")
        size = stream.seek(0, os.SEEK_END)
        if size:
            stream.seek(size - 1)
            if stream.read(1) != b"\n":
                stream.write(b"\n")
    except OSError as error:
        raise UserError(f"cannot write {file}: {error.strerror}") from error
    return stream


def read_curve(file: Path, event: str, name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one logged number, sorted by step.

    A resumed run continues from its last checkpoint: its `start` line discards what was logged after that step. A line
    that a crash cut off, and whatever else is not a line of this log, is ignored.
    """
    curve: dict[int, float] = {}
    for line in file.read_bytes().splitlines():
        entry = _entry(line)
        step, value = entry.get("step"), entry.get(name)
        if type(step) is not int or not 0 <= step < LARGEST:
            continue
        if entry.get("event") == "start":
            curve = {done: kept for done, kept in curve.items() if done <= step}
        elif entry.get("event") == event and _is_drawn(value):
            curve[step] = value
    return sorted(curve), [curve[step] for step in sorted(curve)]


def _is_drawn(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _entry(line: bytes) -> dict[str, Any]:
    """One line of the log; empty where it is something else."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return entry if isinstance(entry, dict) else {}
