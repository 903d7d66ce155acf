"""Token ids of a table or dataset, encoded once and kept in files that are mapped into memory.

So a corpus larger than memory trains like one that fits: windows are shuffled over all of it, exact at every step and for any
number of processes. The first process that needs the ids writes them while the others wait.
"""

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from x_positional.errors import UserError, import_extra
from x_positional.pretrained.commit import flush_file, flush_folder
from x_positional.progress import Track
from x_positional.training.config import DataConfig
from x_positional.training.data.documents import unit_hash
from x_positional.training.data.tables import Rows, Table, choose_splits, texts
from x_positional.training.data.tokenizer import Tokenizer

META = "meta.json"
PARTS = ("train", "val")
FORMAT = 1
_TEXTS, _CHARACTERS = 1024, 1 << 22
"""Texts that are encoded at a time, and their characters: whichever is reached first."""


@dataclass(frozen=True)
class Split:
    """The training or the validation part of a corpus."""

    tokens: np.ndarray
    """Ids [N]."""
    text_bytes: int | None
    """Size of the text that the ids encode; None for token ids without text."""
    crc32: int | None = None
    """CRC-32 of all ids, where it is known."""

    @property
    def bytes_per_token(self) -> float | None:
        """None for token ids without text."""
        return None if self.text_bytes is None else self.text_bytes / len(self.tokens)


def cached_splits(
    table: Table, config: DataConfig, tokenizer: Tokenizer, end: int | None, track: Track
) -> tuple[Split, Split, str]:
    """(training, validation, what was read in words): from the cache, or encoded now and written to it.

    Args:
        table: The rows.
        config: Field, splits and cache folder.
        tokenizer: Encodes the texts.
        end: Id that ends each text; None for none.
        track: Shows progress.

    Raises:
        UserError: The rows cannot be read, have no text, or the cache cannot be written.
    """
    root = cache_folder(config)
    folder = root / _key(table, config, tokenizer, end)
    meta = _read_meta(folder)
    if meta is None:
        filelock = import_extra("filelock", "training on a table or dataset needs", "train")
        with _write_failures(root):
            root.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(folder.with_suffix(".lock")):
                meta = _read_meta(folder) or _build(folder, table, config, tokenizer, end, track)
    train, validation = (_map(folder, name, meta) for name in PARTS)
    return train, validation, meta["words"]


def cache_folder(config: DataConfig) -> Path:
    """`data.cache_dir`, or a folder in the cache of the user."""
    if config.cache_dir is not None:
        return Path(config.cache_dir).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "x_positional" / "tokens"


def _key(table: Table, config: DataConfig, tokenizer: Tokenizer, end: int | None) -> str:
    """A hash of everything that decides the ids."""
    described = {
        "format": FORMAT,
        "rows": table.identity,
        "tokenizer": tokenizer.name if tokenizer.file is None else _digest(tokenizer.file.read_bytes()),
        "end": end,
        **{name: getattr(config, name) for name in ("field", "split", "val_fraction", "max_tokens")},
    }
    return _digest(json.dumps(described).encode())


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _read_meta(folder: Path) -> dict[str, Any] | None:
    """The description of cached ids; None where they are missing or incomplete."""
    try:
        meta = json.loads((folder / META).read_bytes())
        sizes = [(folder / f"{name}.bin").stat().st_size for name in PARTS]
        width = np.dtype(meta["dtype"]).itemsize
        return meta if sizes == [meta[name]["tokens"] * width for name in PARTS] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _map(folder: Path, name: str, meta: dict[str, Any]) -> Split:
    count, dtype = meta[name]["tokens"], np.dtype(meta["dtype"])
    tokens = np.memmap(folder / f"{name}.bin", dtype, "r") if count else np.empty(0, dtype)  # an empty file has no map
    return Split(tokens, meta[name]["text_bytes"], meta[name]["crc32"])


