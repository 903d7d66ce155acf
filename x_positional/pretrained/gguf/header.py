"""The header of a GGUF file, versions 2 and 3: metadata, and where each tensor is stored.

The `gguf` package has a reader too (`GGUFReader`), but it makes numpy views of every single value: a vocabulary of 150,000
tokens with its merges takes it 23 s, this module 1 s. It also fails with an IndexError on a truncated file; here every
problem is a PretrainedError. Dequantising is left to the package.

A file consists of: magic, version, two counts, metadata, tensor table, and from the next aligned byte on, tensor data.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from x_positional.errors import PretrainedError
from x_positional.pretrained.folder import regular_file

MAGIC, VERSIONS = b"GGUF", (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Metadata types of a single number -> their format character in `struct`."""
FLOAT32, STRING, ARRAY = 6, 8, 9
MAX_AXES, MAX_ALIGNMENT = 4, 1 << 20
"""Of a tensor; llama.cpp has no more axes."""
MAX_NESTED = 4
"""Arrays of arrays."""


@dataclass(frozen=True)
class StoredTensor:
    """An entry of the tensor table."""

    storage: int
    """Number of the storage format, a `gguf.GGMLQuantizationType`."""
    shape: tuple[int, ...]
    """Slowest axis first, as in torch."""
    begin: int
    """Offset of its first byte in the file."""


@dataclass(frozen=True)
class Header:
    """Metadata by key, and tensors by name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, StoredTensor]


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF, by its suffix or its first bytes."""
    if path.suffix == ".gguf":
        return True
    with regular_file(path).open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


def damaged(source: str, size: int, reason: str) -> PretrainedError:
    """The error for a file of `size` bytes that cannot be read."""
    return PretrainedError(
        f"{source} cannot be read as GGUF:",
        [f"{reason}. The file has {size:,} bytes; if the download was interrupted, download it again."],
    )


def read_header(data: Any, source: str) -> Header:
    """The header of the bytes of a file. Raises PretrainedError."""
    try:
        return _read(data, source)
    except (struct.error, UnicodeDecodeError, KeyError, OverflowError, RecursionError, MemoryError) as error:
        raise damaged(source, len(data), f"the header is truncated or corrupt ({error})") from error


def _read(data: Any, source: str) -> Header:
    if data[:4] != MAGIC:
        raise damaged(source, len(data), f"it does not begin with {MAGIC!r}")
    reader = _Reader(data, 4, source)
    version = reader.number("I")
    if version not in VERSIONS:
        order = " (or big-endian)" if version & 0xFFFF == 0 else ""
        supported = " and ".join(map(str, VERSIONS))
        raise damaged(source, len(data), f"unsupported version {version}{order}; supported: {supported}")
    tensors, entries = reader.number("Q"), reader.number("Q")
    metadata = {}
    for _ in range(entries):
        key = reader.text()
        if key in metadata:
            raise damaged(source, len(data), f"the key {key!r} is set twice")
        metadata[key] = reader.value(reader.number("I"))
    table: dict[str, tuple[Any, ...]] = {}
    for _ in range(tensors):
        name = reader.text()
        shape = tuple(reversed(reader.numbers("Q", reader.number("I"))))
        if name in table or not 1 <= len(shape) <= MAX_AXES or 0 in shape:
            raise damaged(
                source, len(data), f"tensor {name!r} is listed twice, or its shape {list(shape)} is impossible"
            )
        table[name] = (shape, reader.number("I"), reader.number("Q"))
    step = metadata.get("general.alignment", 32)
    if not isinstance(step, int) or not 0 < step <= MAX_ALIGNMENT:
        raise damaged(source, len(data), f"general.alignment={step!r} is impossible")
    begin = -(-reader.position // step) * step
    return Header(
        metadata, {name: StoredTensor(kind, shape, begin + offset) for name, (shape, kind, offset) in table.items()}
    )


class _Reader:
    """Reads consecutive values. position: of the next byte."""

    def __init__(self, data: Any, position: int, source: str):
        self.data, self.position, self.source = data, position, source

    def number(self, letter: str) -> Any:
        return self.numbers(letter, 1)[0]

    def numbers(self, letter: str, count: int) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{count}{letter}", self.data, self.position)
        self.position += count * struct.calcsize(letter)
        return found

    def text(self) -> str:
        size = self.number("Q")
        raw = self.data[self.position : self.position + size]
        if len(raw) != size:
            raise damaged(self.source, len(self.data), "the header is truncated")
        self.position += size
        return raw.decode("utf-8")

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            number = self.number(NUMBERS[kind])
            return shortest_float(number) if kind == FLOAT32 else number
        inner, count = self.number("I"), self.number("Q")
        if depth == MAX_NESTED:
            raise damaged(self.source, len(self.data), f"arrays are nested more than {MAX_NESTED} levels deep")
        if inner in NUMBERS:
            return list(self.numbers(NUMBERS[inner], count))
        return [self.value(inner, depth + 1) for _ in range(count)]


def shortest_float(value: float) -> float:
    """The shortest decimal number that rounds to the same float32: 1e-05, not 9.999999747378752e-06."""
    shorts = (float(f"{value:.{digits}g}") for digits in range(6, 10))
    return next((short for short in shorts if struct.pack("f", short) == struct.pack("f", value)), value)
