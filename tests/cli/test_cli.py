"""The console script: what it prints, its exit codes, and that a mistake of the user never shows a traceback."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from tests.support.command_line import Call
from tests.support.training_runs import raw_config
from x_positional import AutoregressiveWrapper, TransformerWrapper
from x_positional.errors import UserError
from x_positional.training import TrainConfig
from x_positional.training.checkpoints.checkpoint import open_checkpoint
from x_positional.training.overrides import parse_overrides

ROOT = Path(__file__).parents[2]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(raw_config(tmp_path)))
    return path


@pytest.fixture
def run_dir(call: Call, file: Path, tmp_path: Path) -> Path:
    """A short run with weights far from their start, so that sampling has something to say."""
    assert call("train", file, "--run.steps=3")[0] == 0
    return tmp_path / "run"


def test_train_reports_the_run_and_the_next_command(call: Call, file: Path, tmp_path: Path):
    code, out, _ = call("train", file, "--run-dir", "elsewhere", "--model.layers.depth", "3", "--lr", "1e-3")
    assert code == 0
    assert "position rope | backend sdpa (" in out
    assert re.search(r"validation loss \d\.\d+, \d\.\d+ bits/byte", out)
    assert "checkpoint elsewhere/checkpoints/step-00000008" in out
    assert "generate elsewhere --prompt" in out
    saved = yaml.safe_load((tmp_path / "elsewhere" / "config.yaml").read_text())
    assert (saved["model"]["layers"]["depth"], saved["optimizer"]["lr"], saved["run"]["dir"]) == (3, 1e-3, "elsewhere")


def test_print_config_prints_all_of_it_and_trains_nothing(call: Call, file: Path, tmp_path: Path):
    code, out, _ = call("train", file, "--print-config", "--model.depth=5", "--data", "other.txt")
    assert code == 0
    printed = TrainConfig.model_validate(yaml.safe_load(out))
    assert (printed.model.layers.depth, printed.data.path, printed.optimizer.lr) == (5, "other.txt", 5e-3)
    assert "weight_decay: 0.1" in out
    assert not (tmp_path / "run").exists()


def test_a_stopped_run_says_how_to_go_on_and_does(call: Call, file: Path):
    code, out, _ = call("train", file, "--run.stop_after", 3)
    assert code == 0
    command = re.search(r"continue: \S*x-positional (train .* --resume)", out)
    assert command is not None
    code, out, _ = call(*command.group(1).split())
    assert code == 0
    assert "8 steps done" in out
    assert "continue:" not in out


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["train", "absent.yaml"], ["cannot read absent.yaml: No such file"]),
        (["train", "{file}", "--model.layers.detph", "3"], ["detph is unknown; did you mean model.layers.depth?"]),
        (
            ["train", "{file}", "--lrr", "3", "--batch", "2"],
            ["did you mean optimizer.lr?", "did you mean run.batch_size?"],
        ),
        (["train", "{file}", "--lr", "fast"], ["optimizer.lr='fast': input should be a valid number"]),
        (["train", "{file}", "stray"], ["unexpected argument 'stray'; overrides are written --section.name value"]),
        (["train", "{file}", "--lr", "1", "--lr", "2"], ["--lr is given twice"]),
        (["train", "{file}", "--data", "a", "--data.path", "b"], ["data.path is given twice"]),
        (["train", "{file}", "--lr", "[1"], ["--lr '[1' cannot be read"]),
        (["train", "--lr", "3", "{file}"], ["the first argument must be the config, not '--lr'"]),
        (["train", "{file}", "--data", "absent"], ["data.path='absent' does not exist"]),
        (["train", "{file}", "--resume"], ["no checkpoint to resume from in"]),
        (["train", "{file}", "--position", "rotary"], ["no position scheme named 'rotary'"]),
        (["train", "{file}", "--position", "[rope, xpos]"], ["this model cannot be trained:"]),
        (["train", "{file}", "--run-dir", "/dev/null/x"], ["/dev/null"]),
        (["generate", "absent", "--prompt", "x"], ["absent does not exist"]),
        (["generate", ".", "--prompt", "x"], ["no x_positional checkpoint in ."]),
        (["check", "absent.yaml"], ["cannot read absent.yaml"]),
        (["trian"], ["Did you mean 'train'?"]),
        (["generate", "."], ["--prompt"]),
    ],
)
def test_a_mistake_is_answered_in_words_with_exit_code_2(
    call: Call, file: Path, arguments: list[str], parts: list[str]
):
    code, _, err = call(*(argument.replace("{file}", str(file)) for argument in arguments))
    assert code == 2
    assert "Traceback" not in err
    for part in parts:
        assert part in err


def test_a_stopped_loss_is_answered_in_words(call: Call, file: Path):
    code, _, err = call("train", file, "--lr", "1e30", "--optimizer.clip", "null", "--run.steps", "40")
    assert code == 2
    assert "training stopped at step" in err
    assert "Traceback" not in err


def test_generate_streams_and_repeats_with_a_seed(call: Call, run_dir: Path):
    code, out, err = call("generate", run_dir, "--prompt", "3 plus", "--length", 20, "--seed", 1, "--no-stop")
    assert code == 0
    assert out.startswith("3 plus")
    assert re.search(r"\[\d+ tokens, [\d,.]+ tokens/s, .*step-00000003\]", err)
    assert call("generate", run_dir, "--prompt", "3 plus", "--length", 20, "--seed", 1, "--no-stop")[1] == out
    assert call("generate", run_dir, "--prompt", "3 plus", "--length", 20, "--seed", 2, "--no-stop")[1] != out


def perturb(run_dir: Path, call: Call) -> None:
    """Write a checkpoint with random weights: three steps leave a model that says the same thing always."""
    from x_positional.cli.generate import load_net
    from x_positional.training.checkpoints.checkpoint import save_checkpoint
    from x_positional.training.checkpoints.state import model_tensors

    saved = open_checkpoint(run_dir)
    net = load_net(saved, "cpu")
    torch.manual_seed(0)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.4)
    save_checkpoint(
        run_dir / "checkpoints",
        99,
        model=model_tensors(net),
        optimizer={"a": torch.ones(1)},
        trainer={"tokenizer": "bytes"},
        config_text=saved.config_text(),
    )


@pytest.mark.parametrize(
    "options",
    [["--temperature", 0], ["--seed", 3, "--top-k", 5], ["--seed", 3, "--top-p", 0.8, "--min-p", 0.02], ["--seed", 4]],
)
def test_with_and_without_the_cache_the_text_is_the_same(call: Call, run_dir: Path, options: list):
    perturb(run_dir, call)
    common = ["generate", run_dir, "--prompt", "7 plus 8 is", "--length", 50, "--no-stop", *options]
    cached = call(*common)[1]
    assert len(set(cached)) > 10
    assert call(*common, "--no-cache")[1] == cached
    assert call(*common, "--prefill-chunk-size", 3)[1] == cached


def test_a_draft_changes_no_greedy_text_and_stays_in_the_trained_length(call: Call, run_dir: Path):
    perturb(run_dir, call)
    common = ["generate", run_dir, "--prompt", "7 plus", "--no-stop", "--temperature", 0]
    plain = call(*common, "--length", 6)[1]
    for speculate in (["--draft", run_dir], ["--prompt-lookup", 3]):
        code, out, err = call(*common, "--length", 6, *speculate)
        assert (code, out) == (0, plain)
        assert "proposed tokens accepted" in err
        code, _, err = call(*common, "--length", 500, *speculate)
        assert code == 2
        assert "beyond a window of the model or the cache" in err
        assert "Traceback" not in err


def test_beams_and_several_continuations_are_printed_at_the_end(call: Call, run_dir: Path):
    perturb(run_dir, call)
    common = ["generate", run_dir, "--prompt", "7 plus", "--no-stop", "--length", 6]
    code, best, err = call(*common, "--num-beams", 3)
    assert code == 0
    assert re.search(r"\[\d+ tokens, ", err)
    code, both, err = call(*common, "--num-beams", 3, "--num-return-sequences", 2)
    assert (code, both.split("\n\n---\n\n")[0]) == (0, best.rstrip("\n"))
    assert both.count("---") == 1
    assert re.search(r"\[1\d tokens, ", err)
    code, out, err = call(*common, "--num-return-sequences", 3, "--seed", 1)
    assert (code, out.count("---")) == (0, 2)
    code, _, err = call(*common, "--num-beams", 3, "--temperature", 0.5)
    assert (code, "temperature=0.5 cannot be combined" in err) == (2, True)


def test_a_run_is_quantized_on_request(call: Call, run_dir: Path, monkeypatch: pytest.MonkeyPatch):
    seen: list[TransformerWrapper] = []
    stream = AutoregressiveWrapper.stream
    monkeypatch.setattr(AutoregressiveWrapper, "stream", lambda m, *a, **k: seen.append(m.net) or stream(m, *a, **k))
    common = ["generate", run_dir, "--prompt", "7", "--length", 5, "--no-stop", "--quantize", "int8"]
    assert call(*common)[0] == 0
    assert seen[0].quantized == "int8"

    def nothing_but_nan(net: nn.Module, *_: object) -> None:
        for parameter in net.parameters():
            nn.init.constant_(parameter, float("nan"))

    monkeypatch.setattr("x_positional.cli.generate.load_model", nothing_but_nan)
    code, _, err = call(*common)
    assert code == 2
    assert "error: --quantize int8: this model cannot be quantized" in err
    assert "not finite" in err


def test_filters_narrow_the_choice(call: Call, run_dir: Path):
    perturb(run_dir, call)
    common = ["generate", run_dir, "--prompt", "7", "--length", 30, "--no-stop"]
    likeliest = call(*common, "--temperature", 0)[1]
    assert call(*common, "--seed", 1, "--top-k", 1)[1] == likeliest
    assert call(*common, "--seed", 1, "--top-p", 0)[1] == likeliest
    assert call(*common, "--seed", 1)[1] != likeliest


def test_generate_reads_the_standard_input_and_an_empty_prompt(
    call: Call, run_dir: Path, monkeypatch: pytest.MonkeyPatch
):
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO("from a pipe"))
    assert call("generate", run_dir, "--prompt", "-", "--length", 2)[1].startswith("from a pipe")
    assert call("generate", run_dir, "--prompt", "", "--length", 2)[0] == 0


def test_a_model_of_bare_ids_is_prompted_with_ids(call: Call, file: Path, tmp_path: Path):
    import numpy as np

    np.save(tmp_path / "ids.npy", np.arange(3000) % 90)
    assert call("train", file, "--data", "ids.npy", "--run.steps", 3)[0] == 0
    code, out, _ = call("generate", "run", "--prompt", "1 2 3", "--length", 4)
    assert code == 0
    assert re.fullmatch(r"1 2 3( \d+){4}\n", out)
    code, _, err = call("generate", "run", "--prompt", "one two")
    assert (code, "trained on token ids" in err) == (2, True)
    code, _, err = call("generate", "run", "--prompt", "1 999")
    assert (code, "999" in err, "Traceback" in err) == (2, True, False)


def test_check_prints_the_verdict(call: Call, file: Path):
    code, out, _ = call("check", file)
    assert code == 0
    assert "backend   sdpa (" in out
    code, out, _ = call("check", file, "--json")
    report = json.loads(out)
    assert (code, report["ok"], report["backend"], report["errors"]) == (0, True, "sdpa", [])


def test_check_reports_every_problem_at_once(call: Call, file: Path):
    code, out, _ = call(
        "check", file, "--json", "--kv_heads", 2, "--model.layers.detph", 4, "--position", "{kind: rope, dim: 7}"
    )
    report = json.loads(out)
    assert (code, report["ok"]) == (1, False)
    text = "\n".join(report["errors"])
    for part in ("kv_heads=2", "did you mean model.layers.depth?", "rope: rotary width is 7"):
        assert part in text
    code, out, _ = call("check", file, "--kv_heads", 2)
    assert (code, "refused: 1 error" in out) == (1, True)


def test_check_judges_a_use(call: Call, file: Path):
    assert call("check", file, "--cache", "static", "--decode-to", 90)[0] == 0
    code, out, _ = call("check", file, "--cache", "static", "--decode-to", 90, "--position", "absolute")
    assert (code, "33" in out) == (1, True)
    code, out, _ = call("check", file, "--cache", "sliding")
    assert (code, "cache='sliding'" in out) == (1, True)
    assert call("check", file, "--cache", "sliding", "--cache-window", 20)[0] == 0


def test_check_reads_a_file_with_a_model_alone(call: Call, file: Path, tmp_path: Path):
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(raw_config(tmp_path)["model"]))
    assert call("check", "model.yaml")[1] == call("check", file)[1]


def test_overrides_are_read_as_yaml():
    read = parse_overrides(
        [
            "--a.b",
            "3",
            "--c=1e-3",
            "--d",
            "[x, 2]",
            "--e.f",
            "{k: v}",
            "--g",
            "null",
            "--on",
            "--off",
            "false",
            "--a-b",
            "-1",
        ]
    )
    assert read == {
        "a.b": 3,
        "c": "1e-3",
        "d": ["x", 2],
        "e.f": {"k": "v"},
        "g": None,
        "on": True,
        "off": False,
        "a_b": -1,
    }
    with pytest.raises(UserError, match=r"(?s)unexpected argument 'x'.*--a is given twice"):
        parse_overrides(["x", "--a", "1", "--a", "2"])


@pytest.mark.parametrize("missing", ["typer", "numpy"])
def test_a_missing_extra_is_said_in_one_sentence(missing: str):
    code = f"import sys; sys.modules[{missing!r}] = None; from x_positional.cli.main import main; main(['--help'])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert run.returncode == 2
    assert "Traceback" not in run.stderr
    assert run.stderr.splitlines()[-1] == f"error: the command line needs {missing}: pip install 'x-positional[train]'"


def test_help_imports_nothing_that_measures_or_draws():
    code = (
        "import sys; from x_positional.cli.main import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print(*sys.modules, file=sys.stderr)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(run.stderr.split())
    assert "x_positional.cli.evidence.commands" in loaded
    options = "x_positional.evidence.evaluation.options"
    here = {
        name for name in loaded if re.match(r"x_positional\.(evidence|plotting)\b|x_positional\.cli\.evidence\.", name)
    }
    packages = {"x_positional.evidence", "x_positional.evidence.evaluation"}  # which import nothing
    assert here == {*packages, options, "x_positional.cli.evidence.commands"}
    outside = {
        "altair",
        "matplotlib",
        "lm_eval",
        "transformers",
        "peft",
        "accelerate",
        "datasets",
        "gguf",
        "torch._dynamo",
    }
    assert outside & loaded == set()


@pytest.mark.skipif(sys.platform == "win32", reason="signals are sent in another way on Windows")
def test_control_c_saves_and_says_how_to_go_on(file: Path, tmp_path: Path, call: Call):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "x_positional.cli.main",
            "train",
            str(file),
            "--run.steps",
            "1000000",
            "--eval_every",
            "9",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    )
    assert process.stdout is not None
    before = []
    for line in process.stdout:
        before.append(line)
        if "validation loss" in line:
            process.send_signal(signal.SIGINT)
            break
    rest = process.stdout.read()
    assert process.wait(timeout=60) == 130, "".join(before) + rest
    assert "Traceback" not in rest
    done = int(re.search(r"(\d+) steps done", rest).group(1))  # type: ignore[union-attr]
    assert open_checkpoint(tmp_path / "run").step == done
    command = re.search(r"continue: \S*x-positional (train .* --resume)", rest).group(1)  # type: ignore[union-attr]
    code, out, _ = call(*command.split(), "--run.stop_after", done + 2)
    assert code == 0
    assert f"{done + 2} steps done" in out
