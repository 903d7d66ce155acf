"""The beginning of a GGUF file: what it says of the model, and where its tensors lie. Version 2 and 3.

A file is: magic, version, two counts, the metadata, the table of tensors, and from the next aligned byte their data.
"""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MAGIC, VERSIONS = b"GGUF", (2, 3)
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Types of metadata that are one number -> their letter in `struct`."""
FLOAT32, STRING, ARRAY = 6, 8, 9


class HeaderError(ValueError):
    """A file that is not what it should be, or is cut short."""


@dataclass(frozen=True)
class Stored:
    """A tensor in the file. kind: the number of its storage. shape: slowest axis first. begin: its first byte."""

    kind: int
    shape: tuple[int, ...]
    begin: int


@dataclass(frozen=True)
class Header:
    """metadata and tensors by name."""

    metadata: Mapping[str, Any]
    tensors: Mapping[str, Stored]


def read_header(data: Any) -> Header:
    """The header of a file's bytes. Raises HeaderError."""
    try:
        return _read(data)
    except (struct.error, UnicodeDecodeError, KeyError, OverflowError, RecursionError) as error:
        raise HeaderError(f"it ends, or makes no sense, inside of its header ({error})") from error


def _read(data: Any) -> Header:
    if data[:4] != MAGIC:
        raise HeaderError("it does not begin as GGUF files do")
    reader = _Reader(data, 4)
    version = reader.number("I")
    if version not in VERSIONS:
        order = " (or its bytes are in the other order)" if version & 0xFFFF == 0 else ""
        raise HeaderError(f"it is of version {version}{order}, and what is read is {' and '.join(map(str, VERSIONS))}")
    tensors, entries = reader.number("Q"), reader.number("Q")
    metadata = {}
    for _ in range(entries):
        key = reader.text()
        metadata[key] = reader.value(reader.number("I"))
    table = []
    for _ in range(tensors):
        name = reader.text()
        shape = tuple(reversed(reader.numbers("Q", reader.number("I"))))
        table.append((name, shape, reader.number("I"), reader.number("Q")))
    step = metadata.get("general.alignment", 32)
    begin = -(-reader.at // step) * step
    return Header(metadata, {name: Stored(kind, shape, begin + offset) for name, shape, kind, offset in table})


class _Reader:
    """Values one after the other. at: the next byte."""

    def __init__(self, data: Any, at: int):
        self.data, self.at = data, at

    def number(self, letter: str) -> Any:
        return self.numbers(letter, 1)[0]

    def numbers(self, letter: str, count: int) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{count}{letter}", self.data, self.at)
        self.at += count * struct.calcsize(letter)
        return found

    def text(self) -> str:
        size = self.number("Q")
        raw = self.data[self.at : self.at + size]
        if len(raw) != size:
            raise HeaderError("it ends inside of its header")
        self.at += size
        return raw.decode("utf-8")

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.text()
        if kind != ARRAY:
            number = self.number(NUMBERS[kind])
            return as_written(number) if kind == FLOAT32 else number
        inner, count = self.number("I"), self.number("Q")
        if inner in NUMBERS:
            return list(self.numbers(NUMBERS[inner], count))
        return [self.value(inner) for _ in range(count)]


def as_written(value: float) -> float:
    """The shortest number that rounds to the same 32 bits: 1e-05, not 9.999999747378752e-06."""
    shorts = (float(f"{value:.{digits}g}") for digits in range(6, 10))
    return next((short for short in shorts if struct.pack("f", short) == struct.pack("f", value)), value)
