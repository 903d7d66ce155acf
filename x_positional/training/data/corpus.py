"""Token ids for training and validation, read from what `data.path` names and checked before the first step."""

import hashlib
import shutil
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from x_positional.errors import UserError, listed
from x_positional.progress import Track, silent
from x_positional.training.config import DataConfig
from x_positional.training.data.documents import (
    Document,
    embedded_documents,
    file_document,
    folder_documents,
    split_documents,
)
from x_positional.training.data.tables import Table, find_table
from x_positional.training.data.token_cache import Split, cached_splits
from x_positional.training.data.tokenizer import Tokenizer, load_tokenizer

_BLOCK = 1 << 24  # tokens checked at a time, so that a file larger than memory can be checked


@dataclass(frozen=True)
class Corpus:
    """Training and validation data, where they come from, and their tokenizer (None for token ids)."""

    train: Split
    validation: Split
    source: str
    tokenizer: Tokenizer | None
    document_end: int | None = None
    """The id after each document; None for token ids, and where nothing is appended."""

    @property
    def tokenizer_name(self) -> str | None:
        """`bytes`, `tokenizer.json`, or None for token ids."""
        return None if self.tokenizer is None else self.tokenizer.name

    def write_tokenizer(self, folder: Path) -> None:
        """Copy the tokenizer to a folder, if it is a file."""
        if self.tokenizer is not None and self.tokenizer.file is not None:
            shutil.copyfile(self.tokenizer.file, folder / self.tokenizer.name)

    @property
    def fingerprint(self) -> str:
        """Identifies the data by blocks of them: a resumed run must see the same windows."""
        return f"{fingerprint_of(self.train.tokens)}-{fingerprint_of(self.validation.tokens)}"

    @cached_property
    def checksum(self) -> str:
        """CRC-32 of every training and validation token."""
        return f"{_checksum(self.train):08x}-{_checksum(self.validation):08x}"


def load_corpus(config: DataConfig, num_tokens: int, seq_len: int, track: Track = silent) -> Corpus:
    """Read, tokenize, split and check the data of a run.

    Raises:
        UserError: The data are missing or empty, a split is shorter than one window of `seq_len + 1` tokens, or ids are
            outside `[0, num_tokens)`. The message lists the problems of both splits.
    """
    path = None if config.path is None else Path(config.path)
    table = find_table(config)
    if table is None and path is not None and not path.exists():
        raise UserError(f"data.path={config.path!r} does not exist; omit it to train on the embedded text")
    if table is None:
        _refuse_table_options(config)
    files = None if path is None or table is not None else _token_files(path)
    if files is not None:
        corpus = _from_ids(config, files, str(path))
    else:
        corpus = _from_text(config, path, table, num_tokens, track)
    problems = []
    for name, split in (("training", corpus.train), ("validation", corpus.validation)):
        if len(split.tokens) < seq_len + 1:
            problems.append(
                f"{name} data has {len(split.tokens)} tokens; one window needs seq_len + 1 = {seq_len + 1}. "
                "Lower data.seq_len, change data.val_fraction or add data"
            )
        elif split.crc32 is None and (problem := _invalid_ids(split.tokens, num_tokens, track)):
            problems.append(f"{name} data {problem}")
    if problems:
        raise UserError(listed(f"cannot train on {corpus.source}:", problems))
    return corpus


def _refuse_table_options(config: DataConfig) -> None:
    """Raise `UserError` for options of tables and datasets where the data are none."""
    names = ("field", "split", "subset", "revision", "max_tokens", "cache_dir")
    given = [name for name in names if getattr(config, name) != DataConfig.model_fields[name].default]
    if given:
        data = "the embedded text is" if config.path is None else f"data.path={config.path!r} is"
        raise UserError(f"{data} neither a table nor a dataset; omit {' and '.join(f'data.{name}' for name in given)}")


def _token_files(path: Path) -> list[Path] | None:
    """[file to split] or [training file, validation file]; None if `path` is text."""
    if path.is_file():
        return [path] if path.suffix in (".npy", ".bin") else None
    for suffix in (".npy", ".bin"):
        pair = [path / f"train{suffix}", path / f"val{suffix}"]
        if all(file.is_file() for file in pair):
            return pair
    return None


def _from_ids(config: DataConfig, files: list[Path], source: str) -> Corpus:
    arrays = [read_ids(file, config.dtype) for file in files]
    if len(arrays) == 1:
        arrays = _cut(arrays[0], config.val_fraction)
    return Corpus(Split(arrays[0], None), Split(arrays[1], None), source, None)


