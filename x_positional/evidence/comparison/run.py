"""Runs a comparison: worker processes, calibration, progress, and the cells that are still missing."""

import json
import math
import os
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from typing_extensions import Self

from x_positional.errors import UserError, counted, listed
from x_positional.evidence.comparison.cell import Task
from x_positional.evidence.comparison.plan import (
    PLAN,
    RESULT,
    Asked,
    Grid,
    Plan,
    cell_file,
    comparison_of,
    config_of_cell,
    finished_cells,
    kept_plan,
    locked,
    pictures_file,
    run_settings,
)
from x_positional.evidence.comparison.results import Cell, Comparison
from x_positional.progress import LINE_SECONDS, print_lines, time_left
from x_positional.training.loop.log import LOG

ATTEMPTS = 2
"""How often a cell is begun whose process is killed: a second kill is most likely its memory."""
LEAVE_SECONDS = 60.0
"""How long processes may take to save a checkpoint when the comparison is interrupted."""
CALIBRATION = 0.03, 2.0, 60.0
"""Share of the budget that calibration may take, and its least and most seconds."""
SHARE_OF_TRAINING = 0.85
"""What training counts of a cell, for the progress."""
Key = tuple[str, int]


def compare(
    asked: Asked, folder: Path, *, jobs: int = 1, retry: bool = False, console: Console | None = None
) -> Comparison:
    """Train and measure every cell that is missing, and write `comparison.json`.

    Args:
        asked: The grid.
        folder: Keeps everything; the same call continues what is there.
        jobs: Processes that train side by side, each with a share of the CPU threads.
        retry: Run the cells again that failed.
        console: Shows progress; None is silent.

    Raises:
        UserError: The folder holds another comparison, another process uses it, or the budget is too small.
        KeyboardInterrupt: Finished cells are kept, and those in work have saved a checkpoint.
    """
    console = Console(quiet=True) if console is None else console
    with locked(folder):
        plan = kept_plan(folder, asked.grid)
        cells = finished_cells(folder, asked.grid)
        if retry:
            for key in [key for key, cell in cells.items() if cell.status == "failed"]:
                cell_file(folder, *key).unlink()
                del cells[key]
        with Pool(folder, jobs) as pool:
            if plan is None:
                plan = _planned(asked, pool, console)
                plan.save(folder / PLAN)
            tasks = _tasks(asked, plan, folder, cells)
            if tasks:
                with Meter(console, plan, folder, cells) as meter:
                    _run(tasks, pool, meter, lambda cell: _keep(cell, cells, plan, folder))
        result = comparison_of(plan, cells)
        result.save(folder / RESULT)
    return result


