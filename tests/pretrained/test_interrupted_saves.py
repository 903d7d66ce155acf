"""A save that is killed at any instant leaves the old or the new model, whole, for every kind of reader."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from tests.support.draws import draws
from x_positional import Decoder, PretrainedError, TransformerWrapper, from_pretrained, load_tokenizer
from x_positional.cli.convert import convert
from x_positional.errors import UserError
from x_positional.pretrained import commit
from x_positional.pretrained.commit import open_folder
from x_positional.pretrained.folder import COMMITTED, RECORD, contains_model, list_folder
from x_positional.pretrained.tensors import write
from x_positional.pretrained.tokenizers.text import byte_tokenizer

NOTES = {"README.md": b"mine", "model_ema.safetensors": b"mine too", "training_args.bin": b"\x00"}
"""Files that a save must not touch."""
SHARD = 6_000
"""Bytes: a few shards."""


def model(seed: int, dim: int = 16) -> TransformerWrapper:
    torch.manual_seed(seed)
    layers = Decoder(
        dim=dim,
        depth=1,
        heads=2,
        attn_dim_head=8,
        position="rope",
        norm={"kind": "rms"},
        ff={"glu": True, "bias": False, "activation": "silu"},
    )
    return TransformerWrapper(num_tokens=32, max_seq_len=64, attn_layers=layers).eval()


class Killed(BaseException):
    """The process is dead: nothing after it happens, neither `except` nor `finally`."""


class Dying:
    """Stands for a module or class whose functions stop working after `left` calls, as those of a killed process."""

    def __init__(self, real: Any, names: set[str], clock: list[int]):
        self._real, self._names, self._clock = real, names, clock

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._real, name)
        return self.dies(value) if name in self._names else value

    def dies(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            self._clock[0] -= 1
            if self._clock[0] < 0:
                raise Killed
            return function(*args, **kwargs)

        return call


def kill_after(steps: int, action: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Run `action`, killed after so many file-system operations. Returns whether it was."""
    clock = [steps]
    with monkeypatch.context() as patch:
        files = {"rename", "replace", "unlink", "fsync"}
        for module in (commit, write):
            patch.setattr(module, "os", Dying(os, files, clock))
        patch.setattr(commit, "shutil", Dying(shutil, {"rmtree"}, clock))
        dying = Dying(None, set(), clock)
        for name in ("unlink", "mkdir", "rmdir", "write_text", "replace"):
            patch.setattr(Path, name, dying.dies(getattr(Path, name)))
        patch.setattr(write, "save_file", half_written(dying.dies(write.save_file)))
        try:
            action()
        except Killed:
            return True
    return False


def half_written(save: Callable[..., None]) -> Callable[..., None]:
    """A killed process leaves a part of the file."""

    def call(tensors: Any, path: Path, **settings: Any) -> None:
        try:
            save(tensors, path, **settings)
        except Killed:
            path.write_bytes(b"\x10\x00\x00")
            raise

    return call


def contents(path: Path) -> dict[str, bytes]:
    """What our reader reads: config and tensors."""
    return read(path)[0]


@torch.no_grad()
def read(path: Path) -> tuple[dict[str, bytes], torch.Tensor]:
    """The same, and the logits of the model."""
    loaded = from_pretrained(path)
    named = {name: parameter.detach().numpy().tobytes() for name, parameter in loaded.named_parameters()}
    return {"config": repr(loaded.config).encode(), **named}, loaded(torch.arange(9)[None])


def which_of(
    found: tuple[dict[str, bytes], torch.Tensor], whole: dict[str, tuple[dict[str, bytes], torch.Tensor]]
) -> str:
    """The one save that config, every tensor and the logits come from."""
    which = next(which for which in whole if whole[which][0] == found[0])
    torch.testing.assert_close(found[1], whole[which][1])
    return which


def by_names(path: Path) -> dict[str, Any] | None:
    """What a reader reads that knows only the names of transformers; None where it fails."""
    try:
        config = json.loads((path / "config.json").read_text())
        shards = ["model.safetensors"]
        if not (path / shards[0]).is_file():
            shards = sorted(set(json.loads((path / "model.safetensors.index.json").read_text())["weight_map"].values()))
        out: dict[str, Any] = {"config": config}
        for shard in shards:
            with safe_open(path / shard, framework="np") as file:
                out |= {name: file.get_tensor(name).tobytes() for name in file.keys()}  # noqa: SIM118
        return out
    except OSError:
        return None


