"""A GGUF file: its metadata, and its tensors, dequantised one at a time."""

import math
import mmap
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from x_positional.errors import PretrainedError, import_extra
from x_positional.pretrained.folder import regular_file
from x_positional.pretrained.gguf.architectures import UNUSED_TENSORS, Architecture
from x_positional.pretrained.gguf.header import Header, damaged, read_header


class GgufFile:
    """Metadata by key, and tensors under llama.cpp's names. The file is memory-mapped: a tensor is read on request.

    Raises:
        MissingExtra: Without the package `gguf`, which dequantises.
        PretrainedError: If the file is damaged, truncated, or one part of several.
    """

    def __init__(self, path: Path):
        self.source, self._gguf = str(path), import_extra("gguf", f"{path} needs", "pretrained")
        self._data = _mapped(path)
        self._header: Header = read_header(self._data, self.source)
        tensors = self._header.tensors
        size = len(self._data)
        ends = {name: tensors[name].begin + self._rows(name) * self._row_bytes(name) for name in tensors}
        cut = [name for name, end in ends.items() if end > size]
        if cut:
            raise damaged(self.source, size, f"{len(cut)} of its {len(tensors)} tensors are past the end of the file")
        ordered = sorted(tensors, key=lambda name: tensors[name].begin)
        shared = [two for one, two in pairwise(ordered) if ends[one] > tensors[two].begin]
        if shared:  # a small file could describe any amount of memory
            raise damaged(self.source, size, f"{len(shared)} of its {len(tensors)} tensors overlap others")
        parts = self.get("split.count", 1)
        if not isinstance(parts, int) or parts > 1:
            raise PretrainedError(
                f"{path} cannot be read:",
                [f"it is one of {parts} parts. Merge them first: llama-gguf-split --merge {path.name} whole.gguf"],
            )

    def get(self, key: str, default: Any = None) -> Any:
        """The metadata value of a key: a number, a string or a list."""
        return self._header.metadata.get(key, default)

    def metadata(self) -> list[str]:
        """The keys of the metadata."""
        return list(self._header.metadata)

    def names(self) -> set[str]:
        return set(self._header.tensors)

    def shape(self, name: str) -> list[int]:
        """Slowest axis first, as in torch."""
        return list(self._header.tensors[name].shape)

    def storage(self, name: str) -> str:
        """The storage format of a tensor, as `Q4_1`."""
        return self._storage(name).name

    def read(self, name: str) -> Tensor:
        """The tensor in float32."""
        stored, storage = self._header.tensors[name], self._storage(name)
        row, rows = self._row_bytes(name), self._rows(name)
        raw = torch.frombuffer(self._data, dtype=torch.uint8, offset=stored.begin, count=row * rows)
        try:
            values = self._gguf.dequantize(raw.numpy().reshape(rows, row), storage)
        except NotImplementedError as error:
            raise PretrainedError(
                f"{self.source} cannot be read:",
                [f"{name} is stored as {storage.name}, which the installed gguf package cannot dequantise."],
            ) from error
        return torch.from_numpy(values).reshape(stored.shape)

    def _storage(self, name: str) -> Any:
        storage = self._header.tensors[name].storage
        try:
            return self._gguf.GGMLQuantizationType(storage)
        except ValueError as error:
            raise PretrainedError(
                f"{self.source} cannot be read:",
                [f"{name} has storage format {storage}, which is unknown to the installed gguf package."],
            ) from error

    def _rows(self, name: str) -> int:
        return math.prod(self._header.tensors[name].shape[:-1])

    def _row_bytes(self, name: str) -> int:
        block, size = self._gguf.GGML_QUANT_SIZES[self._storage(name)]
        width = self._header.tensors[name].shape[-1]
        if width % block:
            raise PretrainedError(
                f"{self.source} cannot be read:",
                [f"{name} has rows of {width} numbers; {self.storage(name)} needs a multiple of {block}."],
            )
        return width // block * size


def _mapped(path: Path) -> mmap.mmap:
    """The bytes of a file. Copy-on-write, because torch warns about read-only buffers; nothing is written."""
    try:
        with regular_file(path).open("rb") as stream:
            return mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY)
    except (ValueError, OSError) as error:  # an empty file, or no permission
        raise damaged(str(path), path.stat().st_size, str(error)) from error


class GgufTensors:
    """The tensors of a file under the names and in the layout of its family, in float32.

    Unknown tensors keep their names, so that loading reports them.
    """

    def __init__(self, file: GgufFile, architecture: Architecture, heads: int, kv_heads: int):
        self.source, self._file = file.source, file
        self._interleaved = [_pattern(name) for name in architecture.interleaved]
        self._heads = (heads, kv_heads)
        patterns = [(_pattern(gguf), published) for gguf, published in architecture.names.items()]
        self._stored = {_published_name(name, patterns): name for name in file.names() if name not in UNUSED_TENSORS}

    def names(self) -> set[str]:
        return set(self._stored)

    def shape(self, name: str) -> list[int]:
        return self._file.shape(self._stored[name])

    def dtype(self, name: str) -> torch.dtype:
        return torch.float32

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        """A tensor, or some of its rows; it is dequantised as a whole."""
        whole = self._read(name)
        return whole if rows is None else whole[rows].clone()

    def _read(self, name: str) -> Tensor:
        stored = self._stored[name]
        tensor = self._file.read(stored)
        module = stored.rpartition(".")[0]
        if any(pattern.fullmatch(module) for pattern in self._interleaved):
            heads = self._heads[0 if module.endswith("attn_q") else 1]
            if not isinstance(heads, int) or heads < 1 or tensor.shape[0] % (2 * heads):
                raise PretrainedError(
                    f"{self.source} cannot be read:",
                    [f"{stored} has {tensor.shape[0]} rows, which {heads} heads of an even width do not fill."],
                )
            return deinterleave(tensor, heads)
        return tensor


def deinterleave(rows: Tensor, heads: int) -> Tensor:
    """Reorder the rows of each head from pairs (0, 1), (2, 3) ... to pairs (0, D/2), (1, D/2 + 1) ...

    llama.cpp rotates adjacent channels, the published Llama rotates halves; llama.cpp's converter reorders the rows.
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(re.escape("{i}"), r"(?P<i>\d+)"))


def _published_name(name: str, patterns: list[tuple[re.Pattern[str], str]]) -> str:
    module, _, leaf = name.rpartition(".")
    for pattern, published in patterns:
        if match := pattern.fullmatch(module):
            return published.replace("{i}", match.groupdict().get("i") or "") + "." + leaf
    return name