class Worker:
    """A process that makes cells, and the request it is working on."""

    def __init__(self, folder: Path, number: int, threads: int, answers: "queue.Queue[tuple[Worker, Any]]") -> None:
        self.task: Task | None = None
        self.log = folder / "logs" / f"worker-{number}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        package = Path(__file__).parents[3]
        places = [str(package), os.environ.get("PYTHONPATH", "")]
        with self.log.open("ab") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "x_positional.evidence.comparison.worker", str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,  # Ctrl-C reaches the parent alone, which asks for a checkpoint
                env={**os.environ, "PYTHONPATH": os.pathsep.join(place for place in places if place)},
            )
        self._listener = threading.Thread(target=self._listen, args=(answers,), daemon=True)
        self._listener.start()

    def _listen(self, answers: "queue.Queue[tuple[Worker, Any]]") -> None:
        """Passes answers on, and None when the process has ended."""
        for line in self.process.stdout or ():
            answers.put((self, json.loads(line)))
        answers.put((self, None))

    def send(self, request: Mapping[str, Any]) -> None:
        """A request; where the process has ended, `_listen` reports it."""
        stream = self.process.stdin
        try:
            if stream is not None:
                stream.write(json.dumps(request).encode() + b"\n")
                stream.flush()
        except OSError:
            return

    def end(self) -> None:
        """Kill the process if it runs, and close its pipes."""
        self.process.kill()
        self.process.wait()
        self._listener.join()
        for stream in (self.process.stdin, self.process.stdout):
            with suppress(OSError):  # what was not read any more
                if stream is not None:
                    stream.close()

    def last_words(self) -> str:
        """The last line that the process wrote to its log."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1] if lines else "it wrote nothing"


class Pool:
    """The worker processes: none outlives the comparison."""

    def __init__(self, folder: Path, jobs: int) -> None:
        self.jobs = jobs
        self.answers: queue.Queue[tuple[Worker, Any]] = queue.Queue()
        self.workers: list[Worker] = []
        self._folder = folder
        self._threads = max(1, torch.get_num_threads() // jobs)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Let those in work save a checkpoint after an interrupt, and end all."""
        try:
            if kind is not None and issubclass(kind, KeyboardInterrupt):
                for worker in self.workers:
                    worker.process.terminate()
                ends = time.monotonic() + LEAVE_SECONDS
                for worker in self.workers:
                    worker.process.wait(max(0.0, ends - time.monotonic()))
        except (KeyboardInterrupt, subprocess.TimeoutExpired):
            pass  # a second Ctrl-C does not wait
        finally:
            for worker in self.workers:
                worker.end()

    def start(self, count: int) -> list[Worker]:
        """At least `count` processes."""
        while len(self.workers) < count:
            self.workers.append(Worker(self._folder, len(self.workers), self._threads, self.answers))
        return self.workers

    def replace(self, worker: Worker) -> Worker:
        """A new process for one that has ended."""
        worker.end()
        place = self.workers.index(worker)
        self.workers[place] = Worker(self._folder, place, self._threads, self.answers)
        return self.workers[place]


def _planned(asked: Asked, pool: Pool, console: Console) -> Plan:
    """The steps of every cell: as given, or from the budget and the calibrated time of a step. Raises UserError."""
    grid = asked.grid
    if grid.budget_seconds is None:
        return _checked(Plan(grid=grid, steps=dict.fromkeys(_labels(grid), grid.steps or 1), step_seconds={}), asked)
    seconds = _calibrated(asked, pool, console)
    slowest = max(seconds.values(), default=None)
    if slowest is None:
        raise UserError(f"no scheme could train a step; see {pool.workers[0].log}")
    times = {label: seconds.get(label, slowest) for label in _labels(grid)}
    if grid.equal == "time":
        share = grid.budget_seconds * pool.jobs / (len(times) * len(grid.seeds))
        steps = {label: int(share / time) for label, time in times.items()}
    else:
        steps = dict.fromkeys(times, int(grid.budget_seconds * pool.jobs / (sum(times.values()) * len(grid.seeds))))
    if min(steps.values()) < 1:
        least = math.ceil(len(times) * len(grid.seeds) * slowest / pool.jobs)
        raise UserError(
            f"the budget of {grid.budget_seconds:g} s leaves no step for some of the {len(times) * len(grid.seeds)} cells: "
            f"a step of the slowest scheme takes {slowest:.3g} s. Give a --budget of at least {least}s, or fewer schemes or seeds"
        )
    return _checked(Plan(grid=grid, steps=steps, step_seconds=seconds), asked)


def _calibrated(asked: Asked, pool: Pool, console: Console) -> dict[str, float]:
    """The median time of a step, by label; all processes at once, as they will train."""
    grid, (share, least, most) = asked.grid, CALIBRATION
    seconds = min(most, max(least, share * (grid.budget_seconds or 0.0)))
    configs = [config_of_cell(asked.fields, entry, {"trackers": []})[0] for entry in grid.entries]
    request = {
        "configs": [config.model_dump(mode="json") for config in configs if config is not None],
        "seconds": seconds,
        "modules": _modules(grid),
    }
    workers = pool.start(pool.jobs)
    for worker in workers:
        worker.send(request)
    found: list[Sequence[float | None]] = []
    what = f"timing a few steps of {counted(len(grid.entries), 'scheme')}"
    if not console.is_terminal:
        print_lines(console, what)
    with console.status(what):
        while len(found) < len(workers):
            worker, answer = pool.answers.get()
            if answer is None:
                raise UserError(f"the calibration ended early: {worker.last_words()} (see {worker.log})")
            found.append(answer["step_seconds"])
    return {
        label: statistics.median(values)
        for label, column in zip(_labels(grid), zip(*found, strict=True), strict=True)
        if (values := [value for value in column if value is not None])
    }


