"""A whole grid: killed in the middle and continued, cells that fail, and what is refused before the first step."""

import os
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.support.draws import draws
from x_positional.cli.evidence.compare import show
from x_positional.errors import UserError
from x_positional.evidence.comparison import cell as cell_module
from x_positional.evidence.comparison import run as run_module
from x_positional.evidence.comparison.cell import SharedData, make_cell, step_seconds, write_pictures
from x_positional.evidence.comparison.entries import read_entries, split_entries
from x_positional.evidence.comparison.plan import (
    PLAN,
    RESULT,
    Asked,
    Plan,
    asked,
    cell_file,
    config_of_cell,
    kept_pictures,
    kept_plan,
    locked,
    pictures_file,
    run_settings,
    slug,
)
from x_positional.evidence.comparison.results import Cell, Comparison
from x_positional.evidence.comparison.run import Pool, compare
from x_positional.evidence.comparison.summary import losses, notes
from x_positional.evidence.evaluation.options import parse_lengths
from x_positional.evidence.report import Pictures
from x_positional.models.language import build_model
from x_positional.progress import silent
from x_positional.schemes.registry import REGISTRY
from x_positional.training.loop.log import LOG
from x_positional.training.loop.train import load_data, training_windows

STEPS = 12
OWN = '''
"""Schemes that are slow, raise, or make NaN; only in training, as the validator builds them too."""
import time
from typing import Literal
from x_positional.schemes.base import PositionScheme
from x_positional.schemes.registry import SchemeConfig

class Bad(PositionScheme):
    def __init__(self, how):
        super().__init__()
        self.how = how
    def embed(self, x, positions):
        if self.how == "slow":
            time.sleep(0.1)
        if self.how == "raise":
            raise LookupError("no such row")
        return x * float("nan") if self.how == "nan" else x

class BadConfig(SchemeConfig):
    kind: Literal["bad_in_a_grid"] = "bad_in_a_grid"
    how: str = "slow"
    def build(self, dims):
        return Bad(self.how)

SLOW, RAISE, NAN = BadConfig(), BadConfig(how="raise"), BadConfig(how="nan")
'''
BAD = "slow=bad_schemes:SLOW,raising=bad_schemes:RAISE,nan=bad_schemes:NAN"


@pytest.fixture
def fields(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """The config of a tiny model, in a folder with a text and a module of schemes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    (tmp_path / "bad_schemes.py").write_text(OWN)
    (tmp_path / "text.txt").write_text("".join(f"{a} plus {b} is {a + b}.\n" for a in range(30) for b in range(13)))
    layers = {"kind": "decoder", "dim": 16, "depth": 1, "heads": 2, "head_dim": 8}
    yield {
        "model": {"num_tokens": 256, "max_seq_len": 16, "layers": layers},
        "data": {"path": "text.txt", "val_fraction": 0.1},
        "run": {"batch_size": 2, "device": "cpu"},
    }
    REGISTRY.pop("bad_in_a_grid", None)
    sys.modules.pop("bad_schemes", None)


def ask(fields: dict[str, Any], schemes: str, **changes: Any) -> Asked:
    entries, problems = read_entries(split_entries(schemes))
    options: dict[str, Any] = {
        "seeds": "1",
        "lengths": "1x,4x",
        "steps": STEPS,
        "budget": None,
        "equal": "tokens",
        "windows": 4,
        "problems": problems,
    }
    return asked("tiny", fields, entries, **{**options, **changes})


def wait_for(condition: Callable[[], bool], what: str) -> None:
    ends = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < ends, what
        time.sleep(0.02)


def forked(request: Asked, folder: Path) -> int:
    """Compare in a process without imports of its own; returns its id."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads: the child computes nothing
        process = os.fork()
    if process == 0:
        try:
            compare(request, folder)
        except KeyboardInterrupt:
            os._exit(130)
        finally:
            os._exit(1)
    return process


def worker_ids(folder: Path) -> list[str]:
    """The processes that work on a comparison: those whose log is open."""
    log = str((folder / "logs" / "worker-0.log").resolve())
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            found += [process.name] if os.readlink(process / "fd" / "2") == log else []
        except OSError:
            continue
    return found


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="finds processes in /proc")
@pytest.mark.parametrize("number", draws([signal.SIGKILL], [signal.SIGKILL, signal.SIGINT]))
def test_a_grid_survives_a_kill_in_the_middle(fields: dict[str, Any], tmp_path: Path, number: signal.Signals):
    request, folder = ask(fields, f"rope,absolute,{BAD}"), tmp_path / "grid"
    slow = folder / "runs" / slug("slow", 0)
    process = forked(request, folder)
    wait_for((slow / "checkpoints" / "step-00000003").is_dir, "the slow cell is trained")
    before = {file.name: file.stat().st_mtime_ns for file in (folder / "cells").iterdir()}
    assert sorted(before) == ["absolute-seed0.json", "rope-seed0.json"]
    os.kill(process, number)
    os.waitpid(process, 0)
    wait_for(lambda: worker_ids(folder) == [], "no process outlives the comparison")

    result = compare(request, folder)
    assert {name: (folder / "cells" / name).stat().st_mtime_ns for name in before} == before
    assert Comparison.load(folder / RESULT) == result
    assert [cell.status for cell in result.cells] == ["done", "done", "done", "failed", "not finite"]
    check_cells(result)
    starts = [line for line in (slow / LOG).read_text().splitlines() if '"event": "start"' in line]
    assert len(starts) == 2
    assert '"step": 0' not in starts[1]
    check_pictures(folder, result)
    check_equal_to_an_uninterrupted_cell(request, result, tmp_path)
    check_nothing_is_run_twice(request, folder, result)


