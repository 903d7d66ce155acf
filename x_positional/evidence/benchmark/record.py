"""What was measured: one JSON file a machine, written after every row, so that an interrupted run continues where it was."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

from x_positional.errors import UserError
from x_positional.evidence.benchmark import machine
from x_positional.evidence.benchmark.clock import Ratio, ratio
from x_positional.evidence.benchmark.machine import Limits

DIGITS = 4
"""Significant digits of a sample: more would be noise."""


@dataclass
class Measured:
    """One side of a row."""

    samples: list[float] = field(default_factory=list)
    """One a round, in the order of the rounds: seconds, or bytes of a memory row. Empty if the side did not run."""
    limits: list[float] = field(default_factory=list)
    """The least the machine needed for it in each round, in seconds; empty for a memory row."""
    first: float | None = None
    """Seconds of the first call, which compiles; of compiled sides."""
    agrees: float | None = None
    """With the first side: the share of equal tokens of a decode row, or the largest difference relative to the largest value."""
    why_not: str | None = None
    """Why it did not run."""

    @property
    def median(self) -> float | None:
        return statistics.median(self.samples) if self.samples else None

    @property
    def fraction(self) -> float | None:
        """Of the limit, the median over the rounds: 1 is all that the machine allows."""
        if not self.limits:
            return None
        return statistics.median(least / spent for least, spent in zip(self.limits, self.samples, strict=True))


@dataclass
class RowRecord:
    """One row: what it is, the limits measured in each of its rounds, its sides."""

    title: str
    group: str
    spec: dict[str, Any]
    """Of the row, as data: a row is measured again when it changes."""
    limits: dict[str, list[float]]
    """"bandwidth" and "matrix_rate", as in `Limits`; empty for a memory row."""
    sides: dict[str, Measured]
    demand: dict[str, float] = field(default_factory=dict)
    """Side -> bytes a token of a decode row, operations of the others."""
    date: str = ""
    source: str = ""
    """A hash of the package's source."""

    def ratio(self, slower: str, faster: str) -> Ratio | None:
        """slower / faster in pairs of the same round; above 1, `faster` is. None where one was not measured."""
        above, below = self.sides.get(slower), self.sides.get(faster)
        if above is None or below is None or not above.samples or not below.samples:
            return None
        return ratio(above.samples, below.samples)

    def failures(self) -> list[str]:
        """One line for every side that did not run."""
        return [f"{name}: {side.why_not}" for name, side in self.sides.items() if side.why_not]


@dataclass
class Record:
    """All rows of one machine."""

    path: Path
    machine: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, RowRecord] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> "Record":
        """Read a record; empty where there is none. Raises UserError."""
        if not path.is_file():
            return cls(path)
        try:
            data = json.loads(path.read_text("utf-8"))
            rows = {name: _row(row) for name, row in data["rows"].items() if not _outdated(row)}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{path} is not a record of `bench`: {error!r}. Remove it, or pass another --out."
            ) from error
        return cls(path, data["machine"], rows)

    def holds(self, name: str, spec: Mapping[str, Any]) -> bool:
        """Whether a row was measured as it is now: same spec, same source, same versions, every side that can run."""
        row = self.rows.get(name)
        same = row is not None and row.spec == spec and row.source == machine.source_hash()
        return same and self.machine.get("versions") == machine.versions()

    def add(self, name: str, row: RowRecord, device: torch.device) -> None:
        """Keep a row, and write the file in one move."""
        if self.machine.get("versions") != machine.versions() or not self.machine.get("limits"):
            self.machine = machine.describe(device)
        row.date, row.source = f"{datetime.now(timezone.utc):%Y-%m-%d %H:%M}", machine.source_hash()
        self.rows[name] = row
        self.path.parent.mkdir(parents=True, exist_ok=True)
        data = {"machine": self.machine, "rows": {name: asdict(row) for name, row in self.rows.items()}}
        partial = self.path.with_suffix(".partial")
        partial.write_text(json.dumps(_rounded(data), indent=1) + "\n", encoding="utf-8")
        os.replace(partial, self.path)


def record_path(folder: Path, device: torch.device) -> Path:
    """The file of this machine in a folder."""
    return folder / f"{machine.slug(machine.name_of(device))}.json"


def limits_of(found: Sequence[Limits]) -> dict[str, list[float]]:
    """Of all rounds, as data."""
    return {name: [getattr(limits, name) for limits in found] for name in ("bandwidth", "matrix_rate")}


def _outdated(data: dict[str, Any]) -> bool:
    """Whether a row has one limit for all of its rounds, as rows had; it is measured again."""
    return any("limit" in side for side in data["sides"].values())


def _row(data: dict[str, Any]) -> RowRecord:
    return RowRecord(**{**data, "sides": {name: Measured(**side) for name, side in data["sides"].items()}})


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{DIGITS}g}")
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, list) else value