def _build(
    folder: Path, table: Table, config: DataConfig, tokenizer: Tokenizer, end: int | None, track: Track
) -> dict[str, Any]:
    """Encode all rows into `folder`, which is complete or absent afterwards; returns its description."""
    rows, name, held_out, held_out_name = choose_splits(table.open(config.field), config)
    temporary = folder.with_suffix(".tmp")
    for left in (temporary, folder):
        shutil.rmtree(left, ignore_errors=True)
    temporary.mkdir()
    dtype = np.min_scalar_type(max(tokenizer.vocab_size - 1, end or 0))
    try:
        with ExitStack() as stack:
            files = [stack.enter_context((temporary / f"{part}.bin").open("wb")) for part in PARTS]
            train, val = (_Writer(file, dtype, end) for file in files)
            encoder = _Encoder(config, tokenizer, track)
            if held_out is None:
                encoder.run(rows, lambda text: val if unit_hash(text) < config.val_fraction else train, train)
            else:
                encoder.run(rows, lambda text: train, train)
                encoder.run(held_out, lambda text: val, None)
            meta = {"dtype": str(dtype), "train": train.finish(), "val": val.finish()}
        words = f" (split {name})" if name else ""
        words = f" (splits {name} and {held_out_name})" if held_out_name else words
        words += f", {encoder.skipped:,} rows without text skipped" if encoder.skipped else ""
        meta["words"] = words
        (temporary / META).write_text(json.dumps(meta), encoding="utf-8")
        flush_file(temporary / META)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs its space
        raise
    flush_folder(folder.parent)
    return meta


class _Writer:
    """Appends the ids of texts to a file, each followed by `end`, which counts as one byte of text."""

    def __init__(self, file: BinaryIO, dtype: np.dtype, end: int | None) -> None:
        self._file, self._dtype = file, dtype
        self._end = np.asarray([] if end is None else [end], dtype)
        self.tokens, self._bytes, self._crc = 0, 0, 0

    def add(self, text: str, ids: np.ndarray) -> None:
        data = np.concatenate([ids.astype(self._dtype, copy=False), self._end]).tobytes()
        self._file.write(data)
        self._crc = zlib.crc32(data, self._crc)
        self.tokens += len(ids) + len(self._end)
        self._bytes += len(text.encode("utf-8", "replace")) + len(self._end)

    def finish(self) -> dict[str, int]:
        """Flush to disk; returns what was written."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return {"tokens": self.tokens, "text_bytes": self._bytes, "crc32": self._crc}


class _Encoder:
    """Encodes the texts of rows in batches, which a `tokenizer.json` does in several threads."""

    def __init__(self, config: DataConfig, tokenizer: Tokenizer, track: Track) -> None:
        self._config, self._tokenizer, self._track = config, tokenizer, track
        self.skipped = 0

    def run(self, rows: Rows, place: Callable[[str], _Writer], limited: _Writer | None) -> None:
        """Write each text where `place` puts it, until `limited` has `data.max_tokens` tokens."""
        most = self._config.max_tokens
        for batch in self._batches(rows):
            for text, ids in zip(batch, self._tokenizer.encode_batch(batch), strict=True):
                if limited is not None and most is not None and limited.tokens >= most:
                    return
                place(text).add(text, ids)

    def _batches(self, rows: Rows) -> Iterator[list[str]]:
        batch, size = [], 0
        for text in texts(self._track(rows, "tokenizing"), self._config):
            if text is None:
                self.skipped += 1
                continue
            batch.append(text)
            size += len(text)
            if len(batch) == _TEXTS or size >= _CHARACTERS:
                yield batch
                batch, size = [], 0
        yield batch


@contextmanager
def _write_failures(root: Path) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except (OSError, NotImplementedError) as error:  # filelock raises the latter on file systems without locks
        reason = getattr(error, "strerror", None) or str(error)
        raise UserError(
            f"cannot write token ids to {root}: {reason}; free space or choose another folder with data.cache_dir"
        ) from error