CASES = {
    "native": ({}, {}, 16, SHARD * 100, SHARD * 100),
    "hf": ({"format": "hf"}, {"format": "hf"}, 16, SHARD * 100, SHARD * 100),
    "other width": ({}, {}, 24, SHARD * 100, SHARD * 100),
    "hf over native": ({}, {"format": "hf"}, 24, SHARD * 100, SHARD * 100),
    "sharded": ({"format": "hf"}, {"format": "hf"}, 16, SHARD, SHARD),
    "sharded over whole": ({}, {}, 24, SHARD * 100, SHARD),
    "whole over sharded": ({"format": "hf"}, {}, 24, SHARD, SHARD * 100),
}


EVERY_STEP = ("native", "hf over native", "sharded over whole")
"""Cases whose every step is tried by default."""


def save(made: TransformerWrapper, path: Path, shard: int, monkeypatch: pytest.MonkeyPatch, **form: Any) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(write.write_folder, "__defaults__", (shard,))
        made.save_pretrained(path, **form)


def test_all_files_of_a_save_may_be_read_by_the_same_people(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """safetensors gives its files to their owner alone."""
    before = os.umask(0o027)
    try:
        save(model(0), tmp_path, SHARD, monkeypatch)
        modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.rglob("*") if file.is_file()}
    finally:
        os.umask(before)
    assert sum(name.endswith(".safetensors") for name in modes) > 1
    assert set(modes.values()) == {0o640}, modes


