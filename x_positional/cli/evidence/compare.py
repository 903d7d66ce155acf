"""`x-positional compare`: schemes trained side by side on the same data and budget."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from x_positional.cli.evidence.page import page_line
from x_positional.evidence.comparison.entries import read_entries, split_entries
from x_positional.evidence.comparison.plan import RESULT, asked, kept_pictures, read_budget
from x_positional.evidence.comparison.results import Comparison
from x_positional.evidence.comparison.run import compare
from x_positional.evidence.comparison.statistics import Interval
from x_positional.evidence.comparison.summary import AtLength, by_length, costs, notes, unit
from x_positional.evidence.report import comparison_page
from x_positional.progress import print_lines, progress_bars
from x_positional.training.load import load_fields

PAGE = "comparison.html"


def run_comparison(
    config: Path,
    overrides: Mapping[str, Any],
    schemes: str,
    *,
    seeds: str,
    budget: str | None,
    steps: int | None,
    lengths: str,
    equal: Literal["tokens", "time"],
    jobs: int,
    windows: int,
    out: Path | None,
    retry: bool,
) -> bool:
    """Compare and print the tables; True if every cell has a loss.

    Args:
        config: The training config.
        overrides: Of its keys.
        schemes: Comma-separated entries.
        seeds: How many, or a list.
        budget: Time of training the whole grid, as 8m.
        steps: Steps of every cell.
        lengths: Comma-separated context lengths.
        equal: What every cell gets the same amount of.
        jobs: Processes side by side.
        windows: Windows of an evaluation.
        out: Folder of the comparison. Default: runs/compare-NAME.
        retry: Run the cells again that failed.

    Raises:
        UserError: The comparison cannot run; the message lists every reason.
    """
    console = Console()
    name = config.resolve().stem
    fields = load_fields(config, overrides)
    entries, problems = read_entries(split_entries(schemes))
    request = asked(
        name,
        fields,
        entries,
        seeds=seeds,
        lengths=lengths,
        steps=steps,
        budget=None if budget is None else read_budget(budget),
        equal=equal,
        windows=windows,
        problems=problems,
        track=progress_bars(console),
    )
    print_lines(console, *(f"warning: {warning}" for warning in request.warnings))
    folder = out or Path("runs") / f"compare-{name}"
    result = compare(request, folder, jobs=jobs, retry=retry, console=console)
    show(result, console)
    pictures = kept_pictures(folder, result)
    page = page_line(folder / PAGE, lambda: comparison_page(result, pictures=pictures))
    print_lines(console, f"kept in {folder / RESULT}", page)
    return all(cell.status == "done" for cell in result.cells)


def show(result: Comparison, console: Console) -> None:
    """Print losses by length, paired differences and costs, and how they were made."""
    places = by_length(result)
    console.print()
    console.print(_lengths(result, places, f"{unit(result)} by context length", "loss"))
    if len(result.entries) > 1:
        title = f"minus {result.entries[0].label}, by seed"
        console.print(_lengths(result, places, title, "difference"))
    table = Table(title="cost", title_justify="left")
    table.add_column("scheme")
    for column in ("tokens", "train s", "train tok/s", "decode tok/s", "step MB"):
        table.add_column(column, justify="right")
    for cost in costs(result):
        megabytes = None if cost.peak_bytes is None else cost.peak_bytes / 1e6
        values = (cost.tokens, cost.seconds, cost.train_speed, cost.decode_speed, megabytes)
        table.add_row(
            cost.label, *("" if value is None else f"{value:,.{0 if value >= 10 else 1}f}" for value in values)
        )
    console.print(table)
    print_lines(console, *notes(result))


def _lengths(result: Comparison, places: list[AtLength], title: str, what: Literal["loss", "difference"]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("scheme")
    for length in result.lengths:
        trained = " (trained)" if length == result.trained_length else ""
        table.add_column(f"{length:,}{trained}", justify="right")
    for entry in result.entries:
        if what == "difference" and entry is result.entries[0]:
            continue
        own = [place for place in places if place.label == entry.label]
        table.add_row(entry.label, *(_cell_words(place, what) for place in own))
    return table


def _cell_words(place: AtLength, what: Literal["loss", "difference"]) -> str:
    interval: Interval | None = place.loss if what == "loss" else place.difference
    if interval is None:
        return "none" if what == "loss" else ""
    sign = "+" if what == "difference" else ""
    half = "" if interval.half is None else f" ± {interval.half:.3f}"
    marked = "*" if what == "difference" and interval.excludes_zero else ""
    return f"{interval.mean:{sign}.3f}{half}{marked}"
