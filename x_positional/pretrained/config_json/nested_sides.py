"""The config of one side of an encoder-decoder under a key of its own, as `encoder` and `decoder` of T5Gemma."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from x_positional.errors import ConfigError
from x_positional.pretrained.config_json.causal import bidirectional_windows, direction_problems
from x_positional.pretrained.config_json.codecs import Codec, Fields, Hf, unwrapped


@dataclass(frozen=True)
class NestedSide:
    """Codecs of one model whose keys are under `side` and whose fields start with `prefix`."""

    side: str
    codecs: tuple[Codec, ...]
    prefix: str
    """Of the fields: `encoder.` or `decoder.`; empty for an encoder alone."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of omitted keys."""

    @property
    def sets(self) -> tuple[str, ...]:
        return tuple(f"{self.prefix}{path}" for codec in self.codecs for path in codec.sets)

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.side,)

    @property
    def inner_keys(self) -> set[str]:
        """The keys under `side` that are read."""
        return {key for codec in self.codecs for key in codec.keys}

    def to_fields(self, hf: Hf) -> Fields:
        inner = {**self.defaults, **(hf.get(self.side) or {})}
        if problems := direction_problems(inner, "seq2seq"):
            raise ConfigError(f"{self.side}: {problems[0]}")
        fields: Fields = {}
        for codec in self.codecs:
            fields |= codec.to_fields(inner)
        fields = bidirectional_windows(fields, lambda window: window + 1)
        return {f"{self.prefix}{path}": value for path, value in fields.items()}

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        own = {p.removeprefix(self.prefix): value for p, value in fields.items() if p.startswith(self.prefix)}
        own = bidirectional_windows(own, lambda window: window - 1)
        inner: dict[str, Any] = {}
        for codec in self.codecs:
            inner |= {key: value for key, value in codec.to_hf(own).items() if value is not None}
        return {self.side: {key: unwrapped(value) for key, value in inner.items()}}
