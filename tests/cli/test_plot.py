"""`x-positional plot`: where the files go, what it prints, and mistakes answered in words."""

import sys
from pathlib import Path

import pytest
import yaml

from tests.support.command_line import Call
from tests.support.training_runs import raw_config
from x_positional.training import TrainConfig, train

pytest.importorskip("matplotlib", reason="matplotlib is not installed")


@pytest.fixture
def plot(call: Call, tmp_path: Path) -> Call:
    """`x-positional plot`, with a config.yaml to read."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(raw_config(tmp_path)))
    return lambda *arguments: call("plot", *arguments)


def test_it_writes_pictures_and_a_page_and_says_where(plot: Call, tmp_path: Path):
    code, out, _ = plot("config.yaml")
    assert code == 0
    folder = tmp_path / "plots" / "config"
    written = sorted(file.name for file in folder.iterdir())
    assert written == ["index.html", "rope-bound.png", "rope-cos-sin.png", "rope-products.png", "rope-wavelengths.png"]
    for name in written:
        assert f"plots/config/{name}" in out
    assert "trained length 33" not in out
    assert "max_seq_len 33" in (folder / "index.html").read_text()


def test_options_win_over_the_file(plot: Call, tmp_path: Path):
    code, out, _ = plot("config.yaml", "--position", "[alibi, absolute]", "--out", "elsewhere", "--max_seq_len", 50)
    assert code == 0
    assert "elsewhere/index.html shows all of them" in out
    page = (tmp_path / "elsewhere" / "index.html").read_text()
    assert "<h2>alibi</h2>" in page
    assert "max_seq_len 50" in page
    assert not (tmp_path / "plots").exists()


def test_a_file_with_a_model_alone_and_the_folder_of_a_run_are_read(plot: Call, tmp_path: Path):
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(raw_config(tmp_path)["model"]))
    assert plot("model.yaml")[0] == 0
    (tmp_path / "run").mkdir()
    (tmp_path / "config.yaml").rename(tmp_path / "run" / "config.yaml")
    assert plot("run")[0] == 0
    pages = [tmp_path / "plots" / name / "index.html" for name in ("model", "run")]
    texts = [page.read_text().replace("of model", "of run") for page in pages]
    assert texts[0] == texts[1]


def test_a_run_is_drawn_before_and_after_training(plot: Call, tmp_path: Path):
    raw = raw_config(tmp_path, steps=3, eval_every=3, save_every=3)
    raw["model"]["layers"] |= {"position": "t5", "depth": 1}
    train(TrainConfig.model_validate(raw))
    code, out, _ = plot("run")
    assert code == 0
    folder = tmp_path / "plots" / "run"
    for kind in ("bias-map", "bias-distance"):
        files = [folder / f"t5-{stage}-{kind}.png" for stage in ("initial", "trained")]
        assert all(f"plots/run/{file.name}" in out for file in files)
        assert files[0].read_bytes() != files[1].read_bytes()
    page = (folder / "index.html").read_text()
    assert page.count('<div class="beside">') == 2
    assert page.count("<h2>") == 1
    assert "Bias by distance, before training" in page
    assert "The learned parameters are those after 3 training steps." in page
    code, out, _ = plot("run", "--position", "none")
    assert (code, "new parameters are drawn" in out) == (0, True)


def test_a_scheme_without_pictures_has_a_page(plot: Call, tmp_path: Path):
    code, out, _ = plot("config.yaml", "--position", "none")
    assert (code, "nothing to plot" in out) == (0, True)
    assert (tmp_path / "plots" / "config" / "index.html").exists()


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["absent.yaml"], ["cannot read absent.yaml: No such file"]),
        (["config.yaml", "--model.layers.detph", "3"], ["cannot plot", "did you mean model.layers.depth?"]),
        (["config.yaml", "--position", "rotary"], ["no position scheme named 'rotary'"]),
        (
            ["config.yaml", "--position", "{kind: rope, dim: 7}", "--kv_heads", "2"],
            ["rope: rotary width is 7", "kv_heads=2"],
        ),
        (["config.yaml", "--position", "[rope, xpos]"], ["more than one rotates"]),
        (["config.yaml", "stray"], ["unexpected argument 'stray'"]),
        (["--out", "x", "config.yaml", "--position"], ["position"]),
        (["config.yaml", "--out", "config.yaml"], ["config.yaml"]),
        (["continuous.yaml"], ["has no max_seq_len"]),
    ],
)
def test_a_mistake_is_answered_in_words_with_exit_code_2(
    plot: Call, tmp_path: Path, arguments: list[str], parts: list[str]
):
    (tmp_path / "continuous.yaml").write_text(
        "{dim_in: 3, layers: {dim: 24, depth: 2, heads: 3, head_dim: 8, position: rope}}"
    )
    code, _, err = plot(*arguments)
    assert code == 2
    assert "Traceback" not in err
    for part in parts:
        assert part in err


def test_without_matplotlib_it_says_what_to_install(plot: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    code, _, err = plot("config.yaml")
    assert (code, err) == (2, "error: plots need matplotlib: pip install 'x-positional[train]'\n")
    assert not (tmp_path / "plots").exists()


def test_html_writes_interactive_charts_beside_the_pictures(plot: Call, tmp_path: Path):
    pytest.importorskip("altair", reason="altair is not installed")
    pytest.importorskip("vl_convert", reason="vl-convert-python is not installed")
    code, out, _ = plot("config.yaml", "--html", "new/charts.html")
    assert code == 0
    assert "new/charts.html has interactive charts" in out
    assert "What rope does" in (tmp_path / "new" / "charts.html").read_text()
    assert (tmp_path / "plots" / "config" / "index.html").exists()
    code, _, error = plot("config.yaml", "--text", "a", "--html", "x.html")
    assert code != 0
    assert "--html shows position schemes" in error