def check_cells(result: Comparison) -> None:
    rope, absolute, slow, raising, nan = result.cells
    assert raising.reason == "LookupError: no such row"
    assert "step 1: the loss is nan" in (nan.reason or "")
    assert raising.evaluation is nan.evaluation is None
    for cell in (rope, absolute, slow):
        assert (cell.steps, cell.tokens, len(cell.curve)) == (STEPS, STEPS * 32, STEPS)
        assert cell.evaluation is not None
        assert None not in (cell.tokens_per_second, cell.decode_tokens_per_second, cell.peak_bytes)
    assert absolute.evaluation is not None
    assert [entry.loss is None for entry in absolute.evaluation.lengths] == [False, True]
    assert "out of range" in (absolute.reason or "")
    assert losses(result)["rope"][64].keys() == {0}
    assert losses(result)["absolute"][64] == {}
    assert any("One seed: no intervals" in line for line in notes(result))
    assert any(line.startswith("absolute has no loss at 64: ") for line in notes(result))
    assert any(line == "raising, seed 0: failed: LookupError: no such row" for line in notes(result))
    console = Console(record=True, width=120, quiet=False, file=open(os.devnull, "w"))  # noqa: SIM115
    show(result, console)
    console.file.close()
    assert "bits per byte by context length" in console.export_text()


def check_pictures(folder: Path, result: Comparison) -> None:
    """Of every scheme that was trained, before and after; a file that cannot be read is left out."""
    found = kept_pictures(folder, result)
    assert list(found) == ["rope", "absolute", "slow"]
    assert [picture.stage for picture in found["absolute"].schemes] == ["before training", "after 12 training steps"]
    pictures_file(folder, "rope", 0).write_text("{}")
    assert list(kept_pictures(folder, result)) == ["absolute", "slow"]


def test_pictures_that_cannot_be_made_are_a_reason(
    fields: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config, _ = config_of_cell(fields, ask(fields, "rope").grid.entries[0], {"steps": 1})
    assert config is not None

    def fail(*_: Any, **__: Any) -> None:
        raise LookupError("no such row")

    monkeypatch.setattr(cell_module, "pictures_of", fail)
    write_pictures(tmp_path / "pictures.json", config, build_model(config.model))
    (scheme,) = Pictures.load(tmp_path / "pictures.json").schemes
    assert scheme.problem == "LookupError: no such row"
    write_pictures(tmp_path / "text.txt" / "pictures.json", config, build_model(config.model))  # cannot be written


def check_equal_to_an_uninterrupted_cell(request: Asked, result: Comparison, folder: Path) -> None:
    plan = Plan.load(folder / "grid" / PLAN)
    entry = request.grid.entries[2]
    (task,) = [t for t in run_module._tasks(request, plan, folder / "again", {}) if t.label == entry.label]
    whole = make_cell(task, SharedData())
    killed = next(cell for cell in result.cells if cell.label == entry.label)
    assert whole.curve == killed.curve
    assert whole.evaluation is not None
    assert killed.evaluation is not None
    assert whole.evaluation.lengths == killed.evaluation.lengths


def check_nothing_is_run_twice(request: Asked, folder: Path, result: Comparison) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "Worker", None)  # none is started
        assert compare(request, folder) == result


def test_cells_share_their_data_and_the_lengths_of_other_commands(
    fields: dict[str, Any], monkeypatch: pytest.MonkeyPatch
):
    grid, data = ask(fields, "rope,alibi", lengths="1.3x,1x").grid, SharedData()
    assert grid.lengths == parse_lengths("1x,1.3x", 16) == (16, 21), "1.3 * 16 = 20.8 is rounded"
    read = []
    monkeypatch.setattr(cell_module, "corpus_of", lambda *_: read.append(1) or object())
    configs = [config_of_cell(fields, entry, {"seed": seed})[0] for seed, entry in enumerate(grid.entries)]
    assert len({id(data.of(config)) for config in configs if config is not None}) == len(read) == 1
    shorter, _ = config_of_cell({**fields, "data": {**fields["data"], "seq_len": 8}}, grid.entries[0], {})
    assert shorter is not None
    data.of(shorter)
    assert len(read) == 2


