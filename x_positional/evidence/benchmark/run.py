"""Measures rows, one after the other: builds the models, warms up, interleaves, keeps."""

import gc
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from x_positional.errors import MissingExtra
from x_positional.evidence.benchmark.clock import interleave, rounds_within
from x_positional.evidence.benchmark.machine import PROBE, Probe
from x_positional.evidence.benchmark.memory import measure_memory
from x_positional.evidence.benchmark.models import Models, Recipe
from x_positional.evidence.benchmark.profiling import Profile, profile_decode
from x_positional.evidence.benchmark.record import Measured, Record, RowRecord, limits_of
from x_positional.evidence.benchmark.rows import Row
from x_positional.evidence.benchmark.work import SIDES, Prepared, prepare

LIMITS = "limits"
"""What the probe is called among the sides: it takes its turn in every round."""


def spec_of(row: Row, device: torch.device) -> dict[str, Any]:
    """What is measured, as data. JSON has lists alone, so tuples become lists."""
    spec = {**asdict(row), "sides": list(row.sides), "device": device.type, "threads": torch.get_num_threads()}
    return {name: value for name, value in spec.items() if name not in ("title", "seconds", "more", "cuda")}


def due(rows: Sequence[Row], record: Record, device: torch.device, again: bool) -> list[Row]:
    """The rows that the record lacks; all of them with `again`."""
    return [row for row in rows if again or not record.holds(row.id, spec_of(row, device))]


def measure(
    rows: Sequence[Row], record: Record, device: torch.device, keep: bool = True
) -> Iterator[tuple[Row, RowRecord]]:
    """Measure every row; each is kept as soon as it is done."""
    for row in rows:
        found = measure_row(row, device)
        if keep:
            record.add(row.id, found, device)
        yield row, found


def measure_row(row: Row, device: torch.device) -> RowRecord:
    """All sides of a row. A side that cannot run has a reason, and the others are measured."""
    if row.group == "memory":
        return _memory_row(row, device)
    sides, prepared = {name: Measured() for name in row.sides}, _prepared(row, device)
    running = {}
    for name, value in prepared.items():
        if isinstance(value, str):
            sides[name].why_not = value
        else:
            running[name] = value
    spent = _compare(sides, running)
    if spent < row.seconds or row.work.kind == "decode":  # what takes longer than that needs no warm-up
        spent = _warm_up(sides, running)
    most_read = max((side.demand.bytes_read for side in running.values()), default=0)
    probe = Probe(most_read, row.dtype, device, min(PROBE, spent))
    turns = {LIMITS: probe.sample, **{name: side.sample for name, side in running.items()}}
    samples = interleave(turns, rounds_within(row.seconds, spent))
    for name, side in running.items():
        sides[name].samples = samples[name]
        sides[name].limits = [found.seconds(side.demand.bytes_read, side.demand.operations) for found in probe.found]
    demand = {name: side.demand.bytes_read or side.demand.operations for name, side in running.items()}
    _forget()
    return RowRecord(row.title, row.group, spec_of(row, device), limits_of(probe.found), sides, demand)


def recipe_of(row: Row, scheme: str, device: torch.device) -> Recipe:
    """The recipe of a row's models."""
    return Recipe(scheme=scheme, shape=row.shape, length=row.work.most_tokens, dtype=row.dtype, device=device)


def _prepared(row: Row, device: torch.device) -> dict[str, Prepared | str]:
    """Every side, ready; or why it cannot run."""
    schemes = {SIDES[name].scheme or row.scheme for name in row.sides}
    models = {scheme: Models(recipe_of(row, scheme, device)) for scheme in schemes}
    return {name: _tried(lambda name=name: _prepare(name, row, models)) for name in row.sides}


def _prepare(name: str, row: Row, models: Mapping[str, Models]) -> Prepared | str:
    side = SIDES[name]
    return side.needs() or prepare(side, row.work, models[side.scheme or row.scheme])


def _tried(run: Callable[[], Any]) -> Any:
    """The result; or the reason as one line, so that one library that fails does not end the run."""
    try:
        return run()
    except MissingExtra as error:
        return str(error)
    except Exception as error:  # whatever a peer raises
        return f"failed: {type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def _compare(sides: dict[str, Measured], running: dict[str, Prepared]) -> float:
    """Record how far each side agrees with the first, drop those that fail, and return the seconds that it took."""
    first, total = None, 0.0
    for name in list(running):
        started = time.perf_counter()
        output = _tried(running[name].output)
        spent = time.perf_counter() - started
        total += spent
        if isinstance(output, str):
            sides[name].why_not = output
            del running[name]
            continue
        if SIDES[name].compiled:
            sides[name].first = spent
        if SIDES[name].scheme is None:
            sides[name].agrees = None if first is None else _agreement(output, first)
            first = output if first is None else first
    return total


def _agreement(output: Tensor, first: Tensor) -> float:
    if output.dtype == torch.long:
        return float((output == first).double().mean())
    scale = float(first.abs().max()) or 1.0
    return float((output.double() - first.double()).abs().max()) / scale


def _warm_up(sides: dict[str, Measured], running: dict[str, Prepared]) -> float:
    """Call every side once, or twice where it compiles; returns how long the last calls took. Drops those that fail."""
    total = 0.0
    for name in list(running):
        value, spent = "", 0.0
        for _ in range(1 + SIDES[name].compiled):
            started = time.perf_counter()
            value = _tried(running[name].sample)
            spent = time.perf_counter() - started
        if isinstance(value, str):
            sides[name].why_not = value
            del running[name]
        else:
            total += spent
    return total


def _memory_row(row: Row, device: torch.device) -> RowRecord:
    sides = {}
    for name in row.sides:
        value = _tried(lambda name=name: measure_memory(row, name, device))
        sides[name] = Measured(why_not=value) if isinstance(value, str) else Measured(samples=[float(value)])
    return RowRecord(row.title, row.group, spec_of(row, device), {}, sides)


def _forget() -> None:
    """Free what the row compiled and built."""
    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def minutes(rows: Sequence[Row]) -> int:
    """About how long rows take."""
    return math.ceil(sum(expected_seconds(row) for row in rows) / 60)


def expected_seconds(row: Row) -> float:
    """What a row is given, and before it: building and warming up the sides, compiling those that compile."""
    compiling = sum(SIDES[name].compiled and SIDES[name].needs() is None for name in row.sides)
    size = min(1.0, row.shape.dim * row.shape.depth / 3072)  # 1 is the default shape
    return 1.5 * row.seconds + (1 + 2 * size) * len(row.sides) + COMPILING * row.shape.depth * compiling


COMPILING = 4.0
"""Seconds a layer, about."""


def profile_row(row: Row, device: torch.device) -> tuple[dict[str, Profile], list[str]]:
    """The profile of every side of a decode row, and a line for each side that cannot run."""
    found, missing = {}, []
    for name, value in _prepared(row, device).items():
        profiled = value if isinstance(value, str) else _tried(lambda value=value: _profile(value, row, device))
        if isinstance(profiled, str):
            missing.append(f"{name}: {profiled}")
        else:
            found[name] = profiled
    _forget()
    return found, missing


def _profile(side: Prepared, row: Row, device: torch.device) -> Profile:
    side.decode(row.work.new + 1)
    return profile_decode(side.decode, row.work.new, device)
