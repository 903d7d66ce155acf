"""Console output that training, plotting and the command line share: progress bars and plain lines."""

import time
from collections.abc import Iterable, Iterator, Sized
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")
LINE_SECONDS = 30.0
"""Time between lines of progress where the output is not a terminal."""


class Track(Protocol):
    """Yields `items` one by one and reports progress under `label`."""

    def __call__(self, items: Iterable[Item], label: str) -> Iterable[Item]: ...


def silent(items: Iterable[Item], label: str) -> Iterable[Item]:
    """A `Track` without output."""
    return items


def progress_bars(console: Console) -> Track:
    """A `Track` that draws a bar on `console` and removes it at the end; where that is not a terminal, a line now and then."""

    def show(items: Iterable[Item], label: str) -> Iterable[Item]:
        if console.is_terminal:
            return track(items, description=label, console=console, transient=True)
        return _with_lines(items, label, console)

    return show


def _with_lines(items: Iterable[Item], label: str, console: Console) -> Iterator[Item]:
    total = len(items) if isinstance(items, Sized) else None
    began = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last > LINE_SECONDS:
            last = now
            rest = "" if total is None else f"/{total}, {time_left((now - began) * (total - done) / done)}"
            print_lines(console, f"{label}: {done}{rest}")
        yield item


def time_left(seconds: float) -> str:
    """`about 80 s left`, `about 2.5 min left`."""
    return f"about {seconds:.0f} s left" if seconds < 90 else f"about {seconds / 60:.1f} min left"


def print_lines(console: Console, *lines: str) -> None:
    """Print lines verbatim: no markup, highlighting or wrapping."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)
