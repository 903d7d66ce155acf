"""`python -m benchmarks.evidence`: the grid is whole and valid, and what would spoil evidence/ is refused."""

import shlex
from pathlib import Path

import pytest
from rich.console import Console

from benchmarks.evidence import tasks
from benchmarks.evidence.__main__ import main, request
from benchmarks.evidence.grid import LENGTHS, PROBED, SCHEMES, SEEDS, entries, text_of
from benchmarks.evidence.pages import commands
from benchmarks.evidence.store import Probe, probe_path, read
from x_positional.evidence.comparison.entries import read_entry, split_entries
from x_positional.evidence.comparison.plan import slug
from x_positional.evidence.evaluation.results import TaskScore


def test_the_grid_is_as_large_as_promised_and_every_scheme_can_be_trained():
    found = request(entries(), SEEDS, None).grid
    assert len(found.entries) == len(SCHEMES) >= 20
    assert len(found.seeds) == 3
    assert (found.trained_length, found.lengths) == (256, LENGTHS)
    assert {entry.label for entry in found.entries} >= set(PROBED)
    assert len({slug(entry.label, 0) for entry in found.entries}) == len(SCHEMES)


def test_one_seed_is_not_read_as_a_number_of_seeds():
    assert request(entries()[:1], (5,), 2).grid.seeds == (5,)


@pytest.mark.parametrize("entry", entries(), ids=lambda entry: entry.label)
def test_the_command_line_of_a_cell_trains_that_scheme(entry):
    words = shlex.split(commands(entry.label, 1)[1])
    [text] = split_entries(words[words.index("--schemes") + 1])
    assert text == text_of(entry.label)
    assert read_entry(text) == entry


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only", "rope"], "need a --folder of their own"),
        (["--steps", "3"], "need a --folder of their own"),
        (["--only", "ropes", "--folder", "x"], "unknown scheme 'ropes': did you mean 'rope'?"),
    ],
)
def test_mistakes_are_refused_in_one_line(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(tmp_path.iterdir())


def test_tasks_that_were_measured_are_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    score = TaskScore(task="copy", length=4, trained=True, accuracy=1.0, exact=1.0)
    Probe(label="rope", seed=0, scores=(score,), seconds=1.0).save(probe_path(tmp_path, "rope", 0, "copy"))
    monkeypatch.setattr(tasks, "ProcessPoolExecutor", None)
    tasks.measure_probes([("rope", 0, "copy")], tmp_path, 1, Console(quiet=True))


def test_a_scheme_on_a_task_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked = []

    def scores(layers, names, seed):
        asked.append((layers.position[0].kind, tuple(names), seed))
        return (TaskScore(task="copy", length=4, trained=True, accuracy=0.5, exact=0.0),)

    monkeypatch.setattr(tasks, "task_scores", scores)
    assert tasks.measure_probe("kerple", 2, "copy", tmp_path) == ("kerple", 2, "copy")
    assert asked == [("kerple", ("copy",), 2)]
    assert Probe.load(probe_path(tmp_path, "kerple", 2, "copy")).scores[0].accuracy == 0.5


def test_nothing_is_read_before_the_first_start(tmp_path: Path):
    assert read(tmp_path) is None
