"""Wrong files, options and prompts: one clear line each, and nothing is trained on by mistake."""

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from tests.support.command_line import Call
from tests.support.training_runs import TEXT, raw_config
from x_positional.training.config import TrainConfig
from x_positional.training.cpu import Cpu


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cache of token ids is not that of the user."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw_config(tmp_path)))
    return path


def folder(name: str, content: bytes = b"x") -> Callable[[Path], object]:
    """A folder with a text and one more file."""

    def make(path: Path) -> None:
        path.mkdir()
        (path / "a.txt").write_bytes(TEXT)
        (path / name).write_bytes(content)

    return make


BINARY = bytes(np.random.default_rng(0).integers(0, 256, 20_000, dtype=np.uint8))


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("a.parquet", b"PAR1" + BINARY, r"cannot read .*a\.parquet: "),
        ("table.txt", b"PAR1" + BINARY, "is a Parquet table, not text; give it the suffix .parquet"),
        ("a.jsonl", b'{"body": "a"}\n' * 500, "data.field='text' does not exist in row 1 of .*; its fields are body"),
        ("a.JSONL", b'{"text": 1}\n' * 500, "data.field='text' is not text in row 1 of .*: it is a int, 1"),
        ("a.jsonl", b'{"text": "a"}\n{"te', r"line 2 of .*a\.jsonl is not JSON"),
        ("a.jsonl", b'["a"]\n', r"line 1 of .*a\.jsonl is \['a'\]; each line must be an object"),
        ("a.arrow", b"ARROW1\0\0" + BINARY, r"cannot read .*a\.arrow: "),
        ("a.feather", b"ARROW1\0\0" + BINARY, "is an Arrow table, not text; write it as Parquet"),
        ("a.npz", b"PK\3\4" + BINARY, "is a NumPy archive, not text; save token ids as a one-dimensional integer .npy"),
        ("a.pt", b"PK\3\4" + BINARY, "is a PyTorch file, not text; save token ids"),
        ("a.txt.gz", gzip.compress(BINARY), "is compressed with gzip, not text; decompress it first"),
        ("a.txt.zst", b"\x28\xb5\x2f\xfd" + BINARY, "is compressed with zstd, not text; decompress it first"),
        ("a.zip", b"PK\3\4" + BINARY, "is a zip archive, not text; unpack it first"),
        ("ids", b"\x93NUMPY" + BINARY, "is a NumPy array, not text; give it the suffix .npy"),
        ("a.txt", TEXT.decode().encode("utf-16"), "is UTF-16 text, not text; convert it to UTF-8"),
        ("a.dat", BINARY, "is a binary file, not text; convert it to text, or save token ids"),
        ("late.txt", TEXT[:9000] + b"\0" + TEXT, "is a binary file, not text"),
        ("empty.txt", b"", "is empty"),
        ("saved", folder("dataset_info.json", b"{}"), r"cannot read .*saved: "),
        ("saved", folder("dataset_dict.json", b"{}"), r"cannot read .*saved: "),
        ("mixed", folder("b.parquet", b"PAR1\0"), r"b.parquet is a Parquet table.*with data.pattern, as '\*\*/\*.txt'"),
        ("mixed", folder("b.jsonl", b"{}"), "b.jsonl is JSON lines"),
        ("mixed", folder("b.jsonl.gz", b"{}"), "b.jsonl.gz is JSON lines"),
    ],
)
def test_data_that_are_no_text_are_refused_with_the_remedy(
    call: Call, file: Path, tmp_path: Path, name: str, make: bytes | Callable[[Path], object], message: str
):
    target = tmp_path / "data" / name
    target.parent.mkdir()
    if isinstance(make, bytes):
        target.write_bytes(make)
    else:
        make(target)
    code, _, err = call("train", file, "--data", target)
    assert code == 2
    assert re.search(message, err)
    assert len(err.splitlines()) == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "text", ["naïve 🙂\t\f\r\n\x1b[1mbold\x1b[0m\n".encode(), "größer\n".encode("latin-1"), b"PAR1\nBZh\n"]
)
def test_text_in_any_8_bit_encoding_is_text(call: Call, file: Path, tmp_path: Path, text: bytes):
    (tmp_path / "odd.txt").write_bytes(text * 500)
    assert call("train", file, "--data", "odd.txt", "--run.steps", 3)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", ""], "data.path='' is empty; give a path, or leave it out to train on the embedded text"),
        (["--run-dir", ""], "run.dir='' is empty; give a folder"),
        (["--data.tokenizer", "''"], "data.tokenizer='' is empty"),
        (["--data", ".", "--pattern", "''"], "data.pattern='' is empty"),
        (["--data", ".", "--pattern", "/x"], "data.pattern='/x' is not a pattern of relative paths"),
        (["--depth"], "--depth has no value; write --depth VALUE"),
        (["--steps"], "--steps has no value"),
        (["--trackers"], "--trackers has no value"),
        (["--trackers", "tensorbord"], "run.trackers: unknown tracker 'tensorbord'; did you mean 'tensorboard'?"),
        (["--steps", "--depth", "3"], "--steps has no value"),
        (["--lr="], "--lr has no value"),
        (["--lr", ""], "--lr has no value"),
        (["--model.layers.position.theta"], "--model.layers.position.theta has no value"),
        (["--run-dir", "config.yaml"], "run.dir='config.yaml' is a file; choose a folder with --run-dir"),
        (["--run.steps", "2"], "optimizer.warmup_steps=2 leaves none of run.steps=2; lower the warm-up"),
    ],
)
def test_values_that_are_missing_or_cannot_be_used(call: Call, file: Path, arguments: list[str], message: str):
    code, _, err = call("train", file, *arguments)
    assert code == 2
    assert message in err
    assert len(err.splitlines()) <= 2


