"""The round on a GPU, in its reduced form on a CPU: every stage runs, limits hold, wheels are found."""

import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import speed
from benchmarks.gpu.checks import contract, gradient_stage, recompile_stage
from benchmarks.gpu.record import Record, Round, Row, Stage, attempt, run_stage
from benchmarks.gpu.speed import decode_stage, graph_stage, llama_stage
from benchmarks.gpu.wheels import fits, missing, unpack

HERE = Round(torch.device("cpu"), reduced=True)
STAGES: dict[str, Stage] = {
    "contract": contract,
    "gradients": gradient_stage,
    "recompiles": recompile_stage,
    "decode": decode_stage,
    "llama": llama_stage,
    "graphs": graph_stage,
}


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_runs_through_on_a_cpu(name: str, tmp_path: Path):
    record = run_stage(name, STAGES[name], HERE, tmp_path, 60.0)
    assert record.ended == "complete"
    assert record.rows
    assert [row for row in record.rows if row.verdict == "fail"] == []
    assert Record.read(tmp_path, name, 60.0) == record
    verdicts = {row.verdict for row in record.rows}
    assert verdicts & ({"measured"} if name in ("decode", "llama") else {"pass"})


def test_stages_and_limits():
    assert list(gpu.LIMITS) == list(STAGES)
    assert sum(gpu.LIMITS.values()) < 8 * 60


def test_a_fault_fails_its_row_and_not_the_stage(tmp_path: Path):
    def stage(where: Round) -> Iterator[Row]:
        yield attempt("broken", lambda: Row("broken", "pass" if torch.ones(2) @ torch.ones(3) else "fail"))
        yield Row("whole", "pass")

    record = run_stage("contract", stage, HERE, tmp_path, 1.0)
    assert [row.verdict for row in record.rows] == ["fail", "pass"]
    assert "RuntimeError: inconsistent tensor size" in record.rows[0].detail
    text = gpu.table(tmp_path, ["contract", "llama"])
    assert "FAIL broken: RuntimeError" in text
    assert text.splitlines()[2].split() == ["contract", "1", "1", "0", str(record.seconds), "complete"]


def test_a_stage_ends_with_its_time_limit(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code = gpu.main(["--stages", "decode", "--out", str(tmp_path), "--scale", "0.001", "--reduced"])
    assert code == 1
    assert json.loads((tmp_path / "decode.json").read_text("utf-8"))["ended"] == "time limit of 0 s"
    assert "time limit of 0 s" in capsys.readouterr().out.splitlines()[-1]


def test_the_command_runs_a_stage_in_its_own_process(tmp_path: Path):
    assert gpu.main(["--stages", "llama", "--out", str(tmp_path), "--reduced", "--scale", "5"]) == 0
    assert json.loads((tmp_path / "llama.json").read_text("utf-8"))["ended"] == "complete"


def wheel(folder: Path, name: str) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / name, "w") as archive:
        archive.writestr(f"{name.split('-')[0]}_module.py", "")
    return folder / name


def test_wheels_of_this_python_are_unpacked(tmp_path: Path):
    own = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    wheel(tmp_path / "wheels", "pure-1.0-py3-none-any.whl")
    wheel(tmp_path / "wheels", f"built-1.0-{own}-{own}-{sys.platform}_x86_64.whl")
    wheel(tmp_path / "wheels", "older-1.0-cp27-cp27mu-manylinux2014_x86_64.whl")
    assert len(unpack(tmp_path / "wheels", tmp_path / "out")) == 2
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["built_module.py", "pure_module.py"]
    assert not fits(Path("other-1.0-py3-none-win_amd64.whl")) or sys.platform == "win32"
    with pytest.raises(SystemExit, match=r"no wheel for Python .* pip download -d wheels .*pydantic==2.12.5"):
        unpack(tmp_path / "out", tmp_path)


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch):
    assert missing(("json", "no_such_module")) == ["no_such_module"]
    monkeypatch.setattr(gpu, "missing", lambda: ["pydantic"])
    with pytest.raises(SystemExit, match=r"missing: pydantic\. Give --wheels a folder"):
        gpu.main(["--stages", "llama"])


def test_operations_and_bytes_of_a_small_model():
    of = speed.model(HERE, torch.float32, **speed.TINY)
    weights = sum(parameter.numel() for parameter in of.parameters())
    assert speed.operations(of, 2, 10) == 2 * (6 * weights * 10 + 6 * 1 * 16 * 100)
    assert speed.bytes_per_token(of, 3, 10) == 4 * weights + 2 * 3 * 10 * 1 * 2 * 8 * 4