def read_ids(file: Path, dtype: str | None) -> np.ndarray:
    """Ids [N], memory-mapped; pickled arrays are refused."""
    if file.suffix == ".bin" and dtype is None:
        raise UserError(f"{file} has no header that specifies its dtype; set data.dtype, for example uint16")
    try:
        ids = (
            np.load(file, mmap_mode="r", allow_pickle=False)
            if file.suffix == ".npy"
            else np.memmap(file, dtype or "u1", "r")
        )
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read token ids from {file}: {error}") from error
    if ids.dtype.kind not in "iu":
        raise UserError(f"{file} contains {ids.dtype} values; token ids must be integers")
    if ids.ndim != 1:
        raise UserError(f"{file} has shape {list(ids.shape)}; token ids must be one-dimensional: save ids.reshape(-1)")
    return ids


def _from_text(config: DataConfig, path: Path | None, table: Table | None, num_tokens: int, track: Track) -> Corpus:
    tokenizer = load_tokenizer(config.tokenizer)
    if tokenizer.vocab_size > num_tokens:
        raise UserError(
            f"the tokenizer {config.tokenizer!r} has {tokenizer.vocab_size} ids, more than model.num_tokens={num_tokens}; "
            f"set model.num_tokens={tokenizer.vocab_size}"
        )
    end = tokenizer.document_end if config.document_end is None else config.document_end
    if end is not None and end >= num_tokens:
        raise UserError(
            f"the id that ends documents is {end}; model.num_tokens={num_tokens} allows 0 to {num_tokens - 1}"
        )
    if table is not None:
        train, validation, words = cached_splits(table, config, tokenizer, end, track)
        return Corpus(train, validation, f"{table.source}{words}", tokenizer, end)
    if path is None:
        documents, source = embedded_documents(), "the embedded text"
    elif path.is_file():
        documents, source = [file_document(path)], str(path)
    else:
        documents, source = folder_documents(path, config.pattern, track), str(path)
    if len(documents) > 1:
        splits = [_encode(split, tokenizer, end, track) for split in split_documents(documents, config.val_fraction)]
    else:
        halves = _cut(np.frombuffer(documents[0].text, dtype=np.uint8), config.val_fraction)
        splits = [_encode([Document(source, half.tobytes())], tokenizer, None, track) for half in halves]
    return Corpus(splits[0], splits[1], source, tokenizer, end)


def _encode(documents: Sequence[Document], tokenizer: Tokenizer, end: int | None, track: Track) -> Split:
    """All documents concatenated, each followed by the `end` id, which counts as one byte of text."""
    pieces, text_bytes = [], 0
    for document in track(documents, "tokenizing"):
        ids = tokenizer.encode(document.text)
        pieces.append(ids if end is None else np.append(ids, np.asarray(end, dtype=ids.dtype)))
        text_bytes += len(document.text) + (end is not None)
    return Split(np.concatenate(pieces), text_bytes)


def _cut(tokens: np.ndarray, fraction: float) -> list[np.ndarray]:
    """[training, validation]: the last `fraction` is for validation."""
    border = len(tokens) - max(1, round(len(tokens) * fraction))
    return [tokens[:border], tokens[border:]]


def _invalid_ids(tokens: np.ndarray, num_tokens: int, track: Track) -> str | None:
    """What is wrong with the first id out of range; None if all are in range."""
    for start in track(range(0, len(tokens), _BLOCK), "checking ids"):
        block = tokens[start : start + _BLOCK]
        low, high = int(block.min()), int(block.max())
        if low < 0 or high >= num_tokens:
            wrong = int(np.flatnonzero((block < 0) | (block >= num_tokens))[0])
            return (
                f"contains id {int(block[wrong])} at index {start + wrong}; model.num_tokens={num_tokens} allows "
                f"0 to {num_tokens - 1}. Raise model.num_tokens or check data.dtype"
            )
    return None


def _checksum(split: Split) -> int:
    if split.crc32 is not None:
        return split.crc32
    total = 0
    for start in range(0, len(split.tokens), _BLOCK):
        total = zlib.crc32(np.ascontiguousarray(split.tokens[start : start + _BLOCK]).data, total)
    return total


def fingerprint_of(tokens: np.ndarray) -> str:
    """Hash of length, dtype and 64 evenly spaced blocks, so that it is fast for large files."""
    digest = hashlib.sha256(f"{len(tokens)} {tokens.dtype}".encode())
    for start in np.linspace(0, max(0, len(tokens) - 65536), 64, dtype=np.int64):
        digest.update(np.ascontiguousarray(tokens[start : start + 65536]).tobytes())
    return digest.hexdigest()[:16]
