"""What a comparison trains and measures, checked before the first step and kept in its folder, so that it can be continued."""

import hashlib
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError

from x_positional.config.validate import Report
from x_positional.errors import UserError, import_extra, listed, shown
from x_positional.evidence.comparison.entries import with_layers
from x_positional.evidence.comparison.results import Cell, Comparison, Entry
from x_positional.evidence.evaluation.options import DEFAULT, parse_lengths
from x_positional.evidence.evaluation.results import Record
from x_positional.evidence.report.pictures import Pictures
from x_positional.progress import Track, silent
from x_positional.schemes.suggest import messages, section_at
from x_positional.training.config import TrainConfig, flat
from x_positional.training.data.corpus import Corpus
from x_positional.training.finetune.dataset import Conversations
from x_positional.training.loop.train import load_data, training_report

PLAN, RESULT, CELLS, RUNS, PICTURES = "plan.json", "comparison.json", "cells", "runs", "pictures.json"
POINTS = 100
"""Points of a training curve, at most."""
SAVE_SECONDS = 20.0
"""Training that a kill can lose."""
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
PER_CELL = (
    "dir",
    "steps",
    "seed",
    "stop_after",
    "log_every",
    "eval_every",
    "eval_first",
    "save_every",
    "keep",
    "trackers",
)
"""Settings of the run section that each cell gets its own value of."""


class Grid(Record):
    """What was asked for. Two commands with equal grids continue each other."""

    name: str
    entries: tuple[Entry, ...]
    seeds: tuple[int, ...]
    lengths: tuple[int, ...]
    trained_length: int
    equal: Literal["tokens", "time"] = "tokens"
    steps: int | None
    """Steps of every cell; None where they follow from the budget."""
    budget_seconds: float | None
    """Time of training all cells."""
    windows: int
    """Windows of an evaluation."""
    position_windows: int = 16
    """Windows of the loss by position, at most; 0 leaves it out."""
    targets: int
    """Tokens scored in each window."""
    data: str
    """Digest of the token ids."""
    config: dict[str, Any]
    """The training config that all cells share."""


class Plan(Record):
    """A grid, and what its calibration decided."""

    grid: Grid
    steps: dict[str, int]
    """Optimizer steps of a cell, by label."""
    step_seconds: dict[str, float]
    """Calibrated time of a step, by label; empty where nothing was timed."""

    def seconds(self, label: str) -> float:
        """The expected time of training a cell, in seconds or, where nothing was timed, in steps."""
        return self.steps[label] * self.step_seconds.get(label, max(self.step_seconds.values(), default=1.0))


@dataclass(frozen=True)
class Asked:
    """A grid that has passed every check."""

    grid: Grid
    fields: dict[str, Any]
    """The training config of the command, before it is validated: that of each cell is made from it."""
    warnings: tuple[str, ...] = ()


