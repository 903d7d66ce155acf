"""The tensors of a GGUF file under the names of its family, laid as in the family's own files."""

import re

from torch import Tensor

from x_positional.pretrained.gguf.architectures import UNUSED, Architecture
from x_positional.pretrained.gguf.file import GgufFile


class GgufTensors:
    """Named tensors as `files.Tensors`, in float32. Tensors that are not known keep their names, so that they show."""

    def __init__(self, file: GgufFile, architecture: Architecture, heads: int, kv_heads: int):
        self.source, self._file = file.source, file
        self._interleaved = [_pattern(name) for name in architecture.interleaved]
        self._heads = (heads, kv_heads)
        patterns = [(_pattern(ours), theirs) for ours, theirs in architecture.names.items()]
        self._names = {_renamed(name, patterns): name for name in file.names() if name not in UNUSED}

    def names(self) -> set[str]:
        return set(self._names)

    def shape(self, name: str) -> list[int]:
        return self._file.shape(self._names[name])

    def read(self, name: str) -> Tensor:
        theirs = self._names[name]
        tensor = self._file.read(theirs)
        module = theirs.rpartition(".")[0]
        if any(pattern.fullmatch(module) for pattern in self._interleaved):
            queries = module.endswith("attn_q")
            return halves(tensor, self._heads[0] if queries else self._heads[1])
        return tensor


def halves(rows: Tensor, heads: int) -> Tensor:
    """Rows of a projection, from pairs (0, 1), (2, 3) ... of each head to pairs (0, D/2), (1, D/2 + 1) ...

    llama.cpp turns neighbours, and the published Llama turns halves, so it reorders the rows when a file is written.
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.escape(name).replace(re.escape("{i}"), r"(?P<i>\d+)"))


def _renamed(name: str, patterns: list[tuple[re.Pattern[str], str]]) -> str:
    module, _, leaf = name.rpartition(".")
    for pattern, theirs in patterns:
        if match := pattern.fullmatch(module):
            return theirs.replace("{i}", match.groupdict().get("i") or "") + "." + leaf
    return name
