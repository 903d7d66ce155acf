"""Tables and datasets: the same ids from every format, cached once, exact for any number of processes, clear about mistakes."""

import gzip
import hashlib
import json
import multiprocessing
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from x_positional.errors import MissingExtra, UserError
from x_positional.training import DataConfig
from x_positional.training.data import tables
from x_positional.training.data.corpus import Corpus, load_corpus
from x_positional.training.data.documents import unit_hash
from x_positional.training.data.tokenizer import load_tokenizer

ROWS: list[dict[str, Any]] = [{"text": f"{n} squared is {n * n}, größer.", "n": n} for n in range(300)]
FRACTION = 0.2
needs_datasets = pytest.mark.skipif(find_spec("datasets") is None, reason="the package datasets is not installed")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "x_positional" / "tokens"


def load(path: Path | str, **options: Any) -> Corpus:
    return load_corpus(DataConfig(**{"path": str(path), "val_fraction": FRACTION, **options}), 256, 16)


def json_lines(file: Path, rows: list[dict[str, Any]] = ROWS) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = "".join(json.dumps(row) + "\n" for row in rows).encode()
    file.write_bytes(gzip.compress(content) if file.suffix == ".gz" else content)
    return file


def save(folder: Path, name: str) -> Path:
    """The rows in one of the formats."""
    if ".jsonl" in name:
        return json_lines(folder / name)
    datasets = pytest.importorskip("datasets", reason="the package datasets is not installed")
    rows = datasets.Dataset.from_list(ROWS)
    if name == "saved":
        rows.save_to_disk(str(folder / name))
    elif name == "splits":
        datasets.DatasetDict(train=rows.select(range(200)), validation=rows.select(range(200, 300))).save_to_disk(
            str(folder / name)
        )
    else:
        rows.to_parquet(str(folder / name))
    return folder / name


def encoded(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(row["text"].encode() + b"\0" for row in rows)


def held_back(row: dict[str, Any]) -> bool:
    return unit_hash(row["text"]) < FRACTION


TRAIN, VALIDATION = ([row for row in ROWS if held_back(row) is side] for side in (False, True))


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson.jsonl.gz", "a.parquet", "saved"])
def test_every_format_gives_the_same_ids(tmp_path: Path, name: str):
    corpus = load(save(tmp_path, name))
    assert bytes(corpus.train.tokens) == encoded(TRAIN)
    assert bytes(corpus.validation.tokens) == encoded(VALIDATION)
    assert 30 < len(VALIDATION) < 90
    assert corpus.train.text_bytes == len(encoded(TRAIN))
    assert corpus.source == str(tmp_path / name)


def test_ids_are_mapped_from_the_cache_and_rows_are_read_once(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
):
    file = save(tmp_path, "a.jsonl")
    first = load(file)
    assert isinstance(first.train.tokens, np.memmap)
    monkeypatch.setattr(tables, "_json_rows", lambda files: pytest.fail("the rows are in the cache"))
    second = load(file)
    assert second.checksum == first.checksum
    assert second.fingerprint == first.fingerprint
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache.parents[1]))
    entries = {folder.name for folder in cache.iterdir() if folder.is_dir()}
    json_lines(file, ROWS[:200])  # another size and time: another entry
    assert load(file).checksum != first.checksum
    assert len({folder.name for folder in cache.iterdir() if folder.is_dir()} - entries) == 1


def test_the_known_checksum_is_that_of_the_ids(tmp_path: Path):
    corpus = load(save(tmp_path, "a.jsonl"))
    plain = Corpus(*(type(s)(np.array(s.tokens), None) for s in (corpus.train, corpus.validation)), "", None)
    assert corpus.checksum == plain.checksum


def test_an_incomplete_cache_is_built_again(tmp_path: Path, cache: Path):
    file = save(tmp_path, "a.jsonl")
    first = load(file)
    part = next(cache.glob("*/train.bin"))
    expected = part.read_bytes()
    part.write_bytes(expected[:-1])
    assert load(file).checksum == first.checksum
    assert part.read_bytes() == expected


def _digest(path: str) -> str:
    corpus = load(path)
    return hashlib.sha256(bytes(corpus.train.tokens)).hexdigest()


def test_processes_that_start_together_build_it_once(tmp_path: Path, cache: Path):
    file = save(tmp_path, "a.jsonl")
    with multiprocessing.get_context("fork" if os.name == "posix" else "spawn").Pool(3) as pool:
        digests = set(pool.map(_digest, [str(file)] * 3))
    assert digests == {hashlib.sha256(encoded(TRAIN)).hexdigest()}
    assert len([folder for folder in cache.iterdir() if folder.is_dir()]) == 1


@needs_datasets
def test_splits_of_a_dataset_are_used(tmp_path: Path):
    folder = save(tmp_path, "splits")
    corpus = load(folder)
    assert bytes(corpus.train.tokens) == encoded(ROWS[:200])
    assert bytes(corpus.validation.tokens) == encoded(ROWS[200:])
    assert corpus.source.endswith("(splits train and validation)")
    other = load(folder, split="validation")
    assert bytes(other.train.tokens) == encoded([row for row in ROWS[200:] if not held_back(row)])
    with pytest.raises(UserError, match=r"data\.split='test' does not exist: .* has the splits train, validation"):
        load(folder, split="test")


