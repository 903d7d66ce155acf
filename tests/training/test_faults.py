"""Runs that lose a file, a disk, a terminal or their process: one error with the way out, and nothing that was saved is lost."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from tests.support.draws import draws
from tests.support.training_runs import config
from x_positional.errors import DamagedCheckpoint, UserError
from x_positional.pretrained.integrity import damage_of, read_record
from x_positional.training import TrainConfig, open_checkpoint, train
from x_positional.training.checkpoints import checkpoint, run_folder
from x_positional.training.checkpoints.checkpoint import checkpoint_folders
from x_positional.training.loop.engine import Engine
from x_positional.training.loop.interrupt import Interrupt
from x_positional.training.loop.log import LOG, RunLog, read_curve

ROOT = Path(__file__).parents[2]
FILES = ("trainer.json", "model.safetensors", "optimizer.safetensors", "config.yaml")


def part(base: TrainConfig, **run: object) -> TrainConfig:
    return base.model_copy(update={"run": base.run.model_copy(update=run)})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    saved = open_checkpoint(folder)
    return {**saved.model_tensors(), **saved.optimizer_tensors()}


def assert_same(first: Path, second: Path) -> None:
    one, two = tensors(first), tensors(second)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of 8 steps, with checkpoints 4 and 8, and the same one stopped at step 6, with 4 and 6."""
    folder = tmp_path_factory.mktemp("runs")
    base = config(folder, eval_every=100)
    train(part(base, dir=str(folder / "whole")))
    train(part(base, dir=str(folder / "stopped"), stop_after=6))
    return folder


@pytest.fixture
def base(whole: Path, tmp_path: Path) -> TrainConfig:
    """The stopped run, in a folder of its own."""
    shutil.copytree(whole / "stopped", tmp_path / "run")
    return part(config(whole, eval_every=100), dir=str(tmp_path / "run"))


DAMAGE: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
    "random": lambda content: bytes(np.random.default_rng(0).integers(0, 256, len(content), dtype=np.uint8)),
    "one bit": lambda content: content[:-40] + bytes([content[-40] ^ 1]) + content[-39:],
    "a number": lambda content: b"5",
    "a list": lambda content: b"[[[1, null]]]",
    "deeply nested": lambda content: b"[" * 100_000,
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [*DAMAGE, "missing", "a folder"])
def test_junk_names_the_file_and_the_newest_good_checkpoint(base: TrainConfig, name: str, damage: str):
    newest = checkpoint_folders(Path(base.run.dir) / "checkpoints")[-1]
    file = newest / name
    content = file.read_bytes()
    if damage in DAMAGE:
        file.write_bytes(DAMAGE[damage](content))
    else:
        file.unlink()
        if damage == "a folder":
            file.mkdir()
    with pytest.raises(DamagedCheckpoint) as caught:
        train(base, resume=True)
    assert str(newest) in str(caught.value)
    assert name in str(caught.value)
    assert "The newest good checkpoint is " in str(caught.value)
    assert "step-00000004; --resume --skip-damaged continues from there" in str(caught.value)


def test_the_option_continues_from_the_newest_good_checkpoint(base: TrainConfig, whole: Path):
    folder = Path(base.run.dir)
    (folder / "checkpoints" / "step-00000006" / "trainer.json").write_text("{}")
    shutil.copytree(folder / "checkpoints" / "step-00000006", folder / "checkpoints" / "step-00000007")
    assert train(base, resume=True, skip_damaged=True).finished
    assert_same(folder, whole / "whole")
    kept = {path.name for path in (folder / "checkpoints").iterdir()}
    assert {"damaged-step-00000006", "damaged-step-00000007", "step-00000008"} <= kept, "nothing is deleted"


def test_without_a_good_checkpoint_nothing_is_renamed(base: TrainConfig):
    root = Path(base.run.dir) / "checkpoints"
    for folder in checkpoint_folders(root):
        (folder / "model.safetensors").write_bytes(b"")
    with pytest.raises(
        DamagedCheckpoint, match=r"the digest of model\.safetensors does not match\. This run has no good"
    ):
        train(base, resume=True)
    with pytest.raises(UserError, match=r"all checkpoints in .* are damaged"):
        train(base, resume=True, skip_damaged=True)
    assert [folder.name for folder in checkpoint_folders(root)] == ["step-00000004", "step-00000006"]
    with pytest.raises(UserError, match="--skip-damaged has no effect without --resume"):
        train(base, skip_damaged=True)