def test_every_scheme_gets_the_same_batches(fields: dict[str, Any], tmp_path: Path):
    request = ask(fields, "rope,alibi,absolute", seeds="2")
    plan = Plan(grid=request.grid, steps=dict.fromkeys(("rope", "alibi", "absolute"), STEPS), step_seconds={})

    def batches(label: int, seed: int) -> torch.Tensor:
        entry = request.grid.entries[label]
        config, _ = config_of_cell(request.fields, entry, run_settings(plan, entry, seed, tmp_path))
        assert config is not None
        windows: Any = training_windows(config, load_data(config, silent)[1])
        return windows.batch(0, 40)

    assert torch.equal(batches(0, 0), batches(1, 0))
    assert torch.equal(batches(0, 0), batches(2, 0))
    assert torch.equal(batches(0, 1), batches(1, 1))
    assert not torch.equal(batches(0, 0), batches(0, 1))


def planned(request: Asked, folder: Path, seconds: dict[str, float], jobs: int = 1) -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "_calibrated", lambda *_: seconds)
        return run_module._planned(request, Pool(folder, jobs), Console(quiet=True))


def test_the_budget_is_the_time_of_the_whole_grid(fields: dict[str, Any], tmp_path: Path):
    request = ask(fields, "rope,alibi", seeds="2", steps=None, budget=60.0)
    times = {"rope": 0.01, "alibi": 0.02}
    plan = planned(request, tmp_path, times)
    assert plan.steps == {"rope": 1000, "alibi": 1000}
    assert sum(plan.steps[label] * times[label] * 2 for label in times) == pytest.approx(60.0)
    assert planned(request, tmp_path, times, jobs=2).steps == {"rope": 2000, "alibi": 2000}
    assert planned(request, tmp_path, {"alibi": 0.02}).steps == {"rope": 750, "alibi": 750}  # rope could not be timed


def test_equal_time_gives_a_costly_scheme_fewer_steps(fields: dict[str, Any], tmp_path: Path):
    request = ask(fields, "rope,alibi", steps=None, budget=60.0, equal="time")
    plan = planned(request, tmp_path, {"rope": 0.01, "alibi": 0.02})
    assert plan.steps == {"rope": 3000, "alibi": 1500}
    for entry in request.grid.entries:  # the schedule ends with the steps of each
        config, _ = config_of_cell(request.fields, entry, run_settings(plan, entry, 0, tmp_path))
        assert config is not None
        assert config.run.steps == plan.steps[entry.label]
        assert len(range(0, config.run.steps, config.run.log_every)) <= 100


def test_a_budget_below_one_step_is_refused(fields: dict[str, Any], tmp_path: Path):
    request = ask(fields, "rope,alibi", steps=None, budget=1.0)
    with pytest.raises(UserError, match=r"the slowest scheme takes 2 s\. Give a --budget of at least 4s"):
        planned(request, tmp_path, {"rope": 1.0, "alibi": 2.0})


def test_a_warm_up_longer_than_the_budget_is_refused(fields: dict[str, Any], tmp_path: Path):
    fields["optimizer"] = {"warmup_steps": 500}
    fields["run"]["steps"] = 1000
    request = ask(fields, "rope,alibi", steps=None, budget=60.0)
    with pytest.raises(UserError, match=r"with 300 steps a cell:\n.*warmup_steps=500 leaves none"):
        planned(request, tmp_path, {"rope": 0.1, "alibi": 0.1})


def test_steps_are_timed(fields: dict[str, Any]):
    request = ask(fields, "rope,slow=bad_schemes:SLOW,raising=bad_schemes:RAISE")
    configs = [config_of_cell(request.fields, entry, {})[0] for entry in request.grid.entries]
    rope, slow, raising = step_seconds([config for config in configs if config is not None], 0.1, SharedData())
    assert rope is not None
    assert slow is not None
    assert slow > 0.1  # it sleeps that long
    assert rope > 0.0
    assert raising is None


def test_all_problems_of_all_entries_at_once(fields: dict[str, Any]):
    fields["model"]["layers"]["heads"] = 3
    schemes = "rop,{kind: alibi, heads: 9},{kind: rope, fraction: 0.1},rope,no_module:Config,{windw: 8}"
    with pytest.raises(UserError) as caught:
        ask(fields, schemes, budget=3.0, seeds="two")
    message = str(caught.value)
    for words in (
        "--seeds two is neither",
        "--steps 12 and --budget cannot be combined",
        "did you mean 'rope'",
        "alibi(heads=9): alibi: heads=9 exceeds",
        "rope(fraction=0.1): ",
        "no_module:Config: cannot import no_module",
        "windw",
    ):
        assert words in message
    assert "\n  - rope: " not in message


