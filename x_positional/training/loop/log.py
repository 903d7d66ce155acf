"""The log of a run: one JSON object per line in `log.jsonl`, and TensorBoard if enabled."""

import json
import math
from pathlib import Path
from typing import Any

from x_positional.errors import import_extra

LOG = "log.jsonl"
Value = float | int | str | None


class RunLog:
    """Appends to the log of a run folder. Events: start, train, validation, end."""

    def __init__(self, folder: Path, *, tensorboard: bool) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._stream = (folder / LOG).open("a", encoding="utf-8")
        self._writer = _summary_writer(folder / "tensorboard") if tensorboard else None

    def write(self, event: str, step: int, values: dict[str, Value]) -> None:
        """Write one line; TensorBoard gets each number as `event/name`."""
        self._stream.write(json.dumps({"event": event, "step": step, **values}) + "\n")
        self._stream.flush()
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


def read_curve(file: Path, event: str, name: str) -> tuple[list[int], list[float]]:
    """(steps, values) of one logged number, sorted by step.

    A resumed run continues from its last checkpoint: its `start` line discards what was logged after that step. A last
    line truncated by a crash is ignored.
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
