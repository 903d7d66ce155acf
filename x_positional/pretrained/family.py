"""A family of published models as data: what its `config.json` says, and what its tensors are called."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from x_positional.errors import RopeError
from x_positional.pretrained.config_json.canonical import canonical, differences
from x_positional.pretrained.config_json.codecs import Codec, Fields, Hf, Null
from x_positional.pretrained.config_json.ignored_keys import HARMLESS
from x_positional.pretrained.tensors.layouts import Layout, Same, Sizes

LEAVES = {"weight": "weight", "gain": "weight", "table": "weight", "bias": "bias", "shift": "bias"}
"""Our name of a parameter inside a module -> theirs."""
Kind = Literal["decoder", "encoder", "seq2seq", "vision"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """model_type, architecture: as in `config.json`. fields: what its keys say, later ones over earlier ones.
    names: our module or parameter -> theirs, `{i}` is the layer. base: the prefix that a file of the body alone lacks.
    ignored: patterns of tensors that hold nothing to learn. harmless: keys that change no logit, beside `HARMLESS`.
    defaults: what keys mean that a file leaves out (null is not left out). aliases: other names of keys -> the name read
    here, over which they win. body: the architecture of a file of the body alone. copies: tensors that some files hold
    twice -> the first of them. older: (pattern, now) of names that older files have. optional: fields that hold where a
    tensor is there. unsaid: fields that tensors decide alone, where other families have a key."""

    model_type: str
    architecture: str
    fields: tuple[Codec, ...]
    names: Mapping[str, str | Layout]
    kind: Kind = "decoder"
    base: str = "model."
    ignored: tuple[str, ...] = ()
    harmless: frozenset[str] = frozenset()
    body: str = ""
    copies: Mapping[str, str] = field(default_factory=dict)
    older: tuple[tuple[str, str], ...] = ()
    optional: Mapping[str, str] = field(default_factory=dict)
    unsaid: tuple[str, ...] = ()
    defaults: Mapping[str, Any] = field(default_factory=dict)
    aliases: Mapping[str, str] = field(default_factory=dict)

    def like(
        self,
        model_type: str,
        architecture: str,
        fields: Iterable[Codec] = (),
        names: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> "Family":
        """Another family that differs in this. A codec replaces those that set one of its fields; a name of None is gone;
        defaults are added."""
        fields = tuple(fields)
        said = {path for codec in fields for path in codec.said}
        kept = tuple(codec for codec in self.fields if not said & set(codec.said))
        merged = {ours: theirs for ours, theirs in {**self.names, **(names or {})}.items() if theirs is not None}
        return replace(
            self,
            model_type=model_type,
            architecture=architecture,
            fields=kept + fields,
            names=merged,
            defaults={**self.defaults, **(defaults or {})},
            **changes,
        )

    @property
    def keys(self) -> set[str]:
        """The keys of `config.json` that are read."""
        return {key for codec in self.fields for key in codec.keys} | set(self.aliases)

    def renamed(self, hf: Hf) -> Hf:
        """The same with keys under the names that are read here."""
        other = {self.aliases[key]: value for key, value in hf.items() if key in self.aliases and value is not None}
        return {key: value for key, value in hf.items() if key not in self.aliases} | other

    def read(self, hf: Hf) -> tuple[Fields, list[str]]:
        """Our fields by path, and what is wrong with theirs."""
        hf = {**self.defaults, **self.renamed(hf)}
        fields: Fields = {}
        problems: list[str] = []
        for codec in self.fields:
            try:
                fields |= codec.read(hf)
            except RopeError as error:
                problems += error.problems
            except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
                problems.append(f"{error.args[0]} is missing." if isinstance(error, KeyError) else str(error))
        return fields, problems

    def unknown(self, hf: Hf) -> list[str]:
        """Keys that nothing here reads: they may change what the model computes."""
        return sorted(
            key for key, value in hf.items() if value is not None and key not in self.keys | HARMLESS | self.harmless
        )

    def write(self, fields: Fields) -> dict[str, Any]:
        """`config.json` of canonical fields, as far as its keys can say them. Raises ValueError where one cannot."""
        out: dict[str, Any] = {"architectures": [self.architecture], "model_type": self.model_type}
        for codec in self.fields:
            out |= {key: value for key, value in codec.write(fields).items() if value is not None}
        return {key: None if isinstance(value, Null) else value for key, value in out.items()}

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], str, Layout]]:
        found = []
        for ours, theirs in self.names.items():
            pattern = re.escape(ours).replace(re.escape("{i}"), r"(?P<i>\d+)")
            layout = Same(theirs) if isinstance(theirs, str) else theirs
            found.append((re.compile(pattern), ours, layout))
        return found

    def layout_of(self, parameter: str) -> "Place | None":
        """Where a parameter of ours lies; None where the family has no place for it."""
        short = parameter.replace("attn_layers.", "", 1)
        module, _, leaf = short.rpartition(".")
        for pattern, _, layout in self._patterns:
            if match := pattern.fullmatch(short):
                return Place(layout, match.groupdict().get("i"), "")
        for pattern, _, layout in self._patterns:
            if leaf in LEAVES and (match := pattern.fullmatch(module)):
                return Place(layout, match.groupdict().get("i"), "." + LEAVES[leaf])
        return None


@dataclass(frozen=True)
class Place:
    """A layout at a layer, and the end of the names of the tensors in it."""

    layout: Layout
    layer: str | None
    leaf: str

    def names(self, sizes: Sizes) -> list[str]:
        """Their tensors."""
        filled = [name if self.layer is None else name.replace("{i}", self.layer) for name in self.layout.names(sizes)]
        return [name + self.leaf for name in filled]


__all__ = ["Family", "Place", "canonical", "differences"]