def test_every_changed_byte_of_the_record_is_noticed(base: TrainConfig):
    folder = checkpoint_folders(Path(base.run.dir) / "checkpoints")[-1]
    file, record = folder / "trainer.json", read_record(folder)
    content = file.read_bytes()
    for place in range(0, len(content), draws(7, 1)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        assert damage_of(folder) is not None or read_record(folder) == record, place
    file.write_bytes(content)
    assert damage_of(folder) is None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step", "6"),
        ("step", True),
        ("step", -1),
        ("files", []),
        ("order", 3),
        ("best", "a"),
        ("tokenizer", {}),
        ("best", {"step": 3}),
        ("version", "1"),
        ("version", True),
        ("version", None),
    ],
)
def test_a_record_of_the_first_format_is_judged_by_its_types(base: TrainConfig, name: str, value: object):
    """It has no digest of its own."""
    folder = checkpoint_folders(Path(base.run.dir) / "checkpoints")[-1]
    record = {**read_record(folder), "version": 1, name: value}
    (folder / "trainer.json").write_text(json.dumps(record))
    with pytest.raises(DamagedCheckpoint, match=rf"step-00000006 is damaged: trainer\.json has {name}=.*step-00000004"):
        train(base, resume=True)


def test_the_first_format_still_resumes(base: TrainConfig, whole: Path):
    folder = checkpoint_folders(Path(base.run.dir) / "checkpoints")[-1]
    record = {**read_record(folder), "version": 1}
    for name in run_folder.ADDED:
        del record["order"][name]
    (folder / "trainer.json").write_text(json.dumps(record))
    assert train(base, resume=True).finished
    assert_same(Path(base.run.dir), whole / "whole")


@pytest.mark.parametrize("name", ["checkpoints/step-best", "checkpoints/step-1", "checkpoints/.tmp-step-00000009-1"])
def test_other_folders_are_no_checkpoints(base: TrainConfig, name: str):
    (Path(base.run.dir) / name).mkdir()
    assert open_checkpoint(Path(base.run.dir)).step == 6


def test_steps_are_ordered_by_number(tmp_path: Path):
    for step in (99_999_999, 100_000_000):
        (tmp_path / f"step-{step:08d}").mkdir()
    assert checkpoint_folders(tmp_path)[-1].name == "step-100000000"


def test_the_run_folder_is_locked(base: TrainConfig):
    code = "import sys, filelock; lock = filelock.FileLock(sys.argv[1]); lock.acquire(); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(Path(base.run.dir) / run_folder.LOCK)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        before = (Path(base.run.dir) / LOG).read_bytes()
        with pytest.raises(
            UserError, match=r"another process is training in .*run; wait until it ends, or choose another"
        ):
            train(base, resume=True)
        assert (Path(base.run.dir) / LOG).read_bytes() == before
        other.kill()
    assert train(base, resume=True).finished, "a lock ends with its process"


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def full_safetensors(*_: object, **__: object) -> None:
    raise SafetensorError("I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("place", "name", "fault"),
    [
        (checkpoint, "save_tensors", full_safetensors),
        (checkpoint, "write_record", full),
        (checkpoint, "flush_file", full),
        (checkpoint, "flush_folder", full),
        (run_folder, "prune", full),
        (Path, "replace", full),
    ],
)
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(
    base: TrainConfig,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: object,
    name: str,
    fault: Callable[..., None],
):
    with monkeypatch.context() as patch:
        patch.setattr(place, name, fault)
        with pytest.raises(UserError, match=r"cannot write .*No space left on device"):
            train(base, resume=True)
    assert not list(Path(base.run.dir).rglob(".tmp-*")), "what was half written takes no space"
    folders = checkpoint_folders(Path(base.run.dir) / "checkpoints")
    assert all(damage_of(folder) is None for folder in folders)
    if folders[-1].name != "step-00000008":
        assert train(base, resume=True).finished
    assert_same(Path(base.run.dir), whole / "whole")


def test_a_log_that_cannot_be_written_is_one_line(tmp_path: Path):
    resource = pytest.importorskip("resource", reason="Windows has no limit on the size of files")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = RunLog(tmp_path)
    previous = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        with pytest.raises(UserError, match=rf"cannot write .*{LOG}: File too large\. Continue .*--resume"):
            [log.write("train", step, {"loss": 1.0}) for step in range(10)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, previous)
        log.close()
    steps, _ = read_curve(tmp_path / LOG, "train", "loss")
    assert (tmp_path / LOG).stat().st_size == 100
    log = RunLog(tmp_path)
    log.write("start", 1, {})
    log.close()
    assert read_curve(tmp_path / LOG, "train", "loss")[0] == [step for step in steps if step <= 1]


