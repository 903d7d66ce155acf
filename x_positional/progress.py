"""Console output that training, plotting and the command line share: progress bars and plain lines."""

from collections.abc import Iterable
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


class Track(Protocol):
    """Yields `items` one by one and reports progress under `label`."""

    def __call__(self, items: Iterable[Item], label: str) -> Iterable[Item]: ...


def silent(items: Iterable[Item], label: str) -> Iterable[Item]:
    """A `Track` without output."""
    return items


def progress_bars(console: Console) -> Track:
    """A `Track` that draws a bar on `console` and removes it at the end; silent when the console is not a terminal."""

    def show(items: Iterable[Item], label: str) -> Iterable[Item]:
        return track(items, description=label, console=console, transient=True, disable=not console.is_terminal)

    return show


def print_lines(console: Console, *lines: str) -> None:
    """Print lines verbatim: no markup, highlighting or wrapping."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
