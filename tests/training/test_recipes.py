"""The recipes in configs/recipes: each is valid without a warning, names its paper, and trains."""

import math
from pathlib import Path

import pytest

from tests.support.training_runs import text_file
from x_positional import check
from x_positional.schemes import LogN, NoPE, Rope
from x_positional.training import train
from x_positional.training.load import load_config
from x_positional.training.loop.log import read_curve

RECIPES = sorted((Path(__file__).parents[2] / "configs" / "recipes").glob("*.yaml"))
LAYERS = {
    "rope_nope": [(Rope(), None)] * 3 + [(NoPE(), None)],
    "windowed_rope_nope": [(Rope(), 64)] * 3 + [(NoPE(), None)],
    "swan": [(LogN(), None)] + [(Rope(), 64)] * 3,
}


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_is_valid_and_trains_two_steps(path: Path, tmp_path: Path) -> None:
    small = {"run.dir": str(tmp_path / "run"), "run.steps": 2, "run.batch_size": 1, "run.log_every": 1}
    config = load_config(path, {"data.path": str(text_file(tmp_path)), **small})
    report = check(config.model)
    assert report.ok
    assert report.warnings == []
    layers = config.model.layers.resolved_layers(config.model.max_seq_len)
    assert [(layer.parts[0], layer.window) for layer in layers] == LAYERS[path.stem]
    comment = "".join(line for line in path.read_text().splitlines(keepends=True) if line.startswith("#"))
    assert "arXiv:" in comment
    assert train(config).finished
    losses = read_curve(tmp_path / "run" / "log.jsonl", "train", "loss")[1]
    assert len(losses) == 2
    assert all(map(math.isfinite, losses))


def test_every_recipe_is_described() -> None:
    page = (Path(__file__).parents[2] / "docs" / "layers.md").read_text()
    assert {path.stem for path in RECIPES} == set(LAYERS)
    assert all(f"configs/recipes/{path.name}" in page for path in RECIPES)