FOREIGN = [
    b'{"event": "tra',
    b"null",
    b"[1]",
    b'"x"',
    b"{}",
    b'{"event": "train"}',
    b'{"event": "train", "step": "3"}',
    b'{"event": "train", "step": 3, "loss": "x"}',
    b'{"event": "train", "step": 3, "loss": ' + b"9" * 400 + b"}",
    b'{"event": "start", "step": null}',
    b'{"event": 5, "step": 3, "loss": 1.0}',
    b"\xff\xfe\x00",
    b"[" * 100_000,
    b'{"event": "train", "step": ' + b"9" * 400 + b', "loss": 1.0}',
    b'{"event": "train", "step": 3, "loss": NaN}',
]


def test_a_torn_or_foreign_line_does_not_stop_a_run_or_swallow_the_next(base: TrainConfig):
    log = Path(base.run.dir) / LOG
    known = read_curve(log, "train", "loss")
    with log.open("ab") as stream:
        stream.write(b"\n".join([*FOREIGN, b'{"event": "train", "step": 7, "lo']))
    assert read_curve(log, "train", "loss") == known
    result = train(base, resume=True)
    assert result.finished
    assert result.plot is not None
    assert read_curve(log, "train", "loss")[0] == list(range(1, 9))
    starts = [
        line
        for line in log.read_text("utf-8", "replace").splitlines()
        if line.startswith('{"event": "start", "step": 6')
    ]
    assert len(starts) == 1


def test_a_plot_that_cannot_be_written_does_not_stop_a_finished_run(base: TrainConfig):
    plot = Path(base.run.dir) / "loss.png"
    plot.unlink()
    plot.mkdir()
    result = train(base, resume=True)
    assert result.finished
    assert result.plot is None


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_hang_up_saves_like_a_termination(
    base: TrainConfig, whole: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    step = Engine.step

    def step_and_signal(self: Engine, at: int):
        if at == 6:
            os.kill(os.getpid(), number)
        return step(self, at)

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "step", step_and_signal)
        result = train(base, resume=True)
    assert (result.step, result.interrupted) == (7, True)
    assert train(base, resume=True).finished
    assert_same(Path(base.run.dir), whole / "whole")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGHUP")
def test_repeated_signals(monkeypatch: pytest.MonkeyPatch):
    with Interrupt() as interrupt:
        for _ in range(2):  # a closing terminal sends several
            os.kill(os.getpid(), signal.SIGHUP)
        assert interrupt.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with Interrupt() as interrupt:  # the terminal sends the first one, torchrun the second
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)
        assert interrupt.requested
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interrupt() as interrupt:  # nohup
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt.requested
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_terminal_that_was_closed_does_not_stop_the_training(base: TrainConfig, whole: Path):
    from rich.console import Console

    class Closed:
        failed = 0

        def write(self, text: str) -> int:
            if "step " in text:
                Closed.failed += 1
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return len(text)

        def flush(self) -> None: ...

    result = train(base, resume=True, console=Console(file=Closed(), width=400))  # type: ignore[arg-type]
    assert result.finished
    assert Closed.failed == 1
    assert_same(Path(base.run.dir), whole / "whole")


def test_a_change_anywhere_in_the_data_is_noticed(tmp_path: Path):
    """Blocks of the data are not enough: a byte between them would change the windows silently."""
    ids = np.zeros(6_000_000, dtype=np.uint8)
    np.save(tmp_path / "ids.npy", ids)
    base = config(tmp_path, steps=4, stop_after=2, eval_tokens=66)
    base = base.model_copy(update={"data": base.data.model_copy(update={"path": str(tmp_path / "ids.npy")})})
    train(base)
    starts = np.linspace(0, round(len(ids) * 0.9) - 65536, 64, dtype=np.int64)
    ids[starts[0] + 65536 + (starts[1] - starts[0] - 65536) // 2] = 1
    np.save(tmp_path / "ids.npy", ids)
    with pytest.raises(UserError, match=r"cannot resume(.|\n)*data_crc32 is .*; the checkpoint has"):
        train(part(base, stop_after=None), resume=True)


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ({"batch_size": 6, "accumulate": 1}, r"batch_size is 6; the checkpoint has 3(.|\n)*accumulate is 1"),
        ({"precision": "fp64"}, "precision is fp64; the checkpoint has auto"),
    ],
)
def test_the_same_windows_in_other_batches_or_another_dtype_are_refused(base: TrainConfig, run: dict, message: str):
    with pytest.raises(UserError, match=message):
        train(part(base, **run), resume=True)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork on Windows")
def test_killed_runs_resume_bit_equal(tmp_path: Path):
    run = subprocess.run(
        [sys.executable, "-m", "tests.support.killed", str(tmp_path), str(draws(4, 60)), "5"],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stdout + run.stderr
    for number in range(int(run.stdout)):
        assert_same(tmp_path / str(number), tmp_path / "whole")
        curves = [read_curve(tmp_path / name / LOG, "train", "loss") for name in (str(number), "whole")]
        assert curves[0] == curves[1]
