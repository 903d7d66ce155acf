"""The harness on tiny shapes: same weights, structure and counts. Nothing here depends on how long something takes."""

import importlib.metadata
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from x_positional.errors import MissingExtra, UserError
from x_positional.evidence.benchmark import machine, models, run
from x_positional.evidence.benchmark.clock import interleave, interval, ratio, rounds_within
from x_positional.evidence.benchmark.machine import Limits, Probe
from x_positional.evidence.benchmark.memory import measure_memory
from x_positional.evidence.benchmark.models import OURS, SCHEMES, TRANSFORMERS, X_TRANSFORMERS, Models, Recipe, Shape
from x_positional.evidence.benchmark.profiling import HOST, Part, _parts, kind_of
from x_positional.evidence.benchmark.record import Measured, Record, RowRecord, record_path
from x_positional.evidence.benchmark.report import count, duration, sheet, targets_of
from x_positional.evidence.benchmark.rows import Row, full_rows, quick_rows
from x_positional.evidence.benchmark.run import due, measure, measure_row, minutes, spec_of
from x_positional.evidence.benchmark.targets import (
    CUDA_TARGETS,
    TARGETS,
    Compared,
    Grows,
    NearLimit,
    costs,
    faster,
    verdicts,
)
from x_positional.evidence.benchmark.work import (
    SIDES,
    Demand,
    Prepared,
    Side,
    Work,
    operations,
    step_bytes,
    weight_bytes,
)

CPU = torch.device("cpu")
TINY = Shape(dim=64, depth=2, heads=2, vocab=48)


def tiny(work: Work, sides: tuple[str, ...], **other: object) -> Row:
    return Row(id="tiny", title="tiny", group="some", work=work, sides=sides, shape=TINY, seconds=0.0, **other)  # type: ignore[arg-type]


