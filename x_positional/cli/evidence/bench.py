"""`x-positional bench`: measures x_positional and its peers on this machine."""

import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from x_positional.errors import UserError, counted, did_you_mean, printable
from x_positional.evidence.benchmark.machine import name_of
from x_positional.evidence.benchmark.record import Record, record_path
from x_positional.evidence.benchmark.report import count, largest, profiles, show_row, targets_of
from x_positional.evidence.benchmark.rows import Row, full_rows, quick_rows
from x_positional.evidence.benchmark.run import due, expected_seconds, measure, minutes, profile_row
from x_positional.evidence.benchmark.targets import verdicts
from x_positional.progress import print_lines
from x_positional.training.cpu import resolve_device

KEPT = Path("benchmarks/results")


def bench(
    names: Sequence[str],
    *,
    quick: bool,
    more: bool,
    profile: bool,
    listing: bool,
    again: bool,
    out: Path | None,
    device: str,
    threads: int | None,
) -> bool:
    """Measure rows and print them; True if x_positional ran in all of them.

    Args:
        names: Rows, or beginnings of their names; empty is all.
        quick: The small rows, which are kept only with `out`.
        more: Also the rows that no target needs.
        profile: Instead of measuring, show where the time of a decoded token goes.
        listing: Print the names of the rows and do nothing.
        again: Measure rows that the record already holds.
        out: Folder of the record.
        device: cpu, cuda, or auto.
        threads: CPU threads. Default: as torch chooses.

    Raises:
        UserError: An unknown row or device.
    """
    console = Console()
    where = usable_device(device)
    rows = chosen(quick_rows() if quick else full_rows(), names, more, where.type == "cuda" and not quick)
    if listing:
        print_lines(console, *(f"{row.id:<28} {row.title}" for row in rows))
        return True
    if threads is not None:
        torch.set_num_threads(threads)
    if profile:
        return _profile([row for row in rows if row.work.kind == "decode"][: len(names) or 1], where, console)
    return _measure(rows, where, console, None if quick and out is None else out or KEPT, again)


def chosen(rows: list[Row], names: Sequence[str], more: bool, cuda: bool) -> list[Row]:
    """The rows whose name is one of `names`, or begins with one; without names those that the targets of the device need, or
    all of them with `more`. Raises UserError."""
    known = [row.id for row in rows]
    unknown = [name for name in names if not any(row.startswith(name) for row in known)]
    if unknown:
        raise UserError("\n".join(f"unknown row {name}: {did_you_mean(name, known)}" for name in unknown))
    if not names:
        return [row for row in rows if row.cuda == cuda and (more or not row.more)]
    return [row for row in rows if any(row.id.startswith(name) for name in names)]


def usable_device(name: str) -> torch.device:
    """`auto` is CUDA where there is one. Raises UserError."""
    if name == "auto":
        return torch.device(resolve_device(name))
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"--device {name} cannot be used: {printable(str(error))}") from error
    return device


def _measure(rows: list[Row], device: torch.device, console: Console, folder: Path | None, again: bool) -> bool:
    path = None if folder is None else record_path(folder, device)
    record = Record(Path()) if path is None else Record.open(path)
    left = due(rows, record, device, again) if path is not None else rows
    print_lines(console, f"{name_of(device)}, {counted(torch.get_num_threads(), 'thread')}")
    if len(left) < len(rows):
        held = len(rows) - len(left)
        print_lines(console, f"{counted(held, 'row is', 'rows are')} in {path} already; --again measures them too")
    print_lines(
        console,
        f"{counted(len(left), 'row')}, about {minutes(left)} min; interrupted, the same command continues",
        "",
    )
    failed = []
    with fresh_compilations(), _bar(console, left) as advance:
        for row, found in measure(left, record, device, keep=path is not None):
            advance(row)
            show_row(found, console)
            record.rows[row.id] = found
            failed += [line for line in found.failures() if line.startswith("x_positional") and "failed" in line]
    if path is not None:
        found = verdicts(record.rows, device.type)
        missed = [(target, verdict) for target, verdict in found if verdict.met is False]
        print_lines(console, f"targets: {count(found)}")
        if missed:
            targets_of(missed).show(console)
        print_lines(console, f"kept in {path}")
    return not failed


def _profile(rows: list[Row], device: torch.device, console: Console) -> bool:
    if not rows:
        raise UserError("--profile shows decode rows: pass one, as decode-b1, or none")
    with fresh_compilations():
        for row in rows:
            with console.status(f"{row.title}: profiling"):
                found, missing = profile_row(row, device)
            print_lines(console, row.title)
            profiles(found).show(console)
            console.print()
            largest(found.items()).show(console)
            print_lines(console, *(f"  not measured: {line}" for line in missing), "")
    return True


@contextmanager
def fresh_compilations() -> Iterator[None]:
    """Compile into an empty folder, so that compile times are those of a first run."""
    name, before = "TORCHINDUCTOR_CACHE_DIR", os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        os.environ[name] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ[name]
            else:
                os.environ[name] = before


@contextmanager
def _bar(console: Console, rows: Sequence[Row]) -> Iterator[Callable[[Row], object]]:
    """A bar with the time that is left; where there is no terminal, a line a row."""
    weights, started, done = {row.id: expected_seconds(row) for row in rows}, time.monotonic(), 0.0
    columns = TextColumn("{task.description}"), BarColumn(bar_width=30), TimeRemainingColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("measuring", total=sum(weights.values()))

        def advance(row: Row) -> None:
            nonlocal done
            done += weights[row.id]
            progress.update(task, completed=done, description=f"measured {row.id}")
            if not console.is_terminal:
                left = (time.monotonic() - started) * (sum(weights.values()) - done) / done
                print_lines(console, f"[{done / sum(weights.values()):.0%}, about {left / 60:.1f} min left]")

        yield advance
