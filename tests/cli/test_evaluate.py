"""`x-positional eval` on runs, folders and GGUF files, and what generate reports of the measured length."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support.command_line import Call
from tests.support.published.gguf_models import llama, write_gguf
from tests.support.training_runs import config, text_file
from x_positional import Decoder, TransformerWrapper
from x_positional.cli.evidence import evaluate as command
from x_positional.cli.generate import load_net
from x_positional.cli.published import checkpoint_of
from x_positional.evidence.evaluation.results import Evaluation
from x_positional.evidence.evaluation.stored import FILE
from x_positional.pretrained.tokenizers.text import byte_tokenizer
from x_positional.training.data.token_cache import Split
from x_positional.training.evaluate import eval_windows
from x_positional.training.evaluate import evaluate as validation_loss
from x_positional.training.loop.train import train

QUICK = ("--targets", 8, "--windows", 4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on a text of 10 kB, with windows of 32 of the model's 33 tokens."""
    folder = tmp_path_factory.mktemp("trained")
    settings = config(folder, steps=8)
    train(settings.model_copy(update={"data": settings.data.model_copy(update={"seq_len": 32})}))
    return folder / "run"


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy, which a test may write to."""
    return Path(shutil.copytree(trained, tmp_path / "run"))


def checkpoint(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


def test_eval_of_a_run_and_what_generate_reports(call: Call, run: Path, tmp_path: Path):
    code, out, err = call("eval", run, *QUICK, "--lengths", "1x,2x", "--out", "results/eval.json")
    assert (code, err) == (0, "")
    assert "run: rope, " in out
    assert "trained length 32 tokens" in out
    assert "final 8 tokens of 4 windows, same targets at every length" in out
    assert [line.split()[0] for line in out.splitlines() if line[:2].strip().isdigit()] == ["32", "64"]
    assert "change from 32" in out
    assert "passkey retrieval is left out" in out
    found = Evaluation.load(tmp_path / "results" / "eval.json")
    assert [entry.length for entry in found.lengths] == [32, 64]
    assert {entry.targets for entry in found.lengths} == {32}
    assert (found.data.bytes_per_token, found.model.trained_length) == (1.0, 32)
    assert found.positions is not None
    assert found.positions.length == 64
    assert f"{checkpoint(run) / FILE}, which generate refers to" in out
    assert found.usable is not None
    usable = found.usable.length

    short = call("generate", run, "--prompt", "12 plus", "--length", 4, "--seed", 0)
    assert "measured" not in short[2]
    code, _, err = call("generate", run, "--prompt", "12 plus", "--length", 60, "--seed", 0)
    assert code == 0
    assert "[longer than the trained length: passed after 25 new tokens" in err
    past = (
        f"is the longest length measured (final 8 tokens of 4 windows, same targets at every length, {found.data.name})"
    )
    risen = f"[67 tokens: the loss was measured to rise past {usable:,} tokens: by "
    assert (f"[67 tokens: 64 {past}]" in err) if usable == 64 else (risen in err)


def test_generate_within_the_measured_length_and_of_other_weights(call: Call, run: Path):
    call("eval", run, *QUICK, "--lengths", "32,64", "--tolerance", 9)
    longer = ("generate", run, "--prompt", "12 plus", "--length", 30, "--seed", 0)
    assert "[measured: the loss does not rise up to 64 tokens (final 8 tokens of 4 windows" in call(*longer)[2]
    record = json.loads((checkpoint(run) / FILE).read_text())
    (checkpoint(run) / FILE).write_text(json.dumps({**record, "weights": "0"}))
    assert "[measured length ignored: " in call(*longer)[2]
    (checkpoint(run) / FILE).unlink()
    assert "measured" not in call(*longer)[2]


def test_the_sliding_protocol_equals_sliding_validation(call: Call, run: Path, tmp_path: Path):
    """The tokens after the first window, each scored once, are those of sliding validation in training."""
    text = b"".join(b"%d times %d is %d.\n" % (a, b, a * b) for a in range(9) for b in range(7))
    (tmp_path / "held.txt").write_bytes(text)
    code, out, _ = call(
        *("eval", run, "--data", "held.txt", "--protocol", "sliding", "--targets", 8, "--windows", 20),
        *("--lengths", "33", "--out", "a.json", "--no-store"),
    )
    assert code == 0
    assert "sliding: 160 consecutive tokens, stride 8, same targets at every length" in out
    assert "stored" not in out
    net = load_net(checkpoint_of(run), "cpu")
    split = Split(np.frombuffer(text[: 25 + 160], np.uint8), 25 + 160)
    windows = eval_windows(len(split.tokens), 32, stride=8)
    plain = torch.autocast("cpu", enabled=False)
    starts = type(windows)(windows.starts[1:], 32, 8)  # the first window scores all of its tokens
    score = validation_loss(net, split, starts, batch_size=3, device=torch.device("cpu"), autocast=plain)
    found = Evaluation.load(tmp_path / "a.json").lengths[0]
    assert score.tokens == found.targets - 8
    assert sum(found.windows[1:]) / 19 == pytest.approx(score.loss, abs=1e-5)


def test_a_page_beside_earlier_results_and_what_to_run_next(
    call: Call, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    given = ("eval", run, *QUICK, "--lengths", "1x,2x", "--no-store")
    out = call(*given, "--out", "first.json")[1]
    assert f"extend {run} --to 64\n" in out
    assert "--html eval.html" in out
    pages: list[list[Evaluation]] = []
    monkeypatch.setattr(command, "evaluation_page", lambda found: pages.append(found) or "<p>the page</p>")
    code, out, _ = call(*given, "--html", "pages/eval.html", "--beside", "first.json")
    assert code == 0
    assert "page pages/eval.html" in out
    assert "--html eval.html" not in out
    assert (tmp_path / "pages" / "eval.html").read_text() == "<p>the page</p>"
    assert [[entry.length for entry in one.lengths] for one in pages[0]] == [[32, 64], [32, 64]]
    assert pages[0][1] == Evaluation.load(tmp_path / "first.json")


def test_a_page_without_its_extra_is_one_line(call: Call, run: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "altair", None)
    code, out, _ = call("eval", run, *QUICK, "--lengths", "1x", "--no-store", "--html", "eval.html")
    assert code == 0
    assert "no page: reports need altair: pip install 'x-positional[report]'" in out
    assert not Path("eval.html").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lengths", "1x,9000"], "a window of the longest length needs 9,000. Give a longer text, or lengths up to"),
        (["--lengths", "1y,x"], "1y: give a multiple of the trained length (2x, 0.5x) or a number of tokens (1024)"),
        (["--lengths", "4"], "length 4 does not exceed the 8 scored tokens"),
        (["--data", "missing.txt"], "--data missing.txt: no such file or folder"),
        (["--data", "ids.npy"], "contains id 399; the model has ids 0 to 255"),
        (["--dtype", "float32"], "--dtype needs a published model"),
        (["--out", "."], "--out . must be the name of a JSON file"),
        (["--html", "."], "--html . must be the name of an HTML file"),
        (["--beside", "a.json"], "--beside has no effect without --html"),
        (["--html", "a.html", "--beside", "ids.npy"], "ids.npy is not an evaluation that this version can read"),
    ],
)
def test_requests_that_cannot_be_measured(
    call: Call, trained: Path, tmp_path: Path, arguments: list[str], message: str
):
    np.save(tmp_path / "ids.npy", np.arange(400))
    code, out, err = call("eval", trained, *QUICK, *arguments)
    assert (code, out) == (2, "")
    assert message in err


def test_nan_weights_and_a_table_that_ends(call: Call, tmp_path: Path):
    torch.manual_seed(0)
    layers = Decoder(dim=16, depth=1, heads=2, attn_dim_head=8, position="absolute")
    TransformerWrapper(num_tokens=256, max_seq_len=33, attn_layers=layers).save_pretrained(tmp_path / "folder")
    byte_tokenizer().save(tmp_path / "folder")
    given = ("eval", "folder", "--data", text_file(tmp_path), *QUICK, "--no-passkey")
    code, out, _ = call(*given, "--lengths", "1x,2x")
    assert code == 0
    assert "no loss from 66: position 64 is out of range: LearnedAbsolute has 33 rows" in out
    assert "usable length: 33 tokens" in out
    weights = load_file(tmp_path / "folder" / "model.safetensors")
    save_file(
        {name: tensor * float("nan") for name, tensor in weights.items()}, tmp_path / "folder" / "model.safetensors"
    )
    code, out, _ = call(*given, "--lengths", "33")
    assert code == 0
    assert "no loss from 33: the loss is not finite in 4 of 4 windows" in out
    assert "usable length: none" in out


def test_eval_of_a_gguf_file_with_passkey_retrieval(call: Call, tmp_path: Path):
    file = write_gguf(tmp_path / "small.gguf", llama())
    (tmp_path / "held.txt").write_text("the cat sat on the mat and looked at the dog. " * 80)
    code, out, _ = call(
        *("eval", file, "--data", "held.txt", "--lengths", "40,80", *QUICK, "--out", "a.json", "--passkey-trials", 1)
    )
    assert code == 0
    assert "passkey at depth" in out
    assert "80 tokens have no room for the task" in out
    found = Evaluation.load(tmp_path / "a.json")
    assert {score.reason is None for score in found.passkey} == {False}
    assert (tmp_path / f"small.gguf.{FILE}").is_file()
    (tmp_path / f"small.gguf.{FILE}").unlink()
    code, out, _ = call("eval", file, "--data", "held.txt", "--lengths", "40", *QUICK, "--no-passkey", "--no-store")
    assert (code, "passkey" in out) == (0, False)
    assert not (tmp_path / f"small.gguf.{FILE}").exists()