def test_what_holds_for_all_entries_is_reported_once(fields: dict[str, Any]):
    fields["run"]["batch_size"] = 0
    with pytest.raises(UserError) as caught:
        ask(fields, "rope,alibi")
    assert str(caught.value).count("batch_size") == 1


def test_a_text_too_short_for_the_longest_length(fields: dict[str, Any]):
    with pytest.raises(
        UserError, match=r"validation text has \d+ tokens; the longest length needs 16,000.*val_fraction"
    ):
        ask(fields, "rope", lengths="1x,1000x")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lengths": "1x,fast"}, "fast: give a multiple of the trained length"),
        ({"seeds": "0"}, "at least 1 seed"),
        ({"seeds": "two"}, "neither a number of seeds nor a list"),
        ({"equal": "time"}, "--equal time divides a time"),
    ],
)
def test_mistakes(fields: dict[str, Any], changes: dict[str, Any], message: str):
    with pytest.raises(UserError, match=message):
        ask(fields, "rope", **changes)


def test_other_settings_in_the_same_folder_are_refused(fields: dict[str, Any], tmp_path: Path):
    request = ask(fields, "rope,alibi")
    Plan(grid=request.grid, steps={"rope": STEPS, "alibi": STEPS}, step_seconds={}).save(tmp_path / "grid" / PLAN)
    fields["optimizer"] = {"lr": 0.5}
    changed = ask(fields, "rope,{kind: alibi, heads: 1}", lengths="1x,2x", steps=9)
    with pytest.raises(UserError) as caught:
        compare(changed, tmp_path / "grid")
    lines = str(caught.value).splitlines()[1:]
    names = [line.removeprefix("  - ").split(" is ")[0] for line in lines]
    assert names == ["config.optimizer.lr", "lengths", "schemes.alibi", "steps"]
    assert "lengths is [16, 32]; the folder has [16, 64]" in lines[1]


def test_a_grid_that_began_before_a_key_existed_continues_at_its_default(fields: dict[str, Any], tmp_path: Path):
    request, folder = ask(fields, "rope"), tmp_path / "grid"
    earlier = {section: dict(values) if values else values for section, values in request.grid.config.items()}
    del earlier["data"]["positions"], earlier["data"]["pose_chunks"], earlier["run"]["z_loss"]
    grid = request.grid.model_copy(update={"config": earlier})
    Plan(grid=grid, steps={"rope": STEPS}, step_seconds={}).save(folder / PLAN)
    plan = kept_plan(folder, request.grid)
    assert plan is not None
    assert plan.grid == request.grid
    fields["model"]["max_seq_len"] *= 2
    fields["data"] = {**fields.get("data", {}), "seq_len": fields["model"]["max_seq_len"] // 2, "positions": "pose"}
    with pytest.raises(UserError, match=r"config.data.positions is 'pose'; the folder has None"):
        kept_plan(folder, ask(fields, "rope").grid)


def test_with_steps_a_grid_may_grow(fields: dict[str, Any], tmp_path: Path):
    request, folder = ask(fields, "rope"), tmp_path / "grid"
    Plan(grid=request.grid, steps={"rope": STEPS}, step_seconds={}).save(folder / PLAN)
    larger = ask(fields, "alibi,rope", seeds="2")
    for label in ("rope", "alibi"):
        for seed in (0, 1):
            Cell(label=label, seed=seed, status="failed", reason="made up").save(cell_file(folder, label, seed))
    result = compare(larger, folder)
    assert [(cell.label, cell.seed) for cell in result.cells] == [("alibi", 0), ("alibi", 1), ("rope", 0), ("rope", 1)]
    with pytest.raises(UserError, match=r"schemes\.alibi is None"):
        compare(request, folder)


def test_two_processes_cannot_use_one_folder(fields: dict[str, Any], tmp_path: Path):
    with locked(tmp_path / "grid"), pytest.raises(UserError, match="another process is comparing"):
        compare(ask(fields, "rope"), tmp_path / "grid")


def test_the_names_of_files_differ():
    labels = ["rope", "Rope", "rope+", "rope(a=1)", "rope(a=1.0)", "…", "::"]
    assert len({slug(label, 0) for label in labels}) == len(labels)
    assert slug("t5", 3) == "t5-seed3"


def test_a_worker_ends_after_half_a_request():
    """The process that started it was killed while it wrote."""
    command = [sys.executable, "-m", "x_positional.evidence.comparison.worker", "1"]
    assert subprocess.run(command, input=b'{"modules": [', capture_output=True, timeout=120).returncode == 0
