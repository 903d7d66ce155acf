"""Models nested in multimodal ones: their config is under a key of `config.json`, their tensors have a longer prefix. One of them
is read, as if it had been published alone: the text model, or a tower that the caller names.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from x_positional.errors import PretrainedError
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
    others: tuple[Family, ...] = ()
    """Other families that the text model may belong to, by the `model_type` of its config."""
    key: str = "text_config"
    """Key of the text config. A file without it has the keys of all parts side by side."""
    replacing_key: str = ""
    """Older key of the same config, which replaces it as a whole."""
    outer_keys: tuple[str, ...] = ("architectures", "tie_word_embeddings", "dtype", "torch_dtype")
    """Keys of the whole model that override those of the text config."""
    outer_defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of those keys in a file that omits them."""
    prefixes: Mapping[str, str]
    """Pattern of a tensor name's prefix -> prefix in the text model alone; the first match counts."""
    dropped: tuple[str, ...]
    """Patterns of tensors of the other parts."""
    ignored_keys: frozenset[str] = frozenset()
    """Keys of the other parts."""

    def text_family(self, hf: Hf) -> Family:
        """The family of the text model of this config."""
        named = (hf.get(self.key) or {}).get("model_type")
        return next((family for family in self.others if family.model_type == named), self.family)

    def text_config(self, hf: Hf) -> dict[str, Any]:
        """`config.json` of the text model alone. It includes unknown keys of the whole model, so that they are reported."""
        outside, family = self._outside(hf), self.text_family(hf)
        if inner := hf.get(self.replacing_key) or hf.get(self.key):
            unread = {key: value for key, value in outside.items() if key not in family.keys}
            outside = {**unread, **inner}
        outer = {key: hf[key] for key in self.outer_keys if hf.get(key) is not None}
        named = [family.architecture if n == self.architecture else n for n in hf.get("architectures") or ()]
        return {**outside, "model_type": family.model_type, **self.outer_defaults, **outer, "architectures": named}

    def outer_config(self, hf: Hf) -> dict[str, Any]:
        """Keys of the text model that are set beside its config."""
        if not hf.get(self.key):
            return {}
        kept = {key: value for key, value in self._outside(hf).items() if key not in self.outer_keys}
        read = self.text_family(hf).keys
        return {key: value for key, value in kept.items() if key in read and value is not None}

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


def chosen_tower(hf: Hf, towers: Mapping[str, Sequence[NestedModel]], chosen: Any) -> NestedModel | None:
    """The tower to read; None for a model without towers. Raises PretrainedError where none, or an unknown one, is chosen.

    Args:
        hf: The config of the whole model.
        towers: By its model_type.
        chosen: The model_type of the tower.
    """
    found = towers.get(str(hf.get("model_type")))
    if found is None:
        return None
    tower = next((one for one in found if one.family.model_type == chosen), None)
    if tower is None:
        names = " or ".join(f"model_type={one.family.model_type!r}" for one in found)
        raise PretrainedError(
            f"a {hf['model_type']} model has several towers, and one is read at a time:",
            [f"pass {names}" + ("." if chosen is None else f"; got {chosen!r}.")],
        )
    return tower


def inner_model(
    hf: dict[str, Any], tensors: Tensors, found: NestedModel | None
) -> tuple[dict[str, Any], Tensors, dict[str, Any]]:
    """Config and tensors of the model to read, and keys beside the config. found: the part that is read; None is all."""
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
