"""The loss plot: a picture with both curves, smoothed where there is something to smooth."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from x_positional.errors import MissingExtra
from x_positional.training.loop.loss_plot import plot_losses, smoothed


def write_log(folder: Path, count: int, validation: bool = True, unit: str = "bits_per_byte") -> None:
    lines = [{"event": "train", "step": n, unit: 2 + 3 / n} for n in range(1, count + 1)]
    if validation:
        lines += [{"event": "validation", "step": n, unit: 2.5 + 3 / n} for n in range(5, count + 1, 5)]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)))


def colours(file: Path) -> set[tuple[int, ...]]:
    image = pytest.importorskip("matplotlib.image", reason="matplotlib is not installed").imread(file)
    return {tuple(pixel) for pixel in np.round(image[..., :3] * 255).astype(int).reshape(-1, 3)}


TRAINING, VALIDATION, FAINT = (42, 111, 187), (209, 73, 91), (185, 207, 230)


def test_both_curves_are_drawn(tmp_path: Path):
    write_log(tmp_path, 400)
    file = plot_losses(tmp_path, "a title")
    assert file == tmp_path / "loss.png"
    assert {TRAINING, VALIDATION, FAINT} <= colours(file)


@pytest.mark.parametrize(("count", "unit"), [(1, "bits_per_byte"), (400, "bits_per_token")])
def test_a_run_without_validation_or_bytes_has_a_plot_too(tmp_path: Path, count: int, unit: str):
    write_log(tmp_path, count, validation=False, unit=unit)
    seen = colours(plot_losses(tmp_path, "a title"))
    assert VALIDATION not in seen
    assert TRAINING in seen


def test_smoothing_keeps_length_mean_and_lines():
    values = list(np.random.default_rng(0).normal(size=500))
    smooth = smoothed(values)
    assert len(smooth) == 500
    assert np.std(smooth) < 0.5 * np.std(values)
    middle = smooth[10:-10]
    assert middle[0] == pytest.approx(np.mean(values[:21]))
    line = [0.5 * n for n in range(500)]
    assert smoothed(line)[10:-10] == pytest.approx(line[10:-10])
    assert smoothed(values[:20]) == values[:20]


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_log(tmp_path, 10)
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"pip install 'x-positional\[train\]'"):
        plot_losses(tmp_path, "a title")
