"""The progress bar of a training run."""

import time
from collections.abc import Callable, Iterable, Sized
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from typing_extensions import Self

from x_positional.progress import Item, print_lines


class Meter:
    """Shows step, loss, bits, tokens per second and time left; without a terminal, one line every ten seconds."""

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
        self._show(self._bar.start)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._show(self._bar.stop)

    def update(self, step: int, figures: str | None = None) -> None:
        """Record that `step` steps are done; `figures` replaces the text beside the bar."""
        if figures is None:
            self._show(lambda: self._bar.update(self._task, completed=step))
            return
        self._show(lambda: self._bar.update(self._task, completed=step, figures=figures))
        now = time.monotonic()
        if not self._console.is_terminal and (now - self._last_line > self._LINE_EVERY_SECONDS or step == self._total):
            self._last_line = now
            self.print(f"step {step}/{self._total}  {figures}")

    def track(self, items: Iterable[Item], label: str) -> Iterable[Item]:
        """A second bar below the first one: a `Track`."""
        if self._console.is_terminal:
            task = self._bar.add_task(label, total=len(items) if isinstance(items, Sized) else None, figures="")
            for item in items:
                yield item
                self._bar.advance(task)
            self._bar.remove_task(task)
        else:
            yield from items

    def print(self, text: str) -> None:
        """Print a line above the bar."""
        self._show(lambda: print_lines(self._console, text))

    def _show(self, draw: Callable[[], object]) -> None:
        """Draw; a terminal that was closed, or the reader of a pipe that exited, does not stop the training."""
        try:
            draw()
        except OSError:
            self._console.quiet = True
