"""What a run leaves behind while it goes: a JSONL log always, TensorBoard by option."""

import json
import math
from pathlib import Path
from typing import Any

from x_positional.errors import MissingExtra

LOG = "log.jsonl"
Value = float | int | str | None


class Record:
    """Appends one JSON object a line. Events: start, train, validation, end."""

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = (folder / LOG).open("a", encoding="utf-8")
        self._board = _board(folder / "tensorboard") if tensorboard else None

    def write(self, event: str, step: int, values: dict[str, Value]) -> None:
        """One line; numbers go to TensorBoard as `event/name` as well."""
        self._stream.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        self._stream.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        self._stream.close()
        if self._board is not None:
            self._board.close()


def _board(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard.writer import SummaryWriter
    except ImportError as error:
        raise MissingExtra("run.tensorboard=true needs tensorboard: pip install 'x-positional[train]'") from error
    return SummaryWriter(str(folder))


def read_curve(file: Path, event: str, name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one number in a log, in order of steps.

    A resumed run goes back to its checkpoint: its `start` line drops what an earlier session logged past that step.
    A last line cut off by a crash is left out.
    """
    curve: dict[int, float] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if entry["event"] == "start":
            curve = {step: value for step, value in curve.items() if step <= entry["step"]}
        elif entry["event"] == event and isinstance(entry.get(name), (int, float)) and math.isfinite(entry[name]):
            curve[entry["step"]] = entry[name]
    return sorted(curve), [curve[step] for step in sorted(curve)]
