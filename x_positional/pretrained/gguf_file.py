"""A GGUF file: its metadata and its tensors, dequantised one at a time."""

import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from x_positional.pretrained.errors import PretrainedError
from x_positional.pretrained.extras import needed

MAGIC = b"GGUF"


def is_gguf(path: Path) -> bool:
    """Whether a file is GGUF, by its first bytes or at least by its name."""
    if path.suffix == ".gguf":
        return True
    with path.open("rb") as stream:
        return stream.read(len(MAGIC)) == MAGIC


class GgufFile:
    """Metadata by key and tensors under llama.cpp's names. The file is mapped: a tensor costs memory when it is read.

    Raises PretrainedError where the package `gguf` is missing or the file is damaged, cut short or one part of several.
    """

    def __init__(self, path: Path):
        self.source = str(path)
        self._reader = _opened(path)
        self._tensors = {tensor.name: tensor for tensor in self._reader.tensors}
        parts = self.get("split.count", 1)
        if parts > 1:
            raise PretrainedError(
                f"{path} cannot be read:",
                [f"it is one of {parts} parts. Join them first: llama-gguf-split --merge {path.name} whole.gguf"],
            )

    def get(self, key: str, default: Any = None) -> Any:
        """What the metadata say under a key: a number, a text, a list. Numbers of 32 bits as they were written."""
        field = self._reader.fields.get(key)
        if field is None:
            return default
        value = field.contents()
        return _as_written(value) if isinstance(value, float) else value

    def metadata(self) -> list[str]:
        """The keys of the metadata."""
        return [key for key in self._reader.fields if not key.startswith("GGUF.")]

    def names(self) -> set[str]:
        return set(self._tensors)

    def shape(self, name: str) -> list[int]:
        """Slowest axis first, as in torch."""
        return [int(size) for size in reversed(self._tensors[name].shape)]

    def kind(self, name: str) -> str:
        """How a tensor is stored, as `Q4_1`."""
        return self._tensors[name].tensor_type.name

    def read(self, name: str) -> Tensor:
        """The tensor in float32."""
        from gguf import dequantize

        tensor = self._tensors[name]
        try:
            values = dequantize(tensor.data, tensor.tensor_type)
        except NotImplementedError as error:
            raise PretrainedError(
                f"{self.source} cannot be read:",
                [f"{name} is stored as {self.kind(name)}, which the installed gguf package cannot turn into numbers."],
            ) from error
        own = values if values.flags.writeable else values.copy()  # plain numbers are the mapped file itself
        return torch.from_numpy(own).float().reshape(self.shape(name))


def _opened(path: Path) -> Any:
    gguf = needed("gguf", f"{path} needs")
    try:
        return gguf.GGUFReader(path)
    except (ValueError, IndexError, KeyError, OSError, OverflowError, TypeError) as error:
        raise PretrainedError(
            f"{path} cannot be read as GGUF:",
            [f"{error}. It has {path.stat().st_size:,} bytes: if the download was cut short, fetch it again."],
        ) from error


def _as_written(value: float) -> float:
    """The shortest number that rounds to the same 32 bits: 1e-05, not 9.999999747378752e-06."""
    stored = struct.pack("f", value) if abs(value) < 3e38 else b""
    for digits in range(6, 10):
        short = float(f"{value:.{digits}g}")
        if stored and struct.unpack("f", stored)[0] == value and struct.pack("f", short) == stored:
            return short
    return value
