"""The results in evidence/: the folder of a comparison, and a JSON file for each scheme and seed on a task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TypeVar

from benchmarks.evidence.grid import EXACT
from x_positional.evidence.comparison.plan import PLAN, Plan, comparison_of, finished_cells, slug
from x_positional.evidence.comparison.results import Cell, Comparison
from x_positional.evidence.comparison.summary import losses
from x_positional.evidence.evaluation.results import Evaluation, Record, TaskScore
from x_positional.evidence.extension.results import Extension

Kept = TypeVar("Kept", bound=Record)
ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "evidence"
PROBES, SINKS, POSITIONS = "probes", "sinks", "positions"
COST, REPEATED = "cost.json", "repeated.json"
EXTENSION, REFERENCE = "extend-smollm2-135m.json", "extend-smollm2-135m-transformers.json"
STREAMING = "extend-smollm2-135m-float32.json"


class Probe(Record):
    """The scores of one scheme and seed on a task."""

    label: str
    seed: int
    scores: tuple[TaskScore, ...]
    seconds: float
    """Time of training and scoring."""


class Cost(Record):
    """Training steps and decoded tokens that were timed side by side, see `cost.py`."""

    step_seconds: dict[str, float]
    """Median time of a step on one thread, by label."""
    decode_seconds: dict[str, tuple[float, ...]]
    """Time of a decoded token of one sequence in each round, by label. A round takes all schemes in turn."""


class Repeated(Record):
    """One seed of every scheme on another machine, see `repeated.py`."""

    cpu: str
    """The instructions that torch uses there, as AVX2."""
    seed: int
    bits: dict[str, dict[int, float]]
    """Bits per byte by label and length."""
    seconds: dict[str, float]
    """Time of training and evaluation by label."""


class Reference(Record):
    """The losses of a published checkpoint in transformers, see `reference.py`."""

    losses: dict[str, dict[int, tuple[float, ...]]]
    """Loss in nats per token of the first windows of the extension, by method and length."""
    float32: dict[str, float] | None = None
    """Loss of the unchanged model at the target length in float32, in the first window: `x_positional` and `transformers`."""


def probe_path(folder: Path, label: str, seed: int, task: str) -> Path:
    """The file of a scheme's scores on a task."""
    return folder / PROBES / f"{slug(label, seed)}-{task}.json"


@dataclass(frozen=True)
class Evidence:
    """Everything that was measured."""

    comparison: Comparison
    probes: tuple[Probe, ...] = ()
    extension: Extension | None = None
    reference: Reference | None = None
    streaming: Extension | None = None
    """The same checkpoint in float32, with `keep_first`."""
    sinks: Mapping[str, Evaluation] = field(default_factory=dict)
    """A published checkpoint with other windows, see `sinks.py`."""

    cost: Cost | None = None
    repeated: Repeated | None = None
    positions: Mapping[str, Comparison] = field(default_factory=dict)
    """Schemes trained at drawn positions, see `drawn.py`."""

    @property
    def labels(self) -> tuple[str, ...]:
        """Schemes of the grid, in its order."""
        return tuple(entry.label for entry in self.comparison.entries)

    def cell(self, label: str, seed: int) -> Cell | None:
        """None where it was not measured."""
        found = [cell for cell in self.comparison.cells if (cell.label, cell.seed) == (label, seed)]
        return found[0] if found else None

    def bits(self, label: str, length: int) -> dict[int, float]:
        """Bits per byte of each seed that has a loss at this length."""
        return self._losses.get(label, {}).get(length, {})

    @cached_property
    def _losses(self) -> dict[str, dict[int, dict[int, float]]]:
        return losses(self.comparison)

    def drawn_bits(self, way: str, label: str, length: int) -> dict[int, float]:
        """The same of a scheme that was trained at positions drawn in this way, a name in `positions`."""
        return self._drawn_losses.get(way, {}).get(label, {}).get(length, {})

    @cached_property
    def _drawn_losses(self) -> dict[str, dict[str, dict[int, dict[int, float]]]]:
        return {way: losses(comparison) for way, comparison in self.positions.items()}

    def accuracy(self, label: str, task: str, length: int) -> dict[int, float]:
        """Share of right answer tokens of each seed, or of right answers for the tasks in `EXACT`."""
        found = {
            probe.seed: score.exact if task in EXACT else score.accuracy
            for probe in self.probes
            for score in probe.scores
            if probe.label == label and (score.task, score.length) == (task, length)
        }
        return {seed: share for seed, share in found.items() if share is not None}

    @property
    def task_lengths(self) -> tuple[int, ...]:
        """Scored lengths of the tasks; the first one is the longest that was trained."""
        return tuple(sorted({score.length for probe in self.probes for score in probe.scores}))


def read(folder: Path = FOLDER) -> Evidence | None:
    """What is there so far; None before the first start. Raises UserError for a file that cannot be read."""
    if not (folder / PLAN).exists():
        return None
    plan = Plan.load(folder / PLAN)
    comparison = comparison_of(plan, finished_cells(folder, plan.grid))
    probes = tuple(Probe.load(path) for path in sorted((folder / PROBES).glob("*.json")))
    sinks = {path.stem: Evaluation.load(path) for path in sorted((folder / SINKS).glob("*.json"))}
    positions = {path.stem: Comparison.load(path) for path in sorted((folder / POSITIONS).glob("*.json"))}
    return Evidence(
        comparison,
        probes=probes,
        extension=_optional(Extension, folder / EXTENSION),
        reference=_optional(Reference, folder / REFERENCE),
        streaming=_optional(Extension, folder / STREAMING),
        sinks=sinks,
        cost=_optional(Cost, folder / COST),
        repeated=_optional(Repeated, folder / REPEATED),
        positions=positions,
    )


def _optional(kind: type[Kept], path: Path) -> Kept | None:
    return kind.load(path) if path.exists() else None
