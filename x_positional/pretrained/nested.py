"""Text models nested in multimodal ones: the text config is under a key of `config.json`, the text tensors have a longer
prefix. Only the text model is read, as if it had been published alone.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from x_positional.pretrained.config_json.codecs import Hf
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.files import Tensors


@dataclass(frozen=True, kw_only=True)
class NestedModel:
    """A multimodal model of which the text model is read."""

    model_type: str
    """Of the whole model."""
    architecture: str
    """Of the whole model."""
    family: Family
    """Family of the text model."""
    key: str = "text_config"
    """Key of the text config. A file without it has the keys of all parts side by side."""
    outer_keys: tuple[str, ...] = ("architectures", "tie_word_embeddings", "dtype", "torch_dtype")
    """Keys of the whole model that override those of the text config."""
    prefixes: Mapping[str, str]
    """Pattern of a tensor name's prefix -> prefix in the text model alone; the first match counts."""
    dropped: tuple[str, ...]
    """Patterns of tensors of the other parts."""
    ignored_keys: frozenset[str] = frozenset()
    """Keys of the other parts, in a file with all keys side by side."""

    def text_config(self, hf: Hf) -> dict[str, Any]:
        """`config.json` of the text model alone."""
        side_by_side = {key: value for key, value in hf.items() if key not in self.ignored_keys}
        text = {**(hf.get(self.key) or side_by_side), "model_type": self.family.model_type}
        outer = {key: hf[key] for key in self.outer_keys if hf.get(key) is not None}
        named = [self.family.architecture if n == self.architecture else n for n in hf.get("architectures") or ()]
        return {**text, **outer, "architectures": named}

    def text_tensors(self, tensors: Tensors) -> Tensors:
        """The tensors of the text model, under the names that they have alone."""
        dropped = [re.compile(pattern) for pattern in self.dropped]
        kept = [name for name in tensors.names() if not any(p.search(name) for p in dropped)]
        return _RenamedTensors(tensors, {self._name_alone(name): name for name in kept})

    def _name_alone(self, name: str) -> str:
        for pattern, prefix in self.prefixes.items():
            if match := re.match(pattern, name):
                return prefix + name[match.end() :]
        return name


class _RenamedTensors:
    """Some tensors of a checkpoint under other names."""

    def __init__(self, tensors: Tensors, stored: Mapping[str, str]):
        self.source, self._tensors, self._stored = tensors.source, tensors, dict(stored)

    def names(self) -> set[str]:
        return set(self._stored)

    def shape(self, name: str) -> list[int]:
        return self._tensors.shape(self._stored[name])

    def read(self, name: str) -> Tensor:
        return self._tensors.read(self._stored[name])


def text_model(
    hf: dict[str, Any], tensors: Tensors, nested: Mapping[str, NestedModel]
) -> tuple[dict[str, Any], Tensors]:
    """Config and tensors of the model to read: of its text model if `nested` (by model_type) lists the model."""
    found = nested.get(str(hf.get("model_type")))
    return (hf, tensors) if found is None else (found.text_config(hf), found.text_tensors(tensors))
