"""A GGUF file: its metadata and its tensors, dequantised one at a time."""

import math
import mmap
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from x_positional.errors import PretrainedError
from x_positional.pretrained.extras import needed
from x_positional.pretrained.gguf.header import MAGIC, Header, HeaderError, read_header


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF, by its first bytes or at least by its name."""
    if path.suffix == ".gguf":
        return True
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


class GgufFile:
    """Metadata by key and tensors under llama.cpp's names. The file is mapped: a tensor costs memory when it is read.

    Raises PretrainedError where the package `gguf`, which knows the ways of storing numbers, is missing, and where the file
    is damaged, cut short or one part of several.
    """

    def __init__(self, path: Path):
        self.source, self._gguf = str(path), needed("gguf", f"{path} needs")
        self._data = _mapped(path)
        try:
            self._header: Header = read_header(self._data)
        except HeaderError as error:
            raise _damaged(path, str(error)) from error
        tensors = self._header.tensors
        past = [name for name in tensors if tensors[name].begin + self._rows(name) * self._row(name) > len(self._data)]
        if past:
            raise _damaged(path, f"{len(past)} of its {len(tensors)} tensors lie past its end")
        parts = self.get("split.count", 1)
        if parts > 1:
            raise PretrainedError(
                f"{path} cannot be read:",
                [f"it is one of {parts} parts. Join them first: llama-gguf-split --merge {path.name} whole.gguf"],
            )

    def get(self, key: str, default: Any = None) -> Any:
        """What the metadata say under a key: a number, a text, a list."""
        return self._header.metadata.get(key, default)

    def metadata(self) -> list[str]:
        """The keys of the metadata."""
        return list(self._header.metadata)

    def names(self) -> set[str]:
        return set(self._header.tensors)

    def shape(self, name: str) -> list[int]:
        """Slowest axis first, as in torch."""
        return list(self._header.tensors[name].shape)

    def kind(self, name: str) -> str:
        """How a tensor is stored, as `Q4_1`."""
        return self._kind(name).name

    def read(self, name: str) -> Tensor:
        """The tensor in float32."""
        stored, kind = self._header.tensors[name], self._kind(name)
        row, rows = self._row(name), self._rows(name)
        raw = torch.frombuffer(self._data, dtype=torch.uint8, offset=stored.begin, count=row * rows)
        try:
            values = self._gguf.dequantize(raw.numpy().reshape(rows, row), kind)
        except NotImplementedError as error:
            raise PretrainedError(
                f"{self.source} cannot be read:",
                [f"{name} is stored as {kind.name}, which the installed gguf package cannot turn into numbers."],
            ) from error
        return torch.from_numpy(values).reshape(stored.shape)

    def _kind(self, name: str) -> Any:
        stored = self._header.tensors[name].kind
        try:
            return self._gguf.GGMLQuantizationType(stored)
        except ValueError as error:
            raise PretrainedError(
                f"{self.source} cannot be read:",
                [f"{name} is stored in the way number {stored}, which the installed gguf package does not know."],
            ) from error

    def _rows(self, name: str) -> int:
        return math.prod(self._header.tensors[name].shape[:-1])

    def _row(self, name: str) -> int:
        """Bytes of a row."""
        block, size = self._gguf.GGML_QUANT_SIZES[self._kind(name)]
        width = self._header.tensors[name].shape[-1]
        if width % block:
            raise PretrainedError(
                f"{self.source} cannot be read:",
                [f"{name} has rows of {width} numbers, and {self.kind(name)} stores {block} at a time."],
            )
        return width // block * size


def _mapped(path: Path) -> mmap.mmap:
    """The bytes of a file, and a private copy of those that are written to: none are."""
    try:
        with path.open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    except ValueError as error:  # an empty file
        raise _damaged(path, str(error)) from error


def _damaged(path: Path, reason: str) -> PretrainedError:
    return PretrainedError(
        f"{path} cannot be read as GGUF:",
        [f"{reason}. It has {path.stat().st_size:,} bytes: if the download was cut short, fetch it again."],
    )
