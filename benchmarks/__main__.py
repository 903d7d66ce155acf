"""`python -m benchmarks`: every scheme against x-transformers, printed as ratios (theirs / ours), JSON kept."""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.measure import LIBRARIES, Job, compare, peak_bytes
from benchmarks.models import DEPTH, DIM, HEADS, ROWS, VOCAB
from benchmarks.results import Results, keep

JOBS = (
    Job(name="train", batch=1, length=1024),
    Job(name="forward", batch=1, length=1024),
    Job(name="decode b1", batch=1, length=512, new=64),
    Job(name="decode b8", batch=8, length=512, new=64),
)
GROWTH = tuple(Job(name=f"forward {n}", batch=1, length=n) for n in (256, 512, 1024, 2048, 4096))
MEMORY = Job(name="train", batch=1, length=1024)
CONSOLE = Console()


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--schemes", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--rounds", type=int, default=5, help="measurements of each library and job")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--no-growth", action="store_true", help="skip lengths 256 to 4096")
    parser.add_argument("--only-growth", action="store_true", help="lengths 256 to 4096 and nothing else")
    parser.add_argument("--no-memory", action="store_true", help="skip peak memory")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    return parser.parse_args()


def measure_scheme(scheme: str, options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds (and bytes) of both libraries for every job of a scheme."""
    device = torch.device(options.device)
    jobs = [*(() if options.only_growth else JOBS), *(() if options.no_growth else GROWTH)]
    found = {}
    for job in jobs:
        with CONSOLE.status(f"{scheme}: {job.name}"):
            found[job.name] = compare(scheme, job, device, options.rounds)
    if not (options.no_memory or options.only_growth):
        with CONSOLE.status(f"{scheme}: memory"):
            found["memory"] = {library: float(peak_bytes(library, scheme, MEMORY, device)) for library in LIBRARIES}
    return found


def show(results: Results) -> None:
    """Ratios theirs / ours: above 1 ours is faster, or smaller."""
    columns = list(next(iter(results.values())))
    table = Table(title="x-transformers / x_positional (above 1: ours is faster or smaller)")
    table.add_column("scheme")
    for column in columns:
        table.add_column(column, justify="right")
    for scheme, found in results.items():
        ratios = [found[c]["theirs"] / max(found[c]["ours"], 1e-12) for c in columns]
        table.add_row(scheme, *(f"[{'green' if r >= 1 else 'red'}]{r:.2f}[/]" for r in ratios))
    CONSOLE.print(table)


def main() -> None:
    """Measure, print, keep."""
    options = arguments()
    CONSOLE.print(
        f"dim {DIM}, depth {DEPTH}, heads {HEADS}, vocab {VOCAB}; {options.rounds} rounds, interleaved, medians; "
        f"{options.device}, {torch.get_num_threads()} threads"
    )
    results: Results = {}
    for scheme in options.schemes:
        results[scheme] = measure_scheme(scheme, options)
        show({scheme: results[scheme]})
    show(results)
    CONSOLE.print(f"kept in {keep(results, folder=options.out, device=options.device, rounds=options.rounds)}")


if __name__ == "__main__":
    main()