def read_budget(text: str) -> float:
    """`8m` -> seconds. Raises UserError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh])", text.strip())
    seconds = 0.0 if match is None else float(match[1]) * UNITS[match[2]]
    if seconds <= 0:
        raise UserError(f"--budget {text} is not a time; write 90s, 8m or 1.5h")
    return seconds


def read_seeds(text: str, first: int) -> tuple[int, ...]:
    """A count -> that many seeds from `first`; a list `0,5,7` -> those seeds. Raises UserError."""
    items = [item.strip() for item in text.split(",")]
    if not all(item.isascii() and item.isdecimal() and len(item) < 10 for item in items):
        raise UserError(f"--seeds {text} is neither a number of seeds nor a list of them; write 3, or 0,1,2")
    if len(items) > 1:
        return tuple(dict.fromkeys(int(item) for item in items))
    count = int(text)
    if not 1 <= count <= 1000:
        raise UserError(f"--seeds {text}: give at least 1 seed, and at most 1000")
    return tuple(range(first, first + count))


def fields_of_cell(fields: Mapping[str, Any], entry: Entry, run: Mapping[str, Any]) -> dict[str, Any]:
    """The training config of one cell, before it is validated. run: settings of its run section."""
    changed = with_layers(fields, entry)
    section = changed.get("run")
    if section is None or isinstance(section, dict):
        changed["run"] = {**(section or {}), **run}
    return changed


def config_of_cell(
    fields: Mapping[str, Any], entry: Entry, run: Mapping[str, Any]
) -> tuple[TrainConfig | None, list[str]]:
    """The validated config of one cell; or None, and what is wrong with it."""
    raw = fields_of_cell(fields, entry, run)
    try:
        return TrainConfig.parse(raw), []
    except ValidationError as error:
        return None, messages(TrainConfig, error, raw)
    except ValueError as error:  # a name of a scheme, which is read before pydantic sees it
        return None, [str(error)]


def asked(
    name: str,
    fields: Mapping[str, Any],
    entries: Sequence[Entry],
    *,
    seeds: str = "1",
    lengths: str = DEFAULT,
    steps: int | None = None,
    budget: float | None = None,
    equal: Literal["tokens", "time"] = "tokens",
    windows: int = 32,
    problems: Iterable[str] = (),
    track: Track = silent,
) -> Asked:
    """Check everything that can be checked before the first step.

    Args:
        name: Of the comparison.
        fields: The training config, before it is validated.
        entries: The schemes.
        seeds: As in `read_seeds`.
        lengths: As in `parse_lengths`.
        steps: Steps of every cell; None for the budget, or without one for `run.steps`.
        budget: Seconds of training for the whole grid.
        equal: What every cell gets the same amount of.
        windows: Windows of an evaluation.
        problems: Found earlier, to be reported with the others.
        track: Shows the progress of reading the data.

    Raises:
        UserError: With every problem of all entries.
    """
    configs, wrong, warnings = _configs(fields, entries)
    found = [*problems, *_contradictions(fields, steps, budget, equal), *wrong]
    first = configs[0] if configs else None
    seed, trained = (0, 2) if first is None else (first.run.seed, first.seq_len)
    seed_values = _tried(lambda: read_seeds(seeds, seed), found)
    length_values = _tried(lambda: parse_lengths(lengths, trained), found)
    if found or first is None:
        raise UserError(listed("this comparison cannot run:", found or ["it has no schemes; name some with --schemes"]))
    targets = max(1, min(64, length_values[0] // 2))
    corpus = _data(first, length_values, track)
    grid = Grid(
        name=name,
        entries=tuple(entries),
        seeds=seed_values,
        lengths=length_values,
        trained_length=first.seq_len,
        equal=equal,
        steps=None if budget is not None else steps or first.run.steps,
        budget_seconds=budget,
        windows=windows,
        targets=targets,
        data=corpus.fingerprint,
        config=_shared(first, entries),
    )
    return Asked(grid, dict(fields), tuple(warnings))


def _tried(read: Callable[[], tuple[int, ...]], problems: list[str]) -> tuple[int, ...]:
    """What `read` returns; its UserError is added to the problems."""
    try:
        return read()
    except UserError as error:
        problems.append(str(error))
        return ()


def run_settings(plan: Plan, entry: Entry, seed: int, folder: Path) -> dict[str, Any]:
    """The run section of one cell."""
    steps = plan.steps[entry.label]
    seconds = plan.step_seconds.get(entry.label)
    every = steps // 20 if seconds is None else round(SAVE_SECONDS / max(seconds, 1e-6))
    return {
        "dir": str(folder / RUNS / slug(entry.label, seed)),
        "steps": steps,
        "seed": seed,
        "stop_after": None,
        "log_every": math.ceil(steps / POINTS),
        "eval_every": steps,
        "eval_first": False,
        "save_every": max(1, min(steps, every)),
        "keep": 1,
        "trackers": [],
    }


def cell_file(folder: Path, label: str, seed: int) -> Path:
    """Where a finished cell is kept."""
    return folder / CELLS / f"{slug(label, seed)}.json"


def pictures_file(folder: Path, label: str, seed: int) -> Path:
    """Where what the scheme of a cell does is kept, beside its run."""
    return folder / RUNS / slug(label, seed) / PICTURES


def kept_pictures(folder: Path, comparison: Comparison) -> dict[str, Pictures]:
    """What each scheme does, by label, of the first seed that has it. A file that cannot be read is left out."""
    found: dict[str, Pictures] = {}
    for entry in comparison.entries:
        for seed in comparison.seeds:
            file = pictures_file(folder, entry.label, seed)
            if entry.label not in found and file.is_file():
                with suppress(UserError):  # of another version; the losses do not need it
                    found[entry.label] = Pictures.load(file)
    return found


def slug(label: str, seed: int) -> str:
    """The name of a cell's files: readable, and different for different labels."""
    plain = re.sub(r"[^a-z0-9]+", "-", label.lower()).strip("-")
    marked = plain if plain == label else f"{plain or 'scheme'}-{hashlib.sha256(label.encode()).hexdigest()[:6]}"
    return f"{marked}-seed{seed}"


def finished_cells(folder: Path, grid: Grid) -> dict[tuple[str, int], Cell]:
    """The cells that are done, by label and seed. Raises UserError for a damaged file."""
    found = {}
    for entry in grid.entries:
        for seed in grid.seeds:
            file = cell_file(folder, entry.label, seed)
            if file.exists():
                found[entry.label, seed] = Cell.load(file)
    return found