def test_files_named_after_splits_are_splits(tmp_path: Path):
    json_lines(tmp_path / "d" / "train-00000-of-00002.jsonl", ROWS[:100])
    json_lines(tmp_path / "d" / "train-00001-of-00002.jsonl", ROWS[100:150])
    json_lines(tmp_path / "d" / "val.jsonl", ROWS[150:200])
    json_lines(tmp_path / "d" / "test.jsonl", ROWS[200:])
    corpus = load(tmp_path / "d")
    assert bytes(corpus.train.tokens) == encoded(ROWS[:150])
    assert bytes(corpus.validation.tokens) == encoded(ROWS[150:200])
    json_lines(tmp_path / "d" / "more.jsonl", ROWS[:1])
    assert b"".join(bytes(s.tokens) for s in (load(tmp_path / "d").train, load(tmp_path / "d").validation))


def test_reading_stops_at_max_tokens(tmp_path: Path):
    corpus = load(save(tmp_path, "a.jsonl"), max_tokens=1000)
    whole = encoded(TRAIN)
    assert bytes(corpus.train.tokens) == whole[: len(corpus.train.tokens)]
    assert 1000 <= len(corpus.train.tokens) < 1000 + 40


def test_rows_without_text_are_counted(tmp_path: Path):
    corpus = load(json_lines(tmp_path / "a.jsonl", [*ROWS, {"text": None}, {"text": ""}]))
    assert corpus.source.endswith("a.jsonl, 2 rows without text skipped")
    assert bytes(corpus.train.tokens) == encoded(TRAIN)


def test_lone_surrogates_are_replaced(tmp_path: Path):
    (tmp_path / "a.jsonl").write_text("".join(f'{{"text": "odd \\ud800 text {n}"}}\n' for n in range(50)))
    corpus = load(tmp_path / "a.jsonl")
    assert bytes(corpus.train.tokens).startswith(b"odd ? text ")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"field": "body"}, r"data\.field='body' does not exist in row 1 of .*; its fields are text, n$"),
        ({"field": "n"}, r"data\.field='n' is not text in row 1 of .*: it is a int, 0"),
        ({"split": "train"}, r"data\.split='train': .* has no splits"),
        ({"document_end": 256}, r"the id that ends documents is 256; model\.num_tokens=256 allows 0 to 255"),
        ({"val_fraction": 1e-9}, r"validation data has 0 tokens; one window needs"),
    ],
)
@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_options_that_do_not_fit_a_table(tmp_path: Path, name: str, options: dict[str, Any], message: str):
    file = save(tmp_path, name)
    with pytest.raises(UserError, match=message):
        load(file, **options)


def test_options_of_tables_are_refused_for_text(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text " * 100)
    with pytest.raises(UserError, match=r"a\.txt' is neither a table nor a dataset; omit data\.field and data\.split"):
        load(tmp_path / "a.txt", field="body", split="train")


def test_without_datasets_json_lines_are_read_and_parquet_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    parquet, lines = save(tmp_path, "a.parquet"), save(tmp_path, "a.jsonl")
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    assert bytes(load(lines).train.tokens) == encoded(TRAIN)
    with pytest.raises(MissingExtra, match=r"reading .*a\.parquet needs datasets: pip install 'x-positional\[data\]'"):
        load(parquet)


@needs_datasets
def test_without_a_network_a_name_on_the_hub_is_one_line(monkeypatch: pytest.MonkeyPatch):
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_: object, **__: object) -> None:
        raise OSError("[Errno -2] Name or service not known")

    monkeypatch.setattr(hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.raises(
        UserError, match=r"data\.path='owner/name' does not exist here, and it cannot be read from the Hub"
    ):
        load("owner/name")
    with pytest.raises(
        UserError, match=r"data\.tokenizer='owner/name' does not exist here, and it cannot be read from"
    ):
        load_tokenizer("owner/name")


@needs_datasets
def test_a_dataset_on_the_hub_is_streamed_and_cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With the Hub replaced by a local dataset: names, subset and commit reach the library, and a second run needs no network."""
    datasets, hub = pytest.importorskip("datasets"), pytest.importorskip("huggingface_hub")
    calls = []

    class Info:
        sha = "c0ffee"

    def stream(name: str, subset: str | None, **options: Any) -> Any:
        calls.append((name, subset, options))
        return datasets.IterableDatasetDict({"train": datasets.Dataset.from_list(ROWS).to_iterable_dataset()})

    monkeypatch.setattr(hub.HfApi, "dataset_info", lambda self, name, revision, timeout: Info())
    monkeypatch.setattr(datasets, "load_dataset", stream)
    for _ in range(2):
        corpus = load("owner/name", subset="small", revision="v1")
        assert bytes(corpus.train.tokens) == encoded(TRAIN)
        assert corpus.source == "owner/name (split train)"
    assert calls == [("owner/name", "small", {"revision": "c0ffee", "streaming": True})]


def test_a_folder_with_a_tokenizer_ends_documents_with_its_eos(tmp_path: Path):
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")
    backend = tokenizers.ByteLevelBPETokenizer()
    backend.train_from_iterator(
        [row["text"] for row in ROWS], vocab_size=300, special_tokens=["<end>"], show_progress=False
    )
    backend.enable_truncation(5)  # as some published files have it
    (tmp_path / "tok").mkdir()
    backend.save(str(tmp_path / "tok" / "tokenizer.json"))
    (tmp_path / "tok" / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<end>"}))
    config = DataConfig(path=str(save(tmp_path, "a.jsonl")), val_fraction=FRACTION, tokenizer=str(tmp_path / "tok"))
    corpus = load_corpus(config, 300, 16)
    assert corpus.tokenizer is not None
    assert corpus.tokenizer.document_end == 0
    texts = [[*corpus.tokenizer.encode(row["text"].encode()).tolist(), 0] for row in TRAIN]
    assert corpus.train.tokens.tolist() == [i for ids in texts for i in ids]
    assert corpus.train.tokens.dtype == np.uint16
    assert max(map(len, texts)) > 6
    assert corpus.document_end == 0
