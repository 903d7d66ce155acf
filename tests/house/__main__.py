"""`python -m tests.house`: how the package is laid out, in numbers. `--repo DIR` measures another checkout."""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.house.measure import Graph, House, longest_chain, ring

Row = tuple[str, str, str]
"""What is measured, its value, and where."""


def chain(graph: Graph) -> tuple[str, str]:
    """Length of the longest chain, and the chain."""
    circle = ring(graph)
    if circle:
        return "ring", " -> ".join(circle)
    found = longest_chain(graph)
    return str(len(found)), " -> ".join(name.removeprefix("x_positional.") for name in found)


def rows(house: House) -> Iterator[Row]:
    """The table."""
    entries = house.root_entries()
    yield "entries at the package root", str(len(entries)), ""
    yield "modules", str(len(house.sources)), ""
    folder, size = max(house.folder_sizes().items(), key=lambda item: item[1])
    yield "most modules in a folder", str(size), folder
    yield "longest import chain, by file", *chain(house.files)
    yield "longest import chain, by folder", *chain(house.folders())
    single, items = house.single_importers(), house.single_importer_items()
    yield "modules with a single importer", str(len(single) + items), f"{items} of them a scheme or a family"
    small = house.small_single_importers()
    yield "of these below 60 lines", str(len(small)), ", ".join(small)
    skips = house.skips()
    yield "fmt: skip or off", str(sum(skips.values())), f"in {len(skips)} files"
    length, name = house.functions()[0]
    yield "median function, lines", f"{house.median_function():g}", ""
    yield "longest function, lines", str(length), name


def collected(root: Path) -> Row:
    """How many tests pytest collects there."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q"]
    run = subprocess.run(command, cwd=root, env=None, capture_output=True, text=True, check=False)
    found = re.search(r"(\d+) tests collected", run.stdout)
    return "tests collected", found[1] if found else "failed", ""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m tests.house", description=__doc__)
    parser.add_argument("--repo", type=Path, default=Path(__file__).parents[2], help="the checkout to measure")
    parser.add_argument("--collect", action="store_true", help="count the tests too (about half a minute)")
    options = parser.parse_args()
    house = House(options.repo.resolve())
    table = Table("measured", "value", "where", title=str(options.repo))
    for row in [*rows(house), *([collected(house.root)] if options.collect else [])]:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