def test_switches_need_no_value(call: Call, file: Path):
    for switch in ("--run.compile", "--model.tie_embedding", "--tie-embedding"):
        code, out, _ = call("train", file, switch, "--print-config")
        assert code == 0
        assert f"{switch.split('.')[-1].removeprefix('--').replace('-', '_')}: true" in out


@pytest.mark.parametrize(("steps", "warmup"), [(2, 0), (50, 5), (1000, 100), (5000, 100)])
def test_the_default_warmup_leaves_room_for_training(tmp_path: Path, steps: int, warmup: int):
    raw = raw_config(tmp_path, steps=steps)
    del raw["optimizer"]["warmup_steps"]
    config = TrainConfig.model_validate(raw)
    assert config.optimizer.warmup_steps == warmup
    assert TrainConfig.model_validate(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("model: 5\n", "model=5"),
        ("model: [1]\n", "model=[1]"),
        ("model: null\n", "model=None"),
        ("", "the file is empty"),
        ("- 1\n", "holds a list"),
    ],
)
@pytest.mark.parametrize("command", ["train", "check", "plot"])
def test_configs_that_hold_something_else(call: Call, tmp_path: Path, command: str, content: str, message: str):
    (tmp_path / "odd.yaml").write_text(content)
    code, _, err = call(command, "odd.yaml")
    assert code == 2
    assert message in err
    assert "odd.yaml" in err
    assert len(err.splitlines()) <= 2


@pytest.mark.parametrize(
    "path", ["runs/mine", "here/mine", "./absent", "/no/such", "a/b/c", "../absent", "absent.gguf"]
)
@pytest.mark.parametrize("command", [["generate", "--prompt", "x"], ["verify"], ["convert", "out"]], ids=lambda c: c[0])
def test_a_missing_path_is_not_looked_up_on_the_hub(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: list[str], path: str
):
    (tmp_path / "here").mkdir()
    monkeypatch.setattr("x_positional.pretrained.source.import_extra", lambda *_: pytest.fail("it asked the Hub"))
    arguments = [command[0], path, *command[1:]]
    code, _, err = call(*arguments)
    assert code == 2
    assert re.search(r"error: \S+(: no such file or folder| does not exist); pass", err)
    assert len(err.splitlines()) == 1