@pytest.mark.parametrize("name", CASES)
def test_a_save_killed_at_every_step(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    old_form, new_form, dim, old_shard, new_shard = CASES[name]
    new = model(2, dim)
    save(model(1), tmp_path / "old", old_shard, monkeypatch, **old_form)
    save(new, tmp_path / "new", new_shard, monkeypatch, **new_form)
    whole = {which: read(tmp_path / which) for which in ("old", "new")}
    names = {which: by_names(tmp_path / which) for which in whole}
    assert not torch.allclose(whole["old"][1], whole["new"][1])
    for note, text in NOTES.items():
        (tmp_path / "old" / note).write_bytes(text)
    steps, seen = 0, []
    while True:
        path = Path(shutil.copytree(tmp_path / "old", tmp_path / f"{steps}"))
        killed = kill_after(steps, partial(save, new, path, new_shard, monkeypatch, **new_form), monkeypatch)
        seen.append(judge(path, whole, names, again=steps % 6 == 3))
        shutil.rmtree(path)
        if not killed:
            break
        steps += 1 if name in EVERY_STEP else draws(3, 1)
    assert steps > 15
    assert seen == sorted(seen, key=["old", "new"].index), "once the save is committed it stays"
    assert seen[0] == "old"
    assert seen[-1] == "new"


def judge(path: Path, whole: dict[str, Any], names: dict[str, Any], again: bool) -> str:
    """Which model a folder contains: read without writing, by transformers' names, recovered, and saved over."""
    others = {note: (path / note).read_bytes() for note in NOTES}
    assert others == NOTES
    assert by_names(path) in (None, names["old"], names["new"])
    with pytest.MonkeyPatch.context() as patch:  # as on a read-only file system
        patch.setattr(commit, "_complete", refuse)
        before = sorted(str(file) for file in path.rglob("*"))
        found = read(path)
        assert sorted(str(file) for file in path.rglob("*")) == before
    which = which_of(found, whole)
    open_folder(path)
    assert by_names(path) == names[which], "recovered for every reader"
    assert not (path / COMMITTED).exists()
    if again:
        model(3).save_pretrained(path)
        assert not [file.name for file in path.iterdir() if file.name.startswith(".")], "nothing is left behind"
        assert contents(path) not in (whole["old"][0], whole["new"][0])
    assert {note: (path / note).read_bytes() for note in NOTES} == NOTES
    return which


def refuse(*_: Any) -> None:
    raise PermissionError("read-only")


@pytest.mark.parametrize("stop", range(0, 16, 2))
def test_a_recovery_killed_at_every_step(stop: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model(1).save_pretrained(tmp_path / "m")
    new = model(2, 24)
    new.save_pretrained(tmp_path / "new")
    steps = 0
    while not (tmp_path / "m" / COMMITTED / RECORD).exists():
        assert kill_after(steps, lambda: new.save_pretrained(tmp_path / "m"), monkeypatch)
        steps += 1
    kill_after(stop, lambda: open_folder(tmp_path / "m"), monkeypatch)
    assert contents(tmp_path / "m") == contents(tmp_path / "new")


def test_a_failing_save_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    model(1).save_pretrained(tmp_path / "m")
    before = contents(tmp_path / "m")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(write, "save_file", full)
    with pytest.raises(PretrainedError, match=r"m cannot be written:\n.*No space left on device"):
        model(2).save_pretrained(tmp_path / "m")
    with pytest.raises(PretrainedError, match="No space left on device"):
        model(2).save_pretrained(tmp_path / "none")
    assert contents(tmp_path / "m") == before
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["config.json", "m", "model.safetensors"]


@pytest.fixture
def pending(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose save was killed right after its commit."""
    model(1).save_pretrained(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(commit, "_complete", lambda folder: None)
        model(2).save_pretrained(tmp_path)
    assert (tmp_path / COMMITTED / RECORD).is_file()
    return tmp_path


def test_another_program_wrote_after_the_interruption(pending: Path):
    (pending / "config.json").write_text('{"model_type": "other"}')
    with pytest.raises(PretrainedError, match=r"contains two models:\n.*another program has written config\.json"):
        from_pretrained(pending)
    model(3).save_pretrained(pending)
    assert torch.equal(from_pretrained(pending).token_emb.weight, model(3).token_emb.weight)


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"[]",
        b'{"format": "x_positional save"}',
        b'{"format": "x_positional save", "files": {"../x": 1}, "replaced": null}',
        b'{"format": "x_positional save", "files": {"/etc/passwd": 1}, "replaced": null}',
        b'{"format": "x_positional save", "files": {".x": 1}, "replaced": null}',
        b'{"format": "x_positional save", "files": {"config.json": 1}, "replaced": null}',
    ],
)
def test_a_foreign_record(record: bytes, pending: Path):
    (pending / COMMITTED / RECORD).write_bytes(record)
    with pytest.raises(PretrainedError, match=rf"{COMMITTED}"):
        from_pretrained(pending)


def test_a_reader_meets_a_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The model is replaced between reading its config and opening its tensors: an error, not a mixture."""
    from x_positional.pretrained import source

    model(1).save_pretrained(tmp_path)
    opened = source.open_source(tmp_path)
    model(2).save_pretrained(tmp_path)
    with pytest.raises(PretrainedError, match=r"another process has replaced the model\. Load it again"):
        opened.tensors()
    assert contents(tmp_path)
    assert list_folder(tmp_path).state().keys() == {"config.json", "model.safetensors"}


@pytest.fixture
def children() -> Iterator[list[int]]:
    started: list[int] = []
    yield started
    for pid in started:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_kill_9_at_random_moments(tmp_path: Path, children: list[int]):
    """Real processes: the only step that cannot be simulated is the operating system's."""
    draw, outcomes = random.Random(0), dict.fromkeys(("old", "new"), 0)
    rounds = draws(3, 60)
    for form in ("native", "hf"):
        for dim in (16, 24):
            old, new = model(1), model(2, dim)
            old.save_pretrained(tmp_path / "old", format=form)
            new.save_pretrained(tmp_path / "new", format=form)
            whole = {which: read(tmp_path / which) for which in ("old", "new")}
            names = {which: by_names(tmp_path / which) for which in whole}
            assert not torch.allclose(whole["old"][1], whole["new"][1])
            for _ in range(rounds):
                path = Path(shutil.copytree(tmp_path / "old", tmp_path / "m"))
                pid = os.fork()
                if pid == 0:
                    try:
                        new.save_pretrained(path, format=form)
                    finally:
                        os._exit(0)
                children.append(pid)
                time.sleep(draw.uniform(0, 0.02))
                os.kill(pid, signal.SIGKILL)
                os.waitpid(children.pop(), 0)
                assert by_names(path) in (None, *names.values())
                outcomes[which_of(read(path), whole)] += 1
                shutil.rmtree(path)
    assert sum(outcomes.values()) == 4 * rounds


def test_a_conversion_killed_at_any_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A folder has no model, or the whole model with its tokenizer."""
    source = tmp_path / "source"
    model(1).save_pretrained(source, format="hf")
    byte_tokenizer().save(source)
    (tmp_path / "target").mkdir()
    (tmp_path / "target" / "README.md").write_text("mine")
    killed, steps, outcomes = True, 0, []
    while killed:
        path = Path(shutil.copytree(tmp_path / "target", tmp_path / f"{steps}"))
        killed = kill_after(steps, partial(convert, source, path, "native", model_type=None, dtype=None), monkeypatch)
        outcomes.append(contains_model(path))
        if outcomes[-1]:
            assert contents(path)
            assert load_tokenizer(path).encode("a") == [97]
            with pytest.raises(UserError, match="already contains a model"):
                convert(source, path, "native", model_type=None, dtype=None)
        else:
            with pytest.raises(PretrainedError):
                from_pretrained(path)
        assert (path / "README.md").read_text() == "mine"
        steps += draws(3, 1)
    assert outcomes == sorted(outcomes)
    assert not outcomes[0]