def recipe(scheme: str = "rotary", **other: object) -> Recipe:
    return Recipe(**{"scheme": scheme, "shape": TINY, "length": 24, "dtype": "float32", "device": CPU, **other})  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def small_probes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that cost nothing: their values do not matter here."""
    monkeypatch.setattr(machine, "LARGE", 2**16)
    monkeypatch.setattr(machine, "MATRIX", 32)


def test_samples_take_turns_and_the_order_reverses():
    calls: list[str] = []
    samples = {name: lambda name=name: float(len(calls.append(name) or calls)) for name in "abc"}  # type: ignore[func-returns-value]
    found = interleave(samples, 3)
    assert "".join(calls) == "abccbaabc"
    assert found == {"a": [1, 6, 7], "b": [2, 5, 8], "c": [3, 4, 9]}


def test_rounds_fit_the_budget_within_bounds():
    assert [rounds_within(10, one) for one in (0.1, 1.0, 4.0, 100.0, 0.0)] == [15, 10, 2, 2, 15]


def test_a_ratio_is_of_pairs_and_its_interval_holds_its_median():
    found = ratio([2.0, 40.0, 6.0], [1.0, 10.0, 2.0])
    assert (found.median, found.low, found.high) == (3.0, 2.0, 4.0)
    low, high = interval([float(value) for value in range(101)])
    assert 30 < low <= 50 <= high < 70


def test_limits_are_the_slower_of_reading_and_computing():
    limits = Limits(bandwidth=10.0, matrix_rate=100.0)
    assert limits.seconds(20.0, 100.0) == 2.0
    assert limits.seconds(20.0, 1000.0) == 10.0


def test_a_fraction_of_the_limit_is_that_of_its_round():
    drifting = Measured([1.0, 4.0, 2.0], limits=[0.5, 2.0, 1.0])  # a machine that is up to four times slower
    assert drifting.fraction == 0.5
    assert Measured([1.0, 4.0, 2.0], limits=[0.5, 2.0, 2.0]).fraction == 0.5
    assert Measured([1.0]).fraction is None


def test_the_probe_takes_its_turn_in_every_round(monkeypatch: pytest.MonkeyPatch):
    calls: list[str] = []

    def sample(probe: Probe) -> float:
        calls.append("limits")
        probe.found.append(Limits(bandwidth=10.0 * len(calls), matrix_rate=1e9))
        return 0.0

    def prepared(row: Row, device: torch.device) -> dict[str, Prepared]:
        def side(name: str, bytes_read: float) -> Prepared:
            return Prepared(lambda: float(len(calls.append(name) or "x")), Demand(bytes_read, 0), lambda: torch.ones(1))  # type: ignore[func-returns-value]

        return {"x-transformers": side("a", 60.0), OURS: side("b", 30.0)}

    monkeypatch.setattr(Probe, "sample", sample)
    monkeypatch.setattr(run, "_prepared", prepared)
    monkeypatch.setattr(run, "rounds_within", lambda *_: 3)
    row = measure_row(tiny(Work(kind="forward", length=8), ("x-transformers", OURS)), CPU)
    assert "".join(call[0] for call in calls[-9:]) == "labballab"
    bandwidth = row.limits["bandwidth"]
    assert row.sides["x-transformers"].limits == [60.0 / rate for rate in bandwidth]
    assert row.sides[OURS].limits == [30.0 / rate for rate in bandwidth]
    shown = f"{bandwidth[1] / 1e9:.1f} GB/s ({bandwidth[0] / 1e9:.1f} to {bandwidth[2] / 1e9:.1f})"
    found = sheet([row])
    assert [line[found.headings.index("machine reads")] for line in found.lines] == [shown, ""]


def test_a_probe_stays_within_its_budget(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine, "MATRIX", 4096)
    seen: list[int] = []

    def seconds(run: Callable[[], object], device: torch.device) -> float:
        run()
        seen.append(1)
        return 0.05

    monkeypatch.setattr(machine, "seconds", seconds)
    monkeypatch.setattr(torch, "mm", lambda a, b: a)
    probe = Probe(2**12, "float32", CPU, budget=0.1)
    assert ([count for count, _ in probe._reads], probe._size) == ([2**12], machine.LEAST_MATRIX)
    assert [count for count, _ in Probe(2**12, "float32", CPU, budget=1.0)._reads] == [2**12, 2**16]
    seen.clear()
    probe.sample()
    assert len(seen) == 2  # one read, one product
    assert probe.found == [Limits(2**12 / 0.05, 2 * machine.LEAST_MATRIX**3 / 0.05)]


def test_the_rotary_model_has_the_same_logits_in_every_library():
    pytest.importorskip("transformers", reason="transformers is not installed")
    pytest.importorskip("x_transformers", reason="x-transformers is not installed")
    shared, tokens = Models(recipe()), torch.arange(20)[None] % TINY.vocab
    with torch.no_grad():
        ours = shared.of(OURS)(tokens)
        hf, xt = shared.of(TRANSFORMERS)(tokens).logits, shared.of(X_TRANSFORMERS)(tokens)
    bound = 100 * torch.finfo(torch.float32).eps * float(ours.abs().max())
    assert float((ours - hf).abs().max()) < bound
    assert float((ours - xt).abs().max()) < bound


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_has_the_same_weights_in_x_transformers(scheme: str):
    pytest.importorskip("x_transformers", reason="x-transformers is not installed")
    shared, tokens = Models(recipe(scheme)), torch.arange(20)[None] % TINY.vocab
    with torch.no_grad():
        ours, theirs = (shared.of(library).eval()(tokens) for library in (OURS, X_TRANSFORMERS))
    assert float((ours - theirs).abs().max()) < 1000 * torch.finfo(torch.float32).eps * float(ours.abs().max())


def test_bytes_and_operations_are_counted_by_hand():
    model, where = Models(recipe()).of(OURS), recipe()
    per_layer = 4 * 64 * 64 + 3 * 64 * TINY.ff_dim
    matrices, gains = 2 * per_layer + 48 * 64, 5 * 64  # two norms a layer, and the last one
    assert weight_bytes(model) == 4 * (matrices + gains)
    decode = Work(kind="decode", batch=3, length=10, new=5)
    assert step_bytes(model, decode, where) == 4 * (matrices + gains) + 3 * 13 * 2 * (2 * 64) * 4
    forward, train = Work(kind="forward", batch=2, length=16), Work(kind="train", batch=2, length=16)
    by_hand = 2 * 16 * 2 * matrices + 2 * (
        2 * 2 * 64 * 16 * 16
    )  # halves of the squares, two products, two layers, two rows
    assert operations(model, forward, where) == by_hand
    assert operations(model, train, where) == 3 * by_hand


def test_a_tied_head_is_read_and_bfloat16_is_half():
    model = Models(recipe()).of(OURS)
    untied, tied = weight_bytes(model), sum(p.nbytes for n, p in model.named_parameters() if n != "to_logits.weight")
    model.to_logits = None  # type: ignore[assignment]
    assert weight_bytes(model) == tied == untied
    assert 2 * weight_bytes(model.bfloat16()) == tied


@pytest.mark.parametrize(
    ("work", "sides"),
    [
        (Work(kind="decode", length=4, new=3), ("x-transformers", "transformers", OURS)),
        (Work(kind="train", length=8), ("x-transformers", "transformers", OURS)),
        (Work(kind="forward", length=8), ("transformers", OURS)),
        (Work(kind="rotate", length=8), ("rotary-embedding-torch", OURS)),
    ],
    ids=lambda value: value.kind if isinstance(value, Work) else "",
)
def test_a_row_measures_every_side_and_their_outputs_agree(work: Work, sides: tuple[str, ...]):
    for package in ("transformers", "x_transformers", "rotary_embedding_torch"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    row = measure_row(tiny(work, sides), CPU)
    assert tuple(row.sides) == sides
    assert row.failures() == []
    rounds = {len(side.samples) for side in row.sides.values()}
    assert len(rounds) == 1
    assert min(rounds) >= 2
    for name, side in row.sides.items():
        assert len(side.limits) == len(side.samples) == len(row.limits["bandwidth"])
        assert min(side.limits) > 0
        if name == sides[0]:
            assert side.agrees is None
        else:
            assert side.agrees == 1.0 if work.kind == "decode" else side.agrees is not None and side.agrees < 1e-4


def test_over_none_is_another_model_and_is_not_compared():
    pytest.importorskip("x_transformers", reason="x-transformers is not installed")
    row = measure_row(tiny(Work(kind="train", length=8), (OURS, f"{OURS} none"), scheme="alibi"), CPU)
    assert row.failures() == []
    assert row.sides[f"{OURS} none"].agrees is None


def test_a_missing_peer_is_one_line_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch):
    def missing(module: str, what: str, extra: str) -> None:
        raise MissingExtra(f"{what} {module}: pip install 'x-positional[{extra}]'")

    monkeypatch.setattr(models, "import_extra", missing)
    row = measure_row(tiny(Work(kind="forward", length=8), ("x-transformers", OURS), scheme="alibi"), CPU)
    assert row.failures() == [
        "x-transformers: rows of x-transformers need x_transformers: pip install 'x-positional[bench]'"
    ]
    assert len(row.sides[OURS].samples) >= 2
    assert row.sides["x-transformers"].samples == []


def test_a_side_that_fails_or_cannot_run_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object) -> None:
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setitem(models._BUILDERS, ("rotary", TRANSFORMERS), broken)
    monkeypatch.setitem(SIDES, "never", Side(library=OURS, needs=lambda: "needs a compiler"))
    row = measure_row(tiny(Work(kind="forward", length=8), ("transformers", "never", OURS)), CPU)
    assert row.failures() == ["transformers: failed: RuntimeError: first line", "never: needs a compiler"]
    assert len(row.sides[OURS].samples) >= 2


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory is read from /proc")
def test_peak_memory_is_measured_in_a_process_of_its_own():
    assert measure_memory(tiny(Work(kind="train", length=8), (OURS,)), OURS, CPU) >= 0


def a_record(path: Path, rows: dict[str, RowRecord] | None = None) -> Record:
    record = Record.open(path)
    for name, row in (rows or {}).items():
        record.add(name, row, CPU)
    return record


def a_row(
    work: Work | None = None, group: str = "some", demand: dict[str, float] | None = None, **samples: list[float]
) -> RowRecord:
    spec = spec_of(tiny(work or Work(kind="train", length=8), tuple(samples)), CPU)
    return RowRecord(
        "tiny", group, spec, {}, {n: Measured(v, [1.0] * len(v)) for n, v in samples.items()}, demand or {}
    )


def test_a_record_is_read_as_it_was_written_and_is_not_left_half(tmp_path: Path):
    path = tmp_path / "there" / "record.json"
    written = a_record(path, {"one": a_row(a=[1.0, 2.0], b=[2.0, 6.0])})
    read = Record.open(path)
    assert read.rows == written.rows
    assert read.machine["versions"]["torch"] == importlib.metadata.version("torch")
    assert set(read.machine["limits"]) == {"float32", "bfloat16"}
    assert [file.name for file in path.parent.iterdir()] == ["record.json"]
    found = read.rows["one"].ratio("b", "a")
    assert found is not None
    assert (found.median, found.low, found.high) == (2.5, 2.0, 3.0)


def test_a_row_with_one_limit_for_all_rounds_is_measured_again(tmp_path: Path):
    path = tmp_path / "record.json"
    a_record(path, {"old": a_row(a=[1.0]), "new": a_row(a=[1.0])})
    data = json.loads(path.read_text("utf-8"))
    data["rows"]["old"]["sides"]["a"]["limit"] = data["rows"]["old"]["sides"]["a"].pop("limits")[0]
    path.write_text(json.dumps(data))
    assert list(Record.open(path).rows) == ["new"]


def test_a_foreign_file_is_refused(tmp_path: Path):
    path = tmp_path / "record.json"
    path.write_text('{"seconds": {}}')
    with pytest.raises(UserError, match="not a record of `bench`"):
        Record.open(path)


def test_an_interrupted_run_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: list[str] = []

    def measured(row: Row, device: torch.device) -> RowRecord:
        asked.append(row.id)
        if row.id == "three":
            raise KeyboardInterrupt
        return replace(a_row(**{OURS: [1.0]}), spec=spec_of(row, device))

    monkeypatch.setattr(run, "measure_row", measured)
    rows = [replace(tiny(Work(kind="forward", length=8), (OURS,)), id=name) for name in ("one", "two", "three")]
    path = record_path(tmp_path, CPU)
    with pytest.raises(KeyboardInterrupt):
        list(measure(rows, Record.open(path), CPU))
    left = due(rows, Record.open(path), CPU, again=False)
    assert [row.id for row in left] == ["three"]
    assert asked == ["one", "two", "three"]
    assert len(due(rows, Record.open(path), CPU, again=True)) == 3
    changed = [replace(row, work=replace(row.work, length=9)) for row in rows]
    assert len(due(changed, Record.open(path), CPU, again=False)) == 3
    shorter = [replace(row, seconds=99.0) for row in rows]
    assert [row.id for row in due(shorter, Record.open(path), CPU, again=False)] == ["three"]
    monkeypatch.setattr(machine, "source_hash", lambda: "another version")
    assert len(due(rows, Record.open(path), CPU, again=False)) == 3


def test_rows_have_names_of_their_own_and_sides_that_exist():
    for rows in (full_rows(), quick_rows()):
        assert len({row.id for row in rows}) == len(rows)
        for row in rows:
            assert set(row.sides) <= set(SIDES), row.id
            assert OURS in row.sides, row.id
    assert minutes([row for row in full_rows() if not row.more and not row.cuda]) <= 16
    assert minutes(quick_rows()) == 1


def test_targets_name_rows_that_are_measured_by_default():
    default = {row.id: row for row in full_rows() if not row.more}
    for target in (*TARGETS, *CUDA_TARGETS):
        rows = [target.row, target.to] if isinstance(target, Grows) else [target.row]  # type: ignore[attr-defined]
        for name in rows:
            if name == "versus-decode":  # kept by benchmarks/versus.py
                continue
            assert name in default, target
            assert default[name].cuda == (target in CUDA_TARGETS)
            if isinstance(target, Compared):
                assert target.than in default[name].sides, target


def test_targets_are_judged_by_the_median():
    rows = {
        "row": a_row(**{"peer": [2.0, 2.0, 3.0], OURS: [1.0, 1.0, 1.0]}),
        "small": a_row(demand={OURS: 100.0}, **{OURS: [1.0]}),
        "large": a_row(demand={OURS: 150.0}, **{OURS: [2.0]}),
    }
    common = {"work": "some", "row": "row"}
    assert faster(**common, than="peer", bound=2.0).verdict(rows).met is True
    assert faster(**common, than="peer", bound=2.1).verdict(rows).met is False
    assert costs(**common, side="peer", than=OURS, bound=2.0).verdict(rows).met is True
    assert costs(**common, side="peer", than=OURS, bound=1.9).verdict(rows).met is False
    assert NearLimit(**common, side="peer", bound=0.5).verdict(rows).met is True
    assert NearLimit(**common, side="peer", bound=0.51).verdict(rows).met is False
    assert Grows(work="some", row="small", to="large", bound=2.0).verdict(rows).met is True
    by_bytes = Grows(work="some", row="small", to="large").verdict(rows)
    assert (by_bytes.met, by_bytes.value) == (False, "2.00×, its bytes 1.50×")


def test_a_target_without_data_is_not_measured_and_says_why():
    rows = {"row": RowRecord("t", "g", {}, {}, {"peer": Measured(why_not="not installed"), OURS: Measured([1.0])})}
    found = faster(work="some", row="row", than="peer", bound=2.0).verdict(rows)
    assert (found.met, found.value) == (None, "peer: not installed")
    assert faster(work="some", row="other", than="peer", bound=2.0).verdict(rows).value == "row other was not measured"
    assert NearLimit(work="some", row="row", side="else", bound=0.5).verdict(rows).value == "else is not a side of row"
    everything = verdicts({})
    assert count(everything) == f"0 met, 0 missed, {len(TARGETS)} not measured"
    assert len(targets_of(everything).lines) == len(TARGETS)


def test_tables_leave_out_empty_columns_and_failed_sides():
    row = a_row(**{"peer": [0.002, 0.004], OURS: [0.001, 0.002]})
    row.sides["gone"] = Measured(why_not="not installed")
    found = sheet([row])
    assert list(found.headings) == ["row", "side", "time", "tokens/s", f"÷ {OURS}", "of the limit"]
    assert [line[1] for line in found.lines] == ["peer", OURS]
    assert found.lines[0][2:5] == ["3 ms", "2,667", "2.00 (2.00 to 2.00)"]
    assert found.markdown().count("\n") == 3
    memory = sheet([a_row(group="memory", **{OURS: [3.0 * 2**20]})])
    assert memory.headings[2] == "memory"
    assert memory.lines[0][2] == "3 MiB"


@pytest.mark.parametrize(("seconds", "text"), [(1.414, "1.41 s"), (0.0126, "12.6 ms"), (8.5e-5, "85 µs")])
def test_durations_have_three_digits(seconds: float, text: str):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("operator", "part"),
    [
        ("aten::mm", "weights"),
        ("aten::_weight_int8pack_mm", "weights"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu", "attention"),
        ("aten::argmax", "sampling"),
        ("aten::as_strided", "other operators"),
        ("Torch-Compiled Region: 0/0", "compiled graph"),
    ],
)
def test_operators_belong_to_a_part(operator: str, part: str):
    assert kind_of(operator) == part


def test_the_host_is_what_operators_do_not_explain():
    parts = _parts([Part("aten::mm", 2.0, 3), Part("aten::view", 1.0, 5)], 4.0)
    assert {part.name: (part.seconds, part.calls) for part in parts} == {
        "weights": (2.0, 3),
        "other operators": (1.0, 5),
        HOST: (1.0, 0.0),
    }


def test_a_profile_counts_the_operators_of_a_token():
    pytest.importorskip("transformers", reason="transformers is not installed")
    found, missing = run.profile_row(tiny(Work(kind="decode", length=4, new=3), ("transformers", OURS)), CPU)
    assert missing == []
    assert list(found) == ["transformers", OURS]
    for profile in found.values():
        weights = next(part for part in profile.parts if part.name == "weights")
        assert weights.calls >= 2 * 4  # two layers: queries, keys and values, output, feedforward
        assert profile.parts[-1].name == HOST


def test_records_in_the_repository_are_readable():
    for path in sorted((Path(__file__).parents[2] / "benchmarks" / "results").glob("*.json")):
        record = Record.open(path)
        assert set(json.loads(path.read_text("utf-8"))) == {"machine", "rows"}
        assert record.rows
