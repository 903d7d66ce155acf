"""Text models nested in multimodal ones: the text config is under a key of `config.json`, the text tensors have a longer
prefix. Only the text model is read, as if it had been published alone.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
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
    """Keys of the other parts."""

    def text_config(self, hf: Hf) -> dict[str, Any]:
        """`config.json` of the text model alone. It includes unknown keys of the whole model, so that they are reported."""
        outside = self._outside(hf)
        if hf.get(self.key):
            unread = {key: value for key, value in outside.items() if key not in self.family.keys}
            outside = {**unread, **hf[self.key]}
        outer = {key: hf[key] for key in self.outer_keys if hf.get(key) is not None}
        named = [self.family.architecture if n == self.architecture else n for n in hf.get("architectures") or ()]
        return {**outside, "model_type": self.family.model_type, **outer, "architectures": named}

    def outer_config(self, hf: Hf) -> dict[str, Any]:
        """Keys of the text model that are set beside its config."""
        if not hf.get(self.key):
            return {}
        kept = {key: value for key, value in self._outside(hf).items() if key not in self.outer_keys}
        return {key: value for key, value in kept.items() if key in self.family.keys and value is not None}

    def _outside(self, hf: Hf) -> dict[str, Any]:
        return {key: value for key, value in hf.items() if key not in self.ignored_keys and key != self.key}

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

    def dtype(self, name: str) -> torch.dtype:
        return self._tensors.dtype(self._stored[name])

    def read(self, name: str, rows: slice | None = None) -> Tensor:
        return self._tensors.read(self._stored[name], rows)


def text_model(
    hf: dict[str, Any], tensors: Tensors, nested: Mapping[str, NestedModel]
) -> tuple[dict[str, Any], Tensors, dict[str, Any]]:
    """Config and tensors of the model to read, and keys beside the config: of its text model if `nested` (by model_type)
    lists the model."""
    found = nested.get(str(hf.get("model_type")))
    if found is None:
        return hf, tensors, {}
    return found.text_config(hf), found.text_tensors(tensors), found.outer_config(hf)


def contradictions(outer: Hf, hf: Hf, fields_of: Callable[[Hf], Any]) -> list[str]:
    """Problems of keys beside the text config that would change the model.

    Args:
        outer: These keys.
        hf: The text config.
        fields_of: What a config describes, in a form that can be compared.
    """
    if not outer:
        return []
    inside = fields_of(hf)
    if fields_of({**hf, **outer}) == inside:
        return []
    named = [key for key, value in outer.items() if fields_of({**hf, key: value}) != inside] or list(outer)
    return [
        f"{key}={outer[key]!r} contradicts the text config, which {_sets(hf, key)}: versions of transformers differ in which "
        "one they use. Keep one of them."
        for key in named
    ]


def _sets(hf: Hf, key: str) -> str:
    return f"sets {hf[key]!r}" if key in hf else "does not set it"
