"""`x-positional compare`: what reaches the comparison, what is printed, mistakes answered in words."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import made_up_results
from tests.support.command_line import Call
from x_positional.cli.evidence import compare as command
from x_positional.evidence.comparison.plan import Asked
from x_positional.evidence.comparison.results import Cell, Comparison
from x_positional.evidence.evaluation.results import LengthLoss

LOSSES = {"rope": (2.0, 3.0), "alibi": (2.1, 2.1), "absolute": (2.2, None)}


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("a b c d e f g " * 400)
    layers = {"kind": "decoder", "dim": 16, "depth": 1, "heads": 2, "head_dim": 32}
    raw = {
        "model": {"num_tokens": 256, "max_seq_len": 32, "layers": layers},
        "data": {"path": "text.txt", "val_fraction": 0.1},
        "run": {"device": "cpu"},
    }
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(raw))
    return Path("tiny.yaml")


def cell(label: str, seed: int) -> Cell:
    losses = [value if value is None else value + seed / 100 for value in LOSSES[label]]
    lengths = [
        LengthLoss(
            length=length,
            loss=loss,
            targets=1,
            windows=() if loss is None else (loss,),
            reason=None if loss else "32 rows",
        )
        for length, loss in zip((32, 64), losses, strict=True)
    ]
    found = made_up_results.cell(label, seed)
    assert found.evaluation is not None
    data = found.evaluation.data.model_copy(update={"bytes_per_token": 1.0})
    evaluation = found.evaluation.model_copy(update={"lengths": tuple(lengths), "data": data})
    return found.model_copy(update={"peak_bytes": 3_400_000, "evaluation": evaluation})


@pytest.fixture
def compared(monkeypatch: pytest.MonkeyPatch) -> list[Asked]:
    """What is asked for; nothing is trained."""
    found: list[Asked] = []

    def compare(asked: Asked, folder: Path, **_: Any) -> Comparison:
        found.append(asked)
        grid = asked.grid
        cells = [cell(entry.label, seed) for entry in grid.entries for seed in grid.seeds]
        shared = {
            name: getattr(grid, name)
            for name in ("name", "entries", "seeds", "lengths", "trained_length", "equal", "config")
        }
        return Comparison(**shared, steps=5, budget_seconds=grid.budget_seconds, cells=tuple(cells))

    monkeypatch.setattr(command, "compare", compare)
    return found


def test_options_reach_the_grid_and_tables_show_it(call: Call, config: Path, compared: list[Asked]):
    code, out, _ = call(
        "compare",
        config,
        "--schemes",
        "rope,alibi,absolute",
        "--seeds",
        2,
        "--budget",
        "2m",
        "--lengths",
        "1x,2x",
        "--model.layers.dim",
        24,
        "--out",
        "kept",
    )
    assert code == 0
    grid = compared[0].grid
    assert (grid.seeds, grid.lengths, grid.budget_seconds, grid.steps) == ((0, 1), (32, 64), 120.0, None)
    assert grid.config["model"]["layers"]["dim"] == 24
    for words in (
        "bits per byte by context length",
        "32 (trained)",
        "2.893 ± 0.092",  # nats to bits, and t(0.975, 1) = 12.7
        "+0.144 ± 0.000*",
        "minus rope, by seed",
        "Student's t over seeds, 95 %",
        "absolute has no loss at 64: 32 rows",
        "3.4",
        "kept in kept/comparison.json",
    ):
        assert words in out


def test_one_seed_has_no_interval(call: Call, config: Path, compared: list[Asked]):
    _, out, _ = call("compare", config, "--schemes", "rope,alibi", "--steps", 5, "--lengths", "1x,2x")
    assert "±" not in out
    assert "One seed: no intervals." in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--schemes", "rop,rope,rope"], ["did you mean 'rope'", "the same as 'rope'"]),
        (["--schemes", "rope", "--budget", "fast"], ["--budget fast is not a time; write 90s, 8m or 1.5h"]),
        (["--schemes", "rope", "--steps", "5", "--budget", "1m"], ["cannot be combined"]),
        (
            ["--schemes", "rope", "--lengths", "1000x"],
            ["validation text has 560 tokens; the longest length needs 32,000"],
        ),
        (["--schemes", "rope", "--dept", "3", "--nonsense", "4"], ["nonsense"]),
        (["--schemes", "absent.yaml"], ["cannot read absent.yaml"]),
    ],
)
def test_mistakes(call: Call, config: Path, arguments: list[str], words: list[str]):
    code, _, err = call("compare", config, *arguments)
    assert code == 2
    for word in words:
        assert word in err
    assert not Path("runs").exists()
