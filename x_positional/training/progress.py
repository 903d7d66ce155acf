"""Progress over things that take more than a moment: shown on a console, or silent."""

import time
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Protocol, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track
from typing_extensions import Self

Item = TypeVar("Item")


class Track(Protocol):
    """Yields `items` one by one and shows how far it is."""

    def __call__(self, items: Sequence[Item], label: str) -> Iterable[Item]: ...


def silent(items: Sequence[Item], label: str) -> Iterable[Item]:
    """No output."""
    return items


def shown(console: Console) -> Track:
    """A bar on `console` that goes away when it is done."""

    def show(items: Sequence[Item], label: str) -> Iterable[Item]:
        return track(items, description=label, console=console, transient=True, disable=not console.is_terminal)

    return show


class Meter:
    """The training bar: step, loss, bits, tokens per second, time left. Without a terminal, a line now and then."""

    _LINE_EVERY_SECONDS = 10.0

    def __init__(self, console: Console, total: int, done: int) -> None:
        self._console = console
        self._total = total
        self._last_line = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=8),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=total, completed=done, figures="")

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._bar.stop()

    def update(self, step: int, figures: str | None = None) -> None:
        """Step `step` is done; `figures` replaces the text beside the bar."""
        if figures is None:
            self._bar.update(self._task, completed=step)
            return
        self._bar.update(self._task, completed=step, figures=figures)
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._last_line > self._LINE_EVERY_SECONDS or step == self._total):
            self._last_line = now
            self.say(f"step {step}/{self._total}  {figures}")

    def track(self, items: Sequence[Item], label: str) -> Iterable[Item]:
        """A second bar under the first one."""
        if self._console.is_terminal:
            task = self._bar.add_task(label, total=len(items), figures="")
            for item in items:
                yield item
                self._bar.advance(task)
            self._bar.remove_task(task)
        else:
            yield from items

    def say(self, text: str) -> None:
        """A line above the bar."""
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)