def comparison_of(plan: Plan, cells: Mapping[tuple[str, int], Cell]) -> Comparison:
    """The result, with the cells there are, in the order of entries and seeds."""
    grid = plan.grid
    order = [(entry.label, seed) for entry in grid.entries for seed in grid.seeds]
    return Comparison(
        name=grid.name,
        entries=grid.entries,
        seeds=grid.seeds,
        lengths=grid.lengths,
        trained_length=grid.trained_length,
        equal=grid.equal,
        steps=None if grid.equal == "time" else max(plan.steps.values()),
        budget_seconds=grid.budget_seconds,
        config=grid.config,
        cells=tuple(cells[key] for key in order if key in cells),
    )


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of the folder, which is created. Raises UserError where another one runs in it."""
    filelock = import_extra("filelock", "comparing needs", "train")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--out {folder} is a file; choose a folder")
    folder.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise UserError(
            f"another process is comparing in {folder}; wait until it ends, or choose another --out"
        ) from error
    except NotImplementedError as error:
        raise UserError(f"{folder} is on a file system without locks; choose another --out") from error
    try:
        yield
    finally:
        lock.release()


def kept_plan(folder: Path, grid: Grid) -> Plan | None:
    """The plan of an earlier start in this folder; None where there is none, or where the grid has grown.

    Where steps are given, schemes and seeds may be added: the other cells stay as they are.

    Raises:
        UserError: Any other setting differs. The message lists all that do.
    """
    file = folder / PLAN
    if not file.exists():
        return None
    plan = Plan.load(file)
    before, now = _settings(plan.grid), _settings(grid)
    before |= _added_since(before, now, grid.config)
    changed = [name for name in sorted(before.keys() | now.keys()) if before.get(name) != now.get(name)]
    if grid.steps is not None:
        changed = [name for name in changed if not (name.startswith("schemes.") and name not in before)]
        if set(plan.grid.seeds) <= set(grid.seeds):
            changed = [name for name in changed if name != "seeds"]
    if changed:
        lines = [f"{name} is {shown(now.get(name))}; the folder has {shown(before.get(name))}" for name in changed]
        raise UserError(
            listed(f"cannot continue {folder} with other settings (for a new comparison, choose another --out):", lines)
        )
    continued = plan.model_copy(update={"grid": plan.grid.model_copy(update={"config": grid.config})})
    return continued if continued.grid == grid else None


def _added_since(before: Mapping[str, Any], now: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    """The config keys that an earlier version did not have, each at its default: what that version did."""
    found = {}
    for name in now.keys() - before.keys():
        top, *path = name.split(".")
        section = section_at(TrainConfig, tuple(path[:-1]), config) if top == "config" else None
        field = None if section is None else section.model_fields.get(path[-1])
        if field is not None and not field.is_required():
            found[name] = TypeAdapter(Any).dump_python(field.get_default(call_default_factory=True), mode="json")
    return found


def _settings(grid: Grid) -> dict[str, Any]:
    """Each setting by its name, the layers of a scheme being one of them."""
    schemes = {f"schemes.{entry.label}": entry.model_dump(mode="json")["layers"] for entry in grid.entries}
    return flat(grid.model_dump(mode="json", exclude={"name", "entries"})) | schemes


def _contradictions(fields: Mapping[str, Any], steps: int | None, budget: float | None, equal: str) -> Iterator[str]:
    if steps is not None and budget is not None:
        yield f"--steps {steps} and --budget cannot be combined: the steps follow from the budget; leave one out"
    if equal == "time" and budget is None:
        yield "--equal time divides a time among the cells; give it with --budget"
    for section in ("init", "chat", "lora"):
        if fields.get(section) is not None:
            yield f"{section} does not apply to a comparison, which trains from random weights; leave it out"


def _configs(fields: Mapping[str, Any], entries: Sequence[Entry]) -> tuple[list[TrainConfig], list[str], list[str]]:
    """The configs of all entries, the problems, and the warnings: each text once, with the entries that it holds for."""
    configs: list[TrainConfig] = []
    problems: dict[str, list[str]] = {}
    warnings: dict[str, list[str]] = {}
    for entry in entries:
        config, wrong = config_of_cell(fields, entry, {})
        report = Report() if config is None else training_report(config)
        for texts, into in ((wrong + report.errors, problems), (report.warnings, warnings)):
            for text in texts:
                into.setdefault(text, []).append(entry.label)
        if config is not None:
            configs.append(config)

    def named(found: Mapping[str, list[str]]) -> list[str]:
        return [
            text if len(labels) == len(entries) > 1 else f"{', '.join(labels)}: {text}"
            for text, labels in found.items()
        ]

    return configs, named(problems), named(warnings)


def _data(config: TrainConfig, lengths: Sequence[int], track: Track) -> Corpus:
    """The data, long enough for every length. Raises UserError."""
    corpus = corpus_of(config, track)
    count = len(corpus.validation.tokens)
    if count < lengths[-1]:
        raise UserError(
            f"the validation text has {count:,} tokens; the longest length needs {lengths[-1]:,}. "
            f"Give a longer text (data.path), raise data.val_fraction, or give --lengths up to {count:,}"
        )
    return corpus


def corpus_of(config: TrainConfig, track: Track) -> Corpus:
    """The data of a cell. Raises UserError."""
    _, corpus = load_data(config, track)
    if isinstance(corpus, Conversations):
        raise UserError("a comparison needs text or token ids; set data.path to those")
    return corpus


def _shared(config: TrainConfig, entries: Sequence[Entry]) -> dict[str, Any]:
    """What all cells share of the resolved config."""
    found = config.model_dump(mode="json")
    for name in {name for entry in entries for name in entry.layers}:
        found["model"]["layers"].pop(name, None)
    for name in PER_CELL:
        found["run"].pop(name)
    found["optimizer"].pop("warmup_steps")  # may follow from the steps
    if "warmup_steps" in config.optimizer.model_fields_set:
        found["optimizer"]["warmup_steps"] = config.optimizer.warmup_steps
    return found
