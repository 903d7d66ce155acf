"""The log of a run: one JSON object per line in `log.jsonl`, and TensorBoard if enabled."""

import json
import os
import sys
from io import FileIO
from pathlib import Path
from typing import Any, TypeGuard

from x_positional.errors import UserError, import_extra

LOG = "log.jsonl"
LARGEST = sys.float_info.max
"""NaN, infinity and what is too large for a float are not drawn."""
Value = float | int | str | None


class RunLog:
    """Appends to the log of a run folder. Events: start, train, validation, end."""

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / LOG
        self._stream = _appending(self._file)
        self._writer = _summary_writer(folder / "tensorboard") if tensorboard else None

    def write(self, event: str, step: int, values: dict[str, Value]) -> None:
        """Write one line; TensorBoard gets each number as `event/name`. Raises `UserError` where the disk is full."""
        line = (json.dumps({"event": event, "step": step, **values}) + "\n").encode()
        try:
            while line:  # a disk that is nearly full takes a part of it
                line = line[self._stream.write(line) :]
        except OSError as error:
            raise UserError(
                f"cannot write {self._file}: {error.strerror}. Continue from the newest checkpoint with --resume."
            ) from error
        if self._writer is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        self._stream.close()
        if self._writer is not None:
            self._writer.close()


def _summary_writer(folder: Path) -> Any:
    import_extra("tensorboard", "run.tensorboard=true needs", "train")
    from torch.utils.tensorboard.writer import SummaryWriter

    return SummaryWriter(str(folder))


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
