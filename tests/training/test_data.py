"""Text and token ids: split by file, checked before the first step, clear about what is wrong."""

import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.training_runs import TEXT, text_file
from x_positional.errors import UserError
from x_positional.training import DataConfig
from x_positional.training.data.corpus import load_corpus
from x_positional.training.data.documents import Document, embedded_documents, split_documents
from x_positional.training.data.tokenizer import ByteTokenizer, load_tokenizer


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with 300 ids, trained on the sums and on text outside ASCII."""
    tokenizers = pytest.importorskip("tokenizers", reason="the tokenizers package is not installed")
    backend = tokenizers.ByteLevelBPETokenizer()
    backend.train_from_iterator([TEXT.decode(), "größer → naïve 🙂"], vocab_size=300, show_progress=False)
    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    backend.save(str(file))
    return file


def load(path: Path | None, num_tokens: int = 256, seq_len: int = 16, **options):
    return load_corpus(DataConfig(path=None if path is None else str(path), **options), num_tokens, seq_len)


def test_the_embedded_text_is_documentation_and_library_without_the_left_out_parts():
    documents = embedded_documents()
    names = [document.name for document in documents]
    assert names == sorted(set(names), key=names.index)
    assert "library/random.py" in names
    assert "topics/assert" in names
    assert not [name for name in names if "/test" in name or "site-packages" in name or "encodings/" in name]
    assert 3e6 < sum(len(document.text) for document in documents) < 5e7


def test_the_embedded_text_is_split_by_file_the_same_way_each_time():
    corpus, again = load(None), load(None)
    assert corpus.fingerprint == again.fingerprint
    text = bytes(corpus.validation.tokens)
    assert corpus.validation.text_bytes == len(text)
    assert 0.01 < len(text) / (len(text) + len(corpus.train.tokens)) < 0.15
    whole = set(text.split(b"\0")[:-1])
    assert whole <= {document.text for document in embedded_documents()}, "a file was cut"
    assert not whole & set(bytes(corpus.train.tokens).split(b"\0"))


def test_a_file_does_not_change_sides_when_others_come_or_go():
    documents = [Document(f"file-{i}", b"x" * i) for i in range(1, 200)]
    validation = {document.name for document in split_documents(documents, 0.2)[1]}
    fewer = documents[::3]
    assert {document.name for document in split_documents(fewer, 0.2)[1]} == {d.name for d in fewer} & validation
    assert 20 < len(validation) < 60


@pytest.mark.parametrize("fraction", [1e-9, 1 - 1e-9])
def test_both_sides_get_a_file(fraction: float):
    documents = [Document(name, b"x") for name in "abc"]
    train, validation = split_documents(documents, fraction)
    assert sorted(map(len, (train, validation))) == [1, 2]
    assert {*train, *validation} == {*documents}


def test_one_file_is_cut_at_its_end(tmp_path: Path):
    corpus = load(text_file(tmp_path), val_fraction=0.25)
    assert bytes(corpus.train.tokens) + bytes(corpus.validation.tokens) == TEXT
    assert len(corpus.validation.tokens) == round(len(TEXT) * 0.25)
    assert corpus.validation.bytes_per_token == 1.0


def test_a_folder_is_read_without_hidden_empty_and_binary_files(tmp_path: Path):
    for name, text in {
        "a.txt": TEXT,
        "sub/b.md": TEXT[::-1],
        "empty.txt": b"",
        ".hidden.txt": b"h" * 99,
        ".git/x.txt": b"g" * 99,
        "image.png": b"\x89PNG\0\0" * 99,
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(text)
    corpus = load(tmp_path)
    sides = {bytes(corpus.train.tokens), bytes(corpus.validation.tokens)}
    assert sides == {TEXT + b"\0", TEXT[::-1] + b"\0"}
    with pytest.raises(UserError, match=r"no text file in .* matches data\.pattern='\*\*/\*\.rst'"):
        load(tmp_path, pattern="**/*.rst")


@pytest.mark.parametrize("suffix", [".npy", ".bin"])
def test_token_ids_are_read_from_one_file_or_from_two(tmp_path: Path, suffix: str):
    ids = np.arange(1000, dtype=np.uint16) % 300

    def write(file: Path, values: np.ndarray) -> None:
        np.save(file, values) if suffix == ".npy" else values.tofile(file)

    write(tmp_path / f"all{suffix}", ids)
    one = load(tmp_path / f"all{suffix}", num_tokens=300, dtype="uint16", val_fraction=0.1)
    assert np.array_equal(one.train.tokens, ids[:900])
    assert np.array_equal(one.validation.tokens, ids[900:])
    assert one.tokenizer is None
    assert one.train.bytes_per_token is None
    write(tmp_path / f"train{suffix}", ids[:600])
    write(tmp_path / f"val{suffix}", ids[600:])
    two = load(tmp_path, num_tokens=300, dtype="uint16")
    assert np.array_equal(two.train.tokens, ids[:600])
    assert np.array_equal(two.validation.tokens, ids[600:])


@pytest.mark.parametrize(
    ("name", "values", "options", "message"),
    [
        (
            "a.npy",
            np.arange(500),
            {},
            r"validation data contains id 499 at index|training data contains id 256 at index 256",
        ),
        (
            "a.npy",
            np.arange(-3, 200),
            {},
            "training data contains id -3 at index 0; model.num_tokens=256 allows 0 to 255",
        ),
        ("a.npy", np.zeros(500), {}, "contains float64 values; token ids must be integers"),
        ("a.npy", np.zeros((20, 25), dtype=int), {}, r"has shape \[20, 25\]; token ids must be one-dimensional"),
        ("a.npy", np.array([{}] * 50), {}, "cannot read token ids from .*a.npy"),
        (
            "a.npy",
            np.zeros(100, dtype=int),
            {"val_fraction": 0.1},
            r"validation data has 10 tokens; one window needs seq_len \+ 1 = 17",
        ),
        ("a.bin", np.zeros(100, dtype=np.uint16), {}, "a.bin has no header that specifies its dtype; set data.dtype"),
        ("a.bin", np.zeros(101, dtype=np.uint8), {"dtype": "uint16"}, "cannot read token ids from .*a.bin"),
        ("a.bin", np.zeros(0, dtype=np.uint8), {"dtype": "uint8"}, "cannot read token ids from .*a.bin"),
    ],
)
def test_token_ids_that_cannot_be_used_are_refused(tmp_path: Path, name: str, values, options, message: str):
    file = tmp_path / name
    if file.suffix == ".npy":
        np.save(file, values, allow_pickle=True)
    else:
        values.tofile(file)
    with pytest.raises(UserError, match=message):
        load(file, **options)


def test_both_sides_are_reported_at_once(tmp_path: Path):
    np.save(tmp_path / "train.npy", np.array([3, 999] * 20))
    np.save(tmp_path / "val.npy", np.array([1]))
    with pytest.raises(UserError) as caught:
        load(tmp_path)
    assert "training data contains id 999 at index 1" in str(caught.value)
    assert "validation data has 1 tokens; one window needs seq_len + 1 = 17" in str(caught.value)


def test_a_damaged_npy_is_refused(tmp_path: Path):
    file = tmp_path / "a.npy"
    np.save(file, np.arange(100))
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(UserError, match="cannot read token ids"):
        load(file)


def test_text_that_cannot_be_used_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match=r"data\.path='.*absent' does not exist; omit it to train on the embedded"):
        load(tmp_path / "absent")
    (tmp_path / "empty.txt").touch()
    with pytest.raises(UserError, match=r"empty\.txt is empty"):
        load(tmp_path / "empty.txt")
    (tmp_path / "short.txt").write_text("seventeen letters.")
    with pytest.raises(UserError, match=r"one window needs seq_len \+ 1 = 17"):
        load(tmp_path / "short.txt")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no permission bits to take away")
def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    file = text_file(tmp_path)

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)  # file modes do not stop root, under which tests may run
    with pytest.raises(UserError, match=r"cannot read .*sums\.txt: Permission denied"):
        load(file)


def test_a_tokenizer_json_is_used_and_counted_in_bytes(tmp_path: Path, tokenizer_file: Path):
    corpus = load(text_file(tmp_path), num_tokens=300, tokenizer=str(tokenizer_file))
    assert corpus.tokenizer is not None
    decoder = corpus.tokenizer.decoder()
    text = "".join(decoder.feed(int(token)) for token in corpus.train.tokens) + decoder.finish()
    assert TEXT.startswith(text.encode())
    assert corpus.train.bytes_per_token == len(text.encode()) / len(corpus.train.tokens)
    assert corpus.train.bytes_per_token > 1.2, "the tokenizer merged nothing"
    with pytest.raises(UserError, match=r"has 300 ids, more than model\.num_tokens=299"):
        load(text_file(tmp_path), num_tokens=299, tokenizer=str(tokenizer_file))


def test_a_tokenizer_that_is_none_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="is not a file; use 'bytes' or the path"):
        load(text_file(tmp_path), tokenizer="byte")
    bad = tmp_path / "tokenizer.json"
    bad.write_text("{}")
    with pytest.raises(UserError, match=r"cannot read .*tokenizer\.json as a tokenizer\.json"):
        load(text_file(tmp_path), tokenizer=str(bad))


@pytest.mark.parametrize("text", ["plain", "größer → naïve 🙂!", "a\nb\n\nc  d\n", "🙂" * 9])
@pytest.mark.parametrize("kind", ["bytes", "json"])
def test_streamed_text_is_the_text_and_no_piece_is_half_a_character(text: str, kind: str, tokenizer_file: Path):
    tokenizer = ByteTokenizer() if kind == "bytes" else load_tokenizer(str(tokenizer_file))
    decoder = tokenizer.decoder()
    pieces = [decoder.feed(int(token)) for token in tokenizer.encode(text.encode())]
    assert "".join(pieces) + decoder.finish() == text
    assert "\N{REPLACEMENT CHARACTER}" not in "".join(pieces)
    assert len(pieces) > 1


def test_broken_utf8_is_shown_as_such():
    decoder = ByteTokenizer().decoder()
    assert [decoder.feed(token) for token in (0xC3, 0x41, 0xE2)] == ["", "\N{REPLACEMENT CHARACTER}A", ""]
    assert decoder.finish() == "\N{REPLACEMENT CHARACTER}"


def test_an_end_that_is_no_id_is_refused(tmp_path: Path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_bytes(TEXT)
    with pytest.raises(UserError, match=r"the id that ends documents is 300; model\.num_tokens=256 allows 0 to 255"):
        load_corpus(DataConfig(path=str(tmp_path), document_end=300), 256, 16)
