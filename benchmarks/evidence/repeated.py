"""One seed of every scheme again on another machine: how far the losses depend on the CPU.

    python -m benchmarks.evidence --seed 0 --folder again --no-tasks
    python -m benchmarks.evidence.repeated again

Rounding differs between CPUs, and every training step amplifies it.
"""

import argparse
import statistics
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import torch
from rich.console import Console

from benchmarks.evidence.store import FOLDER, REPEATED, Evidence, Repeated, read
from x_positional.errors import UserError
from x_positional.evidence.comparison.statistics import spearman
from x_positional.progress import print_lines


def main(arguments: list[str] | None = None) -> int:
    """Summarize a folder of this machine in evidence/; 0 if it could be."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.repeated", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="what `python -m benchmarks.evidence --seed N --folder` measured")
    given = parser.parse_args(arguments)
    try:
        measured = read(given.folder)
        if measured is None or not measured.comparison.cells:
            raise UserError(f"{given.folder} holds no measured scheme")
        of_folder(measured).save(FOLDER / REPEATED)
    except UserError as error:
        print_lines(Console(stderr=True), f"error: {error}")
        return 2
    print_lines(Console(), f"kept in {FOLDER / REPEATED}")
    return 0


def of_folder(measured: Evidence) -> Repeated:
    """The losses of the first seed, and how long each cell took."""
    seed, lengths = measured.comparison.seeds[0], measured.comparison.lengths
    found = {label: {length: measured.bits(label, length).get(seed) for length in lengths} for label in measured.labels}
    cells = [cell for cell in measured.comparison.cells if cell.seed == seed and cell.evaluation]
    return Repeated(
        cpu=torch.backends.cpu.get_cpu_capability(),
        seed=seed,
        bits={label: {n: bits for n, bits in own.items() if bits is not None} for label, own in found.items()},
        seconds={cell.label: cell.seconds + cell.evaluation.seconds for cell in cells if cell.evaluation},
    )


def table(evidence: Evidence) -> Iterator[str]:
    """A row a length: how far the same seed is apart on two machines, and how far two seeds are."""
    again = evidence.repeated
    if again is None:
        return
    yield "| length | same seed, other machine | another seed | rank correlation of the same seed |"
    yield "|---:|---:|---:|---:|"
    for length in evidence.comparison.lengths:
        here = {label: evidence.bits(label, length) for label in evidence.labels}
        there = {label: own[length] for label, own in again.bits.items() if length in own}
        both = [label for label in there if again.seed in here.get(label, {})]
        apart = statistics.mean(abs(there[label] - here[label][again.seed]) for label in both)
        seeds = [abs(a - b) for label in both for a, b in combinations(here[label].values(), 2)]
        found = spearman([there[label] for label in both], [here[label][again.seed] for label in both])
        yield f"| {length:,} | {apart:.3f} | {statistics.mean(seeds):.3f} | {found.value:.3f} |"


if __name__ == "__main__":
    sys.exit(main())
