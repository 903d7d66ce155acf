"""Measures everything that docs/evidence.md shows; a second start continues where the first one was interrupted.

python -m benchmarks.evidence                                     # what is missing in evidence/
python -m benchmarks.evidence --only rope --seed 0 --folder again # one cell, measured again in another folder
python docs/generate/evidence.py                                  # writes the page
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.evidence.grid import CONFIG, LENGTHS, PROBED, SEEDS, TARGETS, TASKS, WINDOWS, entries
from benchmarks.evidence.store import FOLDER, ROOT
from benchmarks.evidence.tasks import measure_probes
from x_positional.errors import UserError, did_you_mean
from x_positional.evidence.comparison.plan import Asked, asked
from x_positional.evidence.comparison.results import Entry
from x_positional.evidence.comparison.run import compare
from x_positional.progress import print_lines
from x_positional.training.load import load_fields


def main(arguments: list[str] | None = None) -> int:
    """Run; 0 if everything was measured, 2 for a wrong argument."""
    given = _arguments().parse_args(arguments)
    console = Console()
    seeds = tuple(given.seed or SEEDS)
    try:
        chosen = _chosen(given.only)
        if (given.only or given.seed or given.steps) and given.folder == FOLDER:
            raise UserError("--only, --seed and --steps need a --folder of their own, so that evidence/ stays whole")
        result = compare(request(chosen, seeds, given.steps), given.folder, jobs=given.jobs, console=console)
    except UserError as error:
        print_lines(Console(stderr=True), f"error: {error}")
        return 2
    probed = [entry.label for entry in chosen if entry.label in PROBED]
    keys = [(label, seed, task) for task in TASKS for seed in seeds for label in probed]
    if not given.no_tasks:
        measure_probes(keys, given.folder, given.jobs, console)
    failed = [f"{cell.label}, seed {cell.seed}: {cell.reason}" for cell in result.cells if cell.status != "done"]
    print_lines(console, *failed, f"kept in {given.folder}")
    return 0


def request(chosen: tuple[Entry, ...], seeds: tuple[int, ...], steps: int | None) -> Asked:
    """The comparison of these schemes and seeds. steps: None is that of the config. Raises UserError."""
    found = asked(
        "evidence",
        load_fields(ROOT / CONFIG, {}),
        chosen,
        seeds=",".join(map(str, (*seeds, seeds[0]))),  # one number alone would be a count
        lengths=",".join(map(str, LENGTHS)),
        steps=steps,
        budget=None,
        equal="tokens",
        windows=WINDOWS,
    )
    return replace(found, grid=found.grid.model_copy(update={"targets": TARGETS, "position_windows": 0}))


def _chosen(labels: list[str]) -> tuple[Entry, ...]:
    known = {entry.label: entry for entry in entries()}
    unknown = [f"unknown scheme {label!r}: {did_you_mean(label, known)}" for label in labels if label not in known]
    if unknown:
        raise UserError("; ".join(unknown))
    return tuple(known[label] for label in labels) or tuple(known.values())


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.evidence", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", action="append", default=[], metavar="LABEL", help="a scheme; may be repeated")
    parser.add_argument("--seed", action="append", type=int, metavar="N", help="a seed; may be repeated")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the results go (default: evidence/)")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side (default: 2)")
    parser.add_argument("--steps", type=int, help="steps of every cell in place of the config's, for a trial")
    parser.add_argument("--no-tasks", action="store_true", help="leave out the tasks")
    return parser


if __name__ == "__main__":
    sys.exit(main())
