"""Progress: a bar on a terminal, a line now and then in a file, nothing on a quiet console."""

import io
import itertools

import pytest
from rich.console import Console

from x_positional import progress
from x_positional.progress import progress_bars, time_left


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every look at the time finds it ten seconds later."""
    ticks = itertools.count(0.0, 10.0)
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(ticks))


def shown(console: Console, items: object) -> tuple[list[int], list[str]]:
    """What comes through, and what is printed."""
    found = list(progress_bars(console)(items, "reading"))  # type: ignore[arg-type]
    return found, console.file.getvalue().splitlines()  # type: ignore[attr-defined]


@pytest.mark.usefixtures("clock")
def test_a_file_gets_a_line_every_half_minute():
    console = Console(file=io.StringIO())
    assert shown(console, range(10)) == (
        list(range(10)),
        ["reading: 3/10, about 1.6 min left", "reading: 7/10, about 34 s left"],
    )


@pytest.mark.usefixtures("clock")
def test_without_a_length_it_counts():
    console = Console(file=io.StringIO())
    assert shown(console, iter("abcde")) == (list("abcde"), ["reading: 3"])


@pytest.mark.usefixtures("clock")
def test_a_quiet_console_stays_quiet():
    assert shown(Console(file=io.StringIO(), quiet=True), range(10)) == (list(range(10)), [])


def test_what_is_quick_prints_nothing():
    assert shown(Console(file=io.StringIO()), range(10)) == (list(range(10)), [])


def test_a_terminal_gets_a_bar():
    console = Console(file=io.StringIO(), force_terminal=True)
    found, printed = shown(console, range(3))
    assert found == [0, 1, 2]
    assert any("reading" in line for line in printed)


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.4, "about 0 s left"), (89.0, "about 89 s left"), (90.0, "about 1.5 min left")]
)
def test_time_left(seconds: float, words: str):
    assert time_left(seconds) == words
