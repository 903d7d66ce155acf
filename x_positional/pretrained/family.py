"""A family of published models as data: its codecs of `config.json`, and the names of its tensors."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

from x_positional.errors import RopeError
from x_positional.pretrained.config_json.causal import KEY as CAUSAL_KEY
from x_positional.pretrained.config_json.causal import bidirectional_windows, direction_problems
from x_positional.pretrained.config_json.codecs import Codec, Fields, Hf, unwrapped
from x_positional.pretrained.config_json.ignored_keys import IGNORED_KEYS
from x_positional.pretrained.config_json.keys import REFUSED_KEYS
from x_positional.pretrained.config_json.nested_sides import NestedSide
from x_positional.pretrained.tensors.layouts import Layout, Same, Sizes

LEAVES = {"weight": "weight", "gain": "weight", "table": "weight", "bias": "bias", "shift": "bias"}
"""Parameter of an x_positional module -> its name in published models."""
Kind = Literal["decoder", "encoder", "seq2seq", "vision"]


@dataclass(frozen=True, kw_only=True)
class Family:
    """How to read and write the models of one `model_type`."""

    model_type: str
    """As in `config.json`."""
    architecture: str
    """The class with a head, as in `config.json`; empty where transformers has none."""
    codecs: tuple[Codec, ...]
    """Mappings of keys to fields; later ones override earlier ones."""
    names: Mapping[str, str | Layout]
    """Module or parameter of x_positional -> published name or layout; `{i}` is the layer."""
    kind: Kind = "decoder"
    prefix: str = "model."
    """Prefix of tensor names that a checkpoint without a head omits."""
    ignored_tensors: tuple[str, ...] = ()
    """Patterns of tensors that are not parameters."""
    ignored_keys: frozenset[str] = frozenset()
    """Keys that do not affect the logits, besides `IGNORED_KEYS`."""
    body_architecture: str = ""
    """The class without a head, as in `config.json`."""
    copies: Mapping[str, str] = field(default_factory=dict)
    """Tensor that some checkpoints store twice -> the tensor that it copies."""
    legacy_names: tuple[tuple[str, str], ...] = ()
    """(Pattern, replacement) of tensor names in older checkpoints."""
    optional: Mapping[str, str] = field(default_factory=dict)
    """Field that is true if a tensor exists -> that tensor."""
    inferred: tuple[str, ...] = ()
    """Fields inferred from the checkpoint's tensors, not from config.json."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of omitted keys (null is not omitted)."""
    aliases: Mapping[str, str] = field(default_factory=dict)
    """Other name of a key -> the key; the other name wins if both are set."""
    older_names: Mapping[str, str] = field(default_factory=dict)
    """Older name of a key -> the key, which wins if both are set."""
    variants: Mapping[str, "Family"] = field(default_factory=dict)
    """Tensor -> the family of the same `model_type` that checkpoints with this tensor belong to."""
    written_as: "Family | None" = None
    """The family that such models are saved as, where transformers has no class for this `model_type`."""

    def like(
        self,
        model_type: str,
        architecture: str,
        codecs: Iterable[Codec] = (),
        names: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
        **changes: Any,
    ) -> "Family":
        """A family that differs from this one.

        Args:
            model_type: As in `config.json`.
            architecture: As in `config.json`.
            codecs: Each replaces the codecs that set one of its fields.
            names: Added to the names; None removes a name.
            defaults: Added to the defaults.
            changes: Other attributes, replaced as a whole.
        """
        codecs = tuple(codecs)
        replaced = {path for codec in codecs for path in codec.sets}
        kept = tuple(codec for codec in self.codecs if not replaced & set(codec.sets))
        merged = {ours: theirs for ours, theirs in {**self.names, **(names or {})}.items() if theirs is not None}
        return replace(
            self,
            model_type=model_type,
            architecture=architecture,
            codecs=kept + codecs,
            names=merged,
            defaults={**self.defaults, **(defaults or {})},
            **changes,
        )

    @property
    def keys(self) -> set[str]:
        """The keys of `config.json` that are read."""
        return {key for codec in self.codecs for key in codec.keys} | set(self.aliases) | set(self.older_names)

    @property
    def known_keys(self) -> set[str]:
        """The keys that are followed, refused at some or all values, or known not to affect the logits."""
        unused = {CAUSAL_KEY} if self.kind != "decoder" else set()
        return self.keys | REFUSED_KEYS | IGNORED_KEYS | self.ignored_keys | unused

    def resolve_aliases(self, hf: Hf) -> Hf:
        """The same config with aliases replaced by the keys they stand for."""
        other = {self.aliases[key]: value for key, value in hf.items() if key in self.aliases and value is not None}
        older = {self.older_names[key]: value for key, value in hf.items() if key in self.older_names}
        older = {key: value for key, value in older.items() if value is not None and hf.get(key) is None}
        return (
            {key: value for key, value in hf.items() if key not in {*self.aliases, *self.older_names}} | other | older
        )

    def to_fields(self, hf: Hf) -> tuple[Fields, list[str]]:
        """Fields by path, and the problems of the config."""
        hf = {**self.defaults, **self.resolve_aliases(hf)}
        fields: Fields = {}
        problems = direction_problems(hf, self.kind)
        for codec in self.codecs:
            try:
                fields |= codec.to_fields(hf)
            except RopeError as error:
                problems += error.problems
            except (ValueError, KeyError, TypeError, ZeroDivisionError) as error:
                problems.append(f"{error.args[0]} is missing." if isinstance(error, KeyError) else str(error))
        if self.kind == "decoder":
            fields = bidirectional_windows(fields, lambda window: window + 1)
        return fields, problems

    def unknown_keys(self, hf: Hf) -> list[str]:
        """Keys that are not known: they may affect the logits."""
        known = self.known_keys
        found = {key for key, value in hf.items() if value is not None and key not in known}
        for codec in self.codecs:
            if isinstance(codec, NestedSide):
                inner, own = hf.get(codec.side) or {}, known | codec.inner_keys
                found |= {f"{codec.side}.{k}" for k, value in inner.items() if value is not None and k not in own}
        return sorted(found)

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        """`config.json` of canonical fields, as far as its keys can express them. Raises ValueError where they cannot."""
        if self.kind == "decoder":
            fields = bidirectional_windows(fields, lambda window: window - 1)
        out: dict[str, Any] = {"architectures": [self.architecture], "model_type": self.model_type}
        for codec in self.codecs:
            out |= {key: value for key, value in codec.to_hf(fields).items() if value is not None}
        return {key: unwrapped(value) for key, value in out.items()}

    @cached_property
    def _patterns(self) -> list[tuple[re.Pattern[str], Layout]]:
        found = []
        for ours, theirs in self.names.items():
            pattern = re.escape(ours).replace(re.escape("{i}"), r"(?P<i>\d+)")
            found.append((re.compile(pattern), Same(theirs) if isinstance(theirs, str) else theirs))
        return found

    def locate(self, parameter: str) -> "Location | None":
        """Where a checkpoint stores a parameter; None where the family has no such parameter."""
        short = parameter.replace("attn_layers.", "", 1)
        module, _, leaf = short.rpartition(".")
        for pattern, layout in self._patterns:
            if match := pattern.fullmatch(short):
                return Location(layout, match.groupdict().get("i"), "")
        for pattern, layout in self._patterns:
            if leaf in LEAVES and (match := pattern.fullmatch(module)):
                return Location(layout, match.groupdict().get("i"), "." + LEAVES[leaf])
        return None


@dataclass(frozen=True)
class Location:
    """The tensors of a checkpoint that store one parameter."""

    layout: Layout
    layer: str | None
    """Index of the layer; None outside of layers."""
    leaf: str
    """End of the tensor names, as `.weight`."""

    def names(self, sizes: Sizes) -> list[str]:
        """Names of the tensors."""
        filled = [name if self.layer is None else name.replace("{i}", self.layer) for name in self.layout.names(sizes)]
        return [name + self.leaf for name in filled]