def _checked(plan: Plan, asked: Asked) -> Plan:
    """The same plan, if its steps suit the config of every scheme. Raises UserError."""
    problems: dict[str, None] = {}
    for entry in plan.grid.entries:
        _, wrong = config_of_cell(asked.fields, entry, {"steps": plan.steps[entry.label]})
        problems |= dict.fromkeys(wrong)
    if problems:
        raise UserError(listed(f"this comparison cannot run with {max(plan.steps.values())} steps a cell:", problems))
    return plan


def _tasks(asked: Asked, plan: Plan, folder: Path, cells: Mapping[Key, Cell]) -> list[Task]:
    """The cells that are missing, one seed of every scheme after another, so that partial results compare all schemes."""
    grid, tasks = plan.grid, []
    for seed in grid.seeds:
        for entry in grid.entries:
            if (entry.label, seed) in cells:
                continue
            config, problems = config_of_cell(asked.fields, entry, run_settings(plan, entry, seed, folder))
            if config is None:
                raise UserError(listed(f"{entry.label}:", problems))
            tasks.append(
                Task(
                    label=entry.label,
                    seed=seed,
                    config=config.model_dump(mode="json"),
                    folder=str(folder),
                    file=str(cell_file(folder, entry.label, seed)),
                    lengths=grid.lengths,
                    targets=grid.targets,
                    windows=grid.windows,
                    position_windows=grid.position_windows,
                    pictures=str(pictures_file(folder, entry.label, seed)) if seed == grid.seeds[0] else None,
                )
            )
    return tasks


def _run(tasks: Sequence[Task], pool: Pool, meter: "Meter", keep: Callable[[Cell], None]) -> None:
    """Give each idle process the next cell until all are done. A cell whose process is killed is begun again, once."""
    waiting, begun, left = deque(tasks), dict[str, int](), len(tasks)
    modules = _modules(meter.plan.grid)

    def give(worker: Worker) -> None:
        worker.task = waiting.popleft() if waiting else None
        if worker.task is not None:
            begun[worker.task.file] = begun.get(worker.task.file, 0) + 1
            worker.send({"task": worker.task.model_dump(mode="json"), "modules": modules})
        meter.working = [worker.task for worker in pool.workers if worker.task is not None]

    def kept(cell: Cell) -> None:
        nonlocal left
        left -= 1
        keep(cell)
        meter.finished(cell)

    for worker in list(pool.start(min(pool.jobs, len(tasks)))):
        give(worker)
    while left:
        try:
            worker, answer = pool.answers.get(timeout=1.0)
        except queue.Empty:
            meter.update()
            continue
        task = worker.task
        if answer is None:
            if task is not None and begun[task.file] < ATTEMPTS:
                waiting.appendleft(task)
            elif task is not None:
                kept(_killed(task, worker))
            worker = pool.replace(worker)
        else:
            kept(Cell.load(Path(answer["done"])))
        give(worker)


def _killed(task: Task, worker: Worker) -> Cell:
    """The cell of a process that ended in the middle of it, again and again."""
    code = worker.process.wait()
    why = f"was killed by signal {-code}, most likely for its memory" if code < 0 else f"ended with exit code {code}"
    cell = Cell(
        label=task.label,
        seed=task.seed,
        status="failed",
        reason=f"the process that trained it {why}, twice; the last line of {worker.log.name}: {worker.last_words()}",
    )
    cell.save(Path(task.file))
    return cell


def _keep(cell: Cell, cells: dict[Key, Cell], plan: Plan, folder: Path) -> None:
    cells[cell.label, cell.seed] = cell
    comparison_of(plan, cells).save(folder / RESULT)


