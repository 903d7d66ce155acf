"""The rule of the usable length, and the file that keeps it beside the weights."""

import os
from pathlib import Path

import pytest

from x_positional.errors import UserError
from x_positional.evidence.evaluation import stored
from x_positional.evidence.evaluation.results import DataSummary, Evaluation, LengthLoss, ModelSummary
from x_positional.evidence.evaluation.stored import FILE, MeasuredLength, not_ours, store_length, stored_length
from x_positional.evidence.evaluation.usable import mean_and_error, paired, rises, usable_length

WINDOWS = (1.0, 3.0, 2.0, 2.0)


def entry(length: int, *added: float) -> LengthLoss:
    """The loss of the windows plus what is added to each, or to all."""
    added = added * 4 if len(added) == 1 else added
    windows = tuple(a + b for a, b in zip(WINDOWS, added, strict=True))
    return LengthLoss(length=length, loss=sum(windows) / 4, targets=4, windows=windows)


NO_LOSS = LengthLoss(length=1 << 20, loss=None, reason="refused")


@pytest.mark.parametrize(
    ("lengths", "usable"),
    [
        ([entry(8, 0.0)], 8),
        ([entry(8, 0.0), entry(16, -0.1), entry(32, -0.09)], 32),  # within the tolerance of the lowest
        ([entry(8, 0.0), entry(16, -0.1), entry(32, -0.07), entry(64, -0.2)], 16),  # at all shorter ones too
        ([entry(8, 0.0), entry(16, 0.01), entry(32, 0.0199), entry(64, 0.03)], 32),  # not creeping
        ([entry(8, 0.0), entry(16, 0.3, -0.2, 0.3, -0.2)], 16),  # noise: 0.05 with a standard error of 0.14
        ([entry(8, 0.0), NO_LOSS], 8),
        ([NO_LOSS, entry(8, 0.0)], None),
        ([], None),
    ],
)
def test_usable_length(lengths: list[LengthLoss], usable: int | None):
    found = usable_length(lengths)
    assert (found and found.length) == usable
    if found is not None:
        assert "at most 0.02 nats per token, or by at most 2 standard errors" in found.rule


def test_the_tolerance_and_the_paired_error():
    assert paired(entry(16, 0.3, -0.1, 0.3, -0.1), entry(8, 0.0)) == pytest.approx((0.1, 0.4 / 12**0.5))
    assert mean_and_error([3.0]) == (3.0, None)
    assert not rises(entry(16, 0.05), entry(8, 0.0), 0.051)
    assert rises(entry(16, 0.05), entry(8, 0.0), 0.049)


def evaluation(*lengths: LengthLoss) -> Evaluation:
    return Evaluation(
        model=ModelSummary(name="m", position="rope", trained_length=8, parameters=1),
        data=DataSummary(name="a text", tokens=100, bytes_per_token=None, fingerprint="0"),
        protocol="final 1 token of 4 windows, same targets at every length",
        lengths=lengths,
        usable=usable_length(lengths),
    )


RISING = evaluation(entry(8, 0.0), entry(16, -0.1), entry(32, 0.4), NO_LOSS)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_bytes(bytes(range(200)))
    return tmp_path / "model"


def test_a_stored_length_reads_back(folder: Path):
    assert stored_length(folder) is None
    assert store_length(folder, RISING) == folder / FILE
    found = stored_length(folder)
    assert found is not None
    assert (found.usable, found.rises_at, found.rise) == (16, 32, pytest.approx(0.5))
    assert found.losses[3] == (NO_LOSS.length, None)
    assert found.words() == (
        "the loss was measured to rise past 16 tokens: by 0.50 nats per token at 32 "
        "(final 1 token of 4 windows, same targets at every length, a text)"
    )
    store_length(folder, evaluation(entry(8, 0.0), entry(16, 0.0)))  # in its place
    found = stored_length(folder)
    assert found is not None
    assert found.words().startswith("16 is the longest length measured (")
    assert sorted(file.name for file in folder.iterdir()) == ["model.safetensors", FILE]


def test_each_gguf_file_has_its_own(tmp_path: Path):
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(name.encode())
    store_length(tmp_path / "a.gguf", RISING)
    assert (tmp_path / f"a.gguf.{FILE}").is_file()
    assert stored_length(tmp_path / "b.gguf") is None


def test_a_length_of_other_weights_is_refused(folder: Path):
    store_length(folder, RISING)
    (folder / "model.safetensors").write_bytes(bytes(200))
    with pytest.raises(UserError, match=r"was measured of other weights; measure again with x-positional eval"):
        stored_length(folder)


def test_a_damaged_file_is_refused(folder: Path):
    (folder / FILE).write_text('{"kind": "measured length"')
    with pytest.raises(UserError, match="is not a measured length that this version can read"):
        stored_length(folder)


def test_nothing_is_written_where_it_does_not_belong(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    hub = tmp_path / "models--org--name" / "snapshots" / "0"
    hub.mkdir(parents=True)
    with pytest.raises(UserError, match="is in the cache of the Hub"):
        store_length(hub, RISING)
    assert "belongs to an installed package" in (not_ours(Path(pytest.__file__)) or "")
    with pytest.raises(UserError, match="no usable length was found"):
        store_length(folder, evaluation(NO_LOSS))
    with monkeypatch.context() as patched:
        patched.setattr(os, "access", lambda path, mode: False)
        with pytest.raises(UserError, match="is read-only"):
            store_length(folder, RISING)

    def full(self: MeasuredLength, path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(stored.MeasuredLength, "save", full)
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        store_length(folder, RISING)
    assert not (folder / FILE).exists()