@pytest.fixture
def run_dir(call: Call, file: Path, tmp_path: Path) -> Path:
    assert call("train", file, "--run.steps=3")[0] == 0
    return tmp_path / "run"


@pytest.mark.parametrize(
    ("prompt", "length", "note"),
    [
        ("a" * 10, 23, None),
        ("a" * 10, 24, "passed after 23 new tokens"),
        ("a" * 40, 2, "the prompt alone exceeds it"),
    ],
)
def test_text_past_the_trained_length_is_noted_once(
    call: Call, run_dir: Path, prompt: str, length: int, note: str | None
):
    code, _, err = call("generate", run_dir, "--prompt", prompt, "--length", length, "--no-stop", "--temperature", 0)
    assert code == 0
    assert err.count("trained length") == (note is not None)
    assert note is None or note in err


def test_a_run_in_float64_generates_in_float64(call: Call, file: Path):
    assert call("train", file, "--run.steps", 3, "--precision", "fp64")[0] == 0
    assert call("generate", "run", "--prompt", "x", "--length", 3)[0] == 0


def test_a_prompt_that_is_not_utf_8_is_refused(call: Call, run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    import io

    code, _, err = call("generate", run_dir, "--prompt", "a\udcff")
    assert (code, err) == (2, "error: --prompt is not valid UTF-8; convert it first\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a\xff"), encoding="utf-8"))
    code, _, err = call("generate", run_dir, "--prompt", "-")
    assert (code, err) == (2, "error: the prompt on stdin is not valid UTF-8; convert it first\n")


def test_a_damaged_run_is_one_line_for_every_command(call: Call, run_dir: Path):
    (run_dir / "checkpoints" / "step-00000003" / "trainer.json").write_bytes(b"\xff" * 50)
    for arguments in (
        ["generate", "run", "--prompt", "x"],
        ["convert", "run", "out"],
        ["train", "run", "--resume", "--run.steps", "5"],
    ):
        code, _, err = call(*arguments)
        assert code == 2
        assert "trainer.json" in err
        assert "This run has no good checkpoint." in err
        assert len(err.splitlines()) == 1


@pytest.mark.parametrize("content", ["", "model: [", "\0\1", "model: 5", None])
def test_a_damaged_config_of_a_run_is_replaced_by_that_of_its_checkpoint(
    call: Call, run_dir: Path, content: str | None
):
    if content is None:
        (run_dir / "config.yaml").unlink()
    else:
        (run_dir / "config.yaml").write_text(content)
    code, _, err = call("train", "run", "--resume", "--run.steps", "5")
    assert code == 2
    assert "config.yaml" in err
    assert re.search(r"newest good checkpoint is \S+step-00000003, .* --resume --skip-damaged", err)
    code, out, _ = call("train", "run", "--resume", "--skip-damaged", "--run.steps", "5")
    assert code == 0
    assert "5 steps done" in out
    assert (run_dir / "config.yaml").read_text() == (run_dir / "checkpoints/step-00000005/config.yaml").read_text()


@pytest.mark.parametrize("options", [["--dtype", "bfloat16", "--device", "cpu"], ["--precision", "bf16"], []])
def test_check_warns_of_bfloat16_on_a_cpu_that_emulates_it(
    call: Call, file: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
):
    monkeypatch.setattr("x_positional.training.cpu.Cpu", lambda: Cpu("x86_64", "AVX2", frozenset()))
    code, out, _ = call("check", file, "--json", *options)
    assert code == 0
    warned = [warning for warning in json.loads(out)["warnings"] if "bfloat16 on this CPU is emulated" in warning]
    assert len(warned) == bool(options)
