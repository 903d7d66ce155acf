"""`x-positional bench`: which rows, what is kept, mistakes answered in words."""

import json
from pathlib import Path

import pytest

from tests.support.command_line import Call
from x_positional.cli.evidence import bench
from x_positional.evidence.benchmark import machine, rows
from x_positional.evidence.benchmark.models import OURS, Shape
from x_positional.evidence.benchmark.rows import Row
from x_positional.evidence.benchmark.work import Work


@pytest.fixture
def tiny_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rows that take no time, and limits that cost nothing."""
    shape = Shape(dim=64, depth=1, heads=2, vocab=32)
    decode, forward = Work(kind="decode", length=4, new=2), Work(kind="forward", length=8)
    common = {"group": "some", "shape": shape, "seconds": 0.0, "sides": (OURS,)}
    found = [
        Row(id="decode-one", title="decode one", work=decode, **common),  # type: ignore[arg-type]
        Row(id="forward-one", title="forward one", work=forward, more=True, **common),  # type: ignore[arg-type]
    ]
    monkeypatch.setattr(bench, "full_rows", lambda: found)
    monkeypatch.setattr(machine, "LARGE", 2**16)
    monkeypatch.setattr(machine, "MATRIX", 32)


def test_rows_are_listed(call: Call):
    code, out, _ = call("bench", "--list", "--all", "--device", "cpu")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == [row.id for row in rows.full_rows() if not row.cuda]
    code, out, _ = call("bench", "--list", "decode-b1", "train-alibi")
    assert [line.split()[0] for line in out.splitlines()] == ["decode-b1", "decode-b1-bf16", "train-alibi"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("decode-bb1",), "unknown row decode-bb1: did you mean 'decode-b1'?"),
        (("--device", "nonsense"), "--device nonsense cannot be used"),
        (("--profile", "train-alibi"), "--profile shows decode rows"),
    ],
)
def test_mistakes_are_answered_in_words(call: Call, arguments: tuple[str, ...], message: str):
    code, _, err = call("bench", *arguments)
    assert code == 2
    assert message in err


@pytest.mark.usefixtures("tiny_rows")
def test_rows_are_kept_and_not_measured_twice(call: Call, tmp_path: Path):
    code, out, _ = call("bench", "--out", "kept", "--device", "cpu")
    assert code == 0
    assert "1 row, about" in out
    assert "decode one" in out
    assert "targets: 0 met, 0 missed" in out
    path, *others = (tmp_path / "kept").iterdir()
    assert not others
    assert list(json.loads(path.read_text())["rows"]) == ["decode-one"]
    code, out, _ = call("bench", "--out", "kept", "--all", "--device", "cpu")
    assert "1 row is in" in out
    assert "decode one" not in out
    assert list(json.loads(path.read_text())["rows"]) == ["decode-one", "forward-one"]


@pytest.mark.usefixtures("tiny_rows")
def test_a_profile_is_printed_and_nothing_is_kept(call: Call, tmp_path: Path):
    code, out, _ = call("bench", "--profile", "--device", "cpu")
    assert code == 0
    assert "where a token's time goes" in out
    assert "weights" in out
    assert list(tmp_path.iterdir()) == []
