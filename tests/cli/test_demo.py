"""The demo from end to end, on a part of the embedded text and for a second."""

import re
from pathlib import Path

import pytest

from x_positional.cli import demo as module
from x_positional.cli.hints import command
from x_positional.training.checkpoints.checkpoint import open_checkpoint
from x_positional.training.data import corpus
from x_positional.training.data.documents import embedded_documents


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Small documents, few of them: the whole validation text takes half a minute."""
    few = [document for document in embedded_documents() if len(document.text) < 3000][:30]
    monkeypatch.setattr(corpus, "embedded_documents", lambda: few)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


@pytest.mark.usefixtures("short")
def test_the_demo_trains_compares_samples_and_says_what_is_next(capsys: pytest.CaptureFixture[str], tmp_path: Path):
    module.demo(seconds=1.0, run_dir="runs/demo")
    out = capsys.readouterr().out
    steps = int(re.search(r"training for (\d+) steps \(1 seconds\)", out).group(1))  # type: ignore[union-attr]
    saved = open_checkpoint(tmp_path / "runs" / "demo")
    assert saved.step == steps
    ours, xz = (float(figure) for figure in re.findall(r"^  +(\d\.\d{3})  ", out, re.MULTILINE))
    assert 2 < ours < 8
    assert 1 < xz < 4
    assert "position rope | backend sdpa" in out
    assert "sample (prompt" in out
    assert "\ndef main(" in out
    assert (tmp_path / "runs" / "demo" / "loss.png").is_file()
    assert f"loss plot   {Path('runs/demo/loss.png')}" in out
    for line in out[out.index("next:") :].splitlines()[1:]:
        assert line.startswith(f"  {command()} ")


def test_an_earlier_demo_is_not_written_over(tmp_path: Path):
    for expected in ("demo", "demo-2", "demo-3"):
        folder = module.new_folder(tmp_path / "demo")
        assert folder == tmp_path / expected
        folder.mkdir()


def test_the_config_of_the_demo_is_small_rotary():
    assert module.CONFIG.name == "small_rotary.yaml"
    assert module.CONFIG.is_file()