def _labels(grid: Grid) -> list[str]:
    return [entry.label for entry in grid.entries]


def _modules(grid: Grid) -> list[str]:
    return list(dict.fromkeys(entry.module for entry in grid.entries if entry.module is not None))


class Meter:
    """Progress of the whole grid with the time left; without a terminal, a line a cell and one every half minute."""

    def __init__(self, console: Console, plan: Plan, folder: Path, cells: Mapping[Key, Cell]) -> None:
        self.plan = plan
        self.working: list[Task] = []
        self._console, self._cells = console, cells
        self._weights = {(e.label, seed): plan.seconds(e.label) for e in plan.grid.entries for seed in plan.grid.seeds}
        self._began = self._last_line = time.monotonic()
        self._before = self._done_weight()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[counted]}"),
            TextColumn("{task.fields[left]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        total = sum(self._weights.values())
        self._task = self._bar.add_task("starting", total=total, counted="", left="")

    def __enter__(self) -> Self:
        self._bar.start()
        count, cells = len(self._weights), self._weights.keys() - self._cells.keys()
        steps = sorted(set(self.plan.steps.values()))
        each = f"{steps[0]:,}" if len(steps) == 1 else f"{steps[0]:,} to {steps[-1]:,}"
        held = f", {count - len(cells)} of them finished before" if len(cells) < count else ""
        cells_of = f"{counted(count, 'cell')} of {each} step{'' if each == '1' else 's'}"
        print_lines(self._console, f"{cells_of}{held}; interrupted, the same command continues")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def finished(self, cell: Cell) -> None:
        """Show one finished cell."""
        print_lines(self._console, f"[{len(self._cells)}/{len(self._weights)}] {in_words(cell)}{self._rest('; ')}")
        self._last_line = time.monotonic()
        self.update()

    def update(self) -> None:
        """Show how far the cells in work are."""
        what = ", ".join(f"{task.label} seed {task.seed}" for task in self.working)
        counted = f"{len(self._cells)}/{len(self._weights)} cells"
        self._bar.update(
            self._task, completed=self._done_weight(), description=what, counted=counted, left=self._rest()
        )
        if not self._console.is_terminal and time.monotonic() - self._last_line > LINE_SECONDS:
            self._last_line = time.monotonic()
            print_lines(self._console, f"{counted}, working on {what}{self._rest('; ')}")

    def _rest(self, before: str = "") -> str:
        """The time left, from the speed of this session."""
        done = self._done_weight() - self._before
        left = sum(self._weights.values()) - self._done_weight()
        if done <= 0 or left <= 0:
            return ""
        seconds = (time.monotonic() - self._began) * left / done
        return before + time_left(seconds)

    def _done_weight(self) -> float:
        finished = sum(self._weights[key] for key in self._cells)
        in_work = [task for task in self.working if (task.label, task.seed) not in self._cells]
        return finished + sum(
            self._weights[task.label, task.seed] * SHARE_OF_TRAINING * _share_done(task) for task in in_work
        )


def in_words(cell: Cell) -> str:
    """One line for a finished cell."""
    name = f"{cell.label} seed {cell.seed}"
    if cell.evaluation is None:
        return f"{name}: {cell.status}: {cell.reason}"
    first = next((entry for entry in cell.evaluation.lengths if entry.loss is not None), None)
    loss = f"{cell.status}: {cell.reason}" if first is None else f"loss {first.loss:.4f} at {first.length}"
    missing = [f"{entry.length:,}" for entry in cell.evaluation.lengths if entry.loss is None]
    none = f", none at {', '.join(missing)}" if missing and first is not None else ""
    return f"{name}: {loss}{none}, {cell.seconds:.0f} s of training"


def _share_done(task: Task) -> float:
    """How much of a cell's training its log reports."""
    log = Path(task.config["run"]["dir"]) / LOG
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - 2048))
            step = json.loads(file.read().splitlines()[-1])["step"]
        return min(1.0, step / task.config["run"]["steps"])
    except (OSError, ValueError, LookupError, TypeError):  # not there yet, or a line that is being written
        return 0.0
