"""What a stage finds: rows, written to a JSON file after each, so that a stage that is stopped keeps what it has."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Round:
    """Where the stages run."""

    device: torch.device
    reduced: bool
    """Tiny sizes and few cases, which take seconds: what a CPU runs."""

    @property
    def on_cuda(self) -> bool:
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Row:
    """One result."""

    name: str
    verdict: str = "measured"
    """pass, fail, n/a, or measured for a number without a bound."""
    value: float | None = None
    unit: str = ""
    target: float | None = None
    """What the value should reach; a miss is no failure."""
    detail: str = ""


Stage = Callable[[Round], Iterator[Row]]


@dataclass
class Record:
    """The result of a stage."""

    stage: str
    limit: float
    machine: str = ""
    torch: str = torch.__version__
    seconds: float = 0.0
    ended: str = "running"
    """complete, an error, or the time limit."""
    rows: list[Row] = field(default_factory=list)

    def write(self, folder: Path) -> None:
        """Replace the file of this stage."""
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder / f".{self.stage}.json"
        temporary.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")
        temporary.replace(folder / f"{self.stage}.json")

    @classmethod
    def read(cls, folder: Path, stage: str, limit: float) -> "Record":
        """What a stage has written so far; an empty record where that is nothing."""
        path = folder / f"{stage}.json"
        if not path.is_file():
            return cls(stage, limit)
        fields: dict[str, Any] = json.loads(path.read_text("utf-8"))
        return cls(**{**fields, "rows": [Row(**row) for row in fields["rows"]]})


def attempt(name: str, measure: Callable[[], Row]) -> Row:
    """The row, or one that reports the error: a fault on the device must not end the stage."""
    try:
        return measure()
    except Exception as error:
        lines = f"{type(error).__name__}: {error}".splitlines()
        return Row(name, "fail", detail=" | ".join(lines[:3])[:500])


def run_stage(name: str, stage: Stage, where: Round, folder: Path, limit: float) -> Record:
    """Run a stage in this process, writing its record after each row."""
    began = time.monotonic()
    machine = torch.cuda.get_device_name(where.device) if where.on_cuda else "CPU, reduced sizes"
    record = Record(name, limit, machine)
    record.write(folder)
    for row in stage(where):
        record.rows.append(row)
        record.seconds = round(time.monotonic() - began, 1)
        record.write(folder)
        print(f"  {row.verdict:<9}{row.name}  {shown(row)}", flush=True)
    record.ended, record.seconds = "complete", round(time.monotonic() - began, 1)
    record.write(folder)
    return record


def shown(row: Row) -> str:
    """The value, its target and the detail."""
    value = "" if row.value is None else f"{row.value:.3g} {row.unit}".strip()
    target = "" if row.target is None else f"(target {row.target:g})"
    return "  ".join(part for part in (value, target, row.detail) if part)
