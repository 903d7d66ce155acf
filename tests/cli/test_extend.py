"""`x-positional extend`: the table, the record, the folder, fine-tuning, and mistakes."""

import sys
from pathlib import Path

import pytest
import torch

import x_positional
from tests.support.training_runs import config
from x_positional.cli.evidence import extend as command
from x_positional.cli.evidence.extend import ExtendOptions, extend, target_length
from x_positional.errors import UserError
from x_positional.evidence.extension.results import Extension
from x_positional.training.data.positions import PositionedWindows
from x_positional.training.loop.train import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extend")
    train(config(folder, steps=3, accumulate=1))
    return folder / "run"


def options(folder: Path, **given: object) -> ExtendOptions:
    few = {"to": "2x", "windows": 3, "targets": 8, "position_windows": 0, "device": "cpu", "run_dir": folder / "work"}
    return ExtendOptions(**{**few, **given})  # type: ignore[arg-type]


def test_table_record_page_and_folder(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    pages: list[Extension] = []
    monkeypatch.setattr(command, "extension_page", lambda found: pages.append(found) or "<p>the page</p>")
    given = options(tmp_path, methods="yarn,keep_first,longrope", choose="yarn", out=tmp_path / "out")
    assert extend(run, given) == 0
    shown = capsys.readouterr().out
    for words in (
        "trained on 33 tokens, to reach 66",
        "yarn x2",
        "cost at 33",
        "longrope x2: its factors",
        "chosen: yarn x2",
    ):
        assert words in shown
    record = Extension.load(tmp_path / "work" / "extension.json")
    assert pages == [record]
    assert (tmp_path / "work" / "extension.html").read_text() == "<p>the page</p>"
    assert record.chosen == "yarn x2"
    assert record.folder == str(tmp_path / "out")
    assert (record.format, record.format_reason is None) in (("hf", True), ("native", False))
    model = x_positional.from_pretrained(tmp_path / "out")
    assert model.config.layers.position[0].scaling.rope_type == "yarn"
    assert model.max_seq_len == 66
    with pytest.raises(UserError, match="already contains a model"):
        extend(run, given)


def test_fine_tuning_of_two_steps_continues_and_is_written(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    few = {"methods": "dynamic", "choose": "dynamic", "finetune_tokens": 2 * 124 * 66}
    assert extend(run, options(tmp_path, **few)) == 0
    record = Extension.load(tmp_path / "work" / "extension.json")
    tuned = next(attempt for attempt in record.attempts if attempt.tuned_tokens)
    assert (tuned.label, tuned.tuned_tokens) == ("dynamic x2, fine-tuned", 2 * 124 * 66)
    plain = next(attempt for attempt in record.attempts if attempt.label == "dynamic x2")
    assert tuned.outside != plain.outside
    assert extend(run, options(tmp_path, **few, out=tmp_path / "out")) == 0  # the finished run is not trained again
    again = Extension.load(tmp_path / "work" / "extension.json")
    assert [(a.label, a.outside) for a in again.attempts] == [(a.label, a.outside) for a in record.attempts]
    model = x_positional.from_pretrained(tmp_path / "out")
    assert model.max_seq_len == 33  # what transformers takes for the trained length of dynamic NTK
    assert torch.isfinite(model(torch.zeros(1, 66, dtype=torch.long))).all()


def test_fine_tuning_by_pose_keeps_windows_short_and_draws_positions_up_to_the_target(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    largest: list[int] = []
    batch = PositionedWindows.batch

    def remember(self: PositionedWindows, first: int, count: int) -> dict[str, torch.Tensor]:
        found = batch(self, first, count)
        assert found["tokens"].shape == (count, 34)
        largest.append(int(found["positions"][:, :-1].max()))
        return found

    monkeypatch.setattr(PositionedWindows, "batch", remember)
    few = {"methods": "yarn", "choose": "yarn", "finetune_tokens": 2 * 248 * 33, "pose": True}
    assert extend(run, options(tmp_path, **few)) == 0
    assert len(largest) == 2
    assert min(largest) > 33
    assert max(largest) < 66
    record = Extension.load(tmp_path / "work" / "extension.json")
    assert [a.label for a in record.attempts if a.tuned_tokens] == ["yarn x2, fine-tuned (PoSE)"]
    assert (tmp_path / "work" / f"tuned-yarn-x2-{2 * 248 * 33}-pose").is_dir()


def test_nothing_is_written_where_the_unchanged_model_is_best(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "altair", None)
    assert extend(run, options(tmp_path, methods="longrope", out=tmp_path / "out")) == 0
    shown = capsys.readouterr().out
    assert "was not written: the unchanged model is the best" in shown
    assert "no page: reports need altair: pip install 'x-positional[report]'" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"to": "1x"}, "does not exceed the trained length of 33"),
        ({"to": "far"}, "--to far: give a number of tokens"),
        ({"to": "90000"}, "a window of the longest length needs 90,000"),
        ({"methods": "yarnn"}, "did you mean 'yarn'"),
        ({"methods": "yarn", "choose": "ntk"}, "no such method is tried; tried: none, yarn x2"),
        ({"choose": "longrope"}, "--choose longrope cannot be used: its factors"),
        ({"pose": True}, "--pose has no effect without --finetune-tokens"),
        ({"lora": True}, "--lora has no effect without --finetune-tokens"),
        ({"longrope_factors": Path("no.json")}, "--longrope-factors no.json cannot be read"),
    ],
)
def test_mistakes(run: Path, tmp_path: Path, given: dict[str, object], words: str):
    with pytest.raises(UserError, match=words.replace("(", r"\(")):
        extend(run, options(tmp_path, **given))


def test_target_length():
    assert (target_length("4x", 32), target_length("1.5x", 32), target_length("100", 32)) == (128, 48, 100)
