"""Models inside of larger ones: a text model whose config lies under a key of `config.json`, beside towers that see images,
and whose tensors lie under a longer name. What is read is the inner model, as if it stood alone."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from x_positional.pretrained.config_json.codecs import Hf
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.files import Tensors


@dataclass(frozen=True, kw_only=True)
class Inner:
    """model_type, architecture: of the whole. family: of the model inside. key: where its config lies; a file without it
    has the keys of both side by side. outer: keys of the whole that win over those inside. names: beginnings of names (as
    patterns) -> how they begin where the inner model stands alone, the first that fits. left: patterns of tensors that
    belong to the rest. harmless: keys of the rest, where keys stand side by side."""

    model_type: str
    architecture: str
    family: Family
    key: str = "text_config"
    outer: tuple[str, ...] = ("architectures", "tie_word_embeddings", "dtype", "torch_dtype")
    names: Mapping[str, str]
    left: tuple[str, ...]
    harmless: frozenset[str] = frozenset()

    def config(self, hf: Hf) -> dict[str, Any]:
        """`config.json` of the inner model, as it would be alone."""
        side_by_side = {key: value for key, value in hf.items() if key not in self.harmless}
        inner = {**(hf.get(self.key) or side_by_side), "model_type": self.family.model_type}
        said = {key: hf[key] for key in self.outer if hf.get(key) is not None}
        named = [self.family.architecture if n == self.architecture else n for n in hf.get("architectures") or ()]
        return {**inner, **said, "architectures": named}

    def tensors(self, tensors: Tensors) -> Tensors:
        """The tensors of the inner model, as they would be called alone."""
        left = [re.compile(pattern) for pattern in self.left]
        kept = [name for name in tensors.names() if not any(p.search(name) for p in left)]
        return _Renamed(tensors, {self._alone(name): name for name in kept})

    def _alone(self, name: str) -> str:
        for pattern, beginning in self.names.items():
            if match := re.match(pattern, name):
                return beginning + name[match.end() :]
        return name


class _Renamed:
    """Some tensors of a file under other names."""

    def __init__(self, tensors: Tensors, theirs: Mapping[str, str]):
        self.source, self._tensors, self._theirs = tensors.source, tensors, dict(theirs)

    def names(self) -> set[str]:
        return set(self._theirs)

    def shape(self, name: str) -> list[int]:
        return self._tensors.shape(self._theirs[name])

    def read(self, name: str) -> Tensor:
        return self._tensors.read(self._theirs[name])


def opened(hf: dict[str, Any], tensors: Tensors, inner: Mapping[str, Inner]) -> tuple[dict[str, Any], Tensors]:
    """Config and tensors of the model that is read: those of the inner one where there is one. inner: by model_type."""
    found = inner.get(str(hf.get("model_type")))
    return (hf, tensors) if found is None else (found.config(hf), found.tensors(tensors))
