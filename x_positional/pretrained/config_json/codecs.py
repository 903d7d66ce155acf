"""Codecs: how keys of a published `config.json` map to config fields, in both directions. Pure data.

A field is a dotted path into `ModelConfig`, as `layers.norm.eps`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from x_positional.errors import ConfigError

Hf = Mapping[str, Any]
"""Contents of a `config.json`."""
Fields = dict[str, Any]
"""Dotted path -> value."""


class Required:
    """Marks a key without a default: the model cannot be built without it."""


REQUIRED = Required()


class Null:
    """Marks a value that is written as null. An omitted key means the class's default; null means "none"."""


NULL = Null()


def unwrapped(value: Any) -> Any:
    """A value as it is written: null where it is marked so."""
    return None if isinstance(value, Null) else value


class Codec(Protocol):
    """A mapping between some keys and some fields, in both directions."""

    @property
    def sets(self) -> tuple[str, ...]:
        """Fields that it sets. In `Family.like`, a codec replaces those that set one of its fields."""
        ...

    @property
    def keys(self) -> tuple[str, ...]:
        """Keys of `config.json` that it reads."""
        ...

    def to_fields(self, hf: Hf) -> Fields:
        """Keys -> fields. Raises ConfigError with the value, the reason and the way out."""
        ...

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        """Every field of a model, by path -> keys."""
        ...


class OneKey:
    """Base of codecs of one key and one field."""

    path: str
    key: str

    @property
    def sets(self) -> tuple[str, ...]:
        return (self.path,)

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)


@dataclass(frozen=True)
class Key(OneKey):
    """One field, one key."""

    path: str
    key: str
    default: Any = REQUIRED
    """Value of an omitted key, or a function of the whole config that gives it."""
    values: Mapping[Any, Any] | None = None
    """Values of the key -> values of the field; None copies the value."""

    def to_fields(self, hf: Hf) -> Fields:
        value = hf.get(self.key)
        if value is None:
            if isinstance(self.default, Required):
                raise ConfigError(f"{self.key} is missing.")
            value = self.default(hf) if callable(self.default) else self.default
        if self.values is None:
            return {self.path: value}
        if value not in self.values:
            raise ConfigError(f"unsupported {self.key}={value!r}; supported: {', '.join(map(str, self.values))}.")
        return {self.path: self.values[value]}

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        value = fields.get(self.path)
        if self.values is not None:
            value = next((theirs for theirs in self._spellings() if self.values[theirs] == value), None)
        return {self.key: value}

    def _spellings(self) -> list[Any]:
        """Values of the key, the family's default first: two names of one function may round differently."""
        spellings = list(self.values or ())
        return sorted(spellings, key=lambda spelling: spelling != self.default)


@dataclass(frozen=True)
class Nullable(OneKey):
    """One field, one key, where null is a value (no window, no cap). Its default is in `Family.defaults`."""

    path: str
    key: str

    def to_fields(self, hf: Hf) -> Fields:
        return {self.path: hf.get(self.key)}

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        value = fields.get(self.path)
        return {self.key: NULL if value is None else value}


@dataclass(frozen=True)
class Fixed:
    """A field that has the same value in every model of the family."""

    path: str
    value: Any

    @property
    def sets(self) -> tuple[str, ...]:
        return (self.path,)

    @property
    def keys(self) -> tuple[str, ...]:
        return ()

    def to_fields(self, hf: Hf) -> Fields:
        return {self.path: self.value}

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Only(OneKey):
    """A key of which only some values are supported."""

    key: str
    values: tuple[Any, ...]
    """Supported values; the first is the default."""
    why: str
    """Why other values are unsupported, as the end of the error message."""

    @property
    def sets(self) -> tuple[str, ...]:
        return (f"only {self.key}",)

    def to_fields(self, hf: Hf) -> Fields:
        value = hf.get(self.key, self.values[0])
        if value not in self.values:
            raise ConfigError(f"{self.key}={value!r}: {self.why}")
        return {}

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        return {self.key: self.values[0]}


@dataclass(frozen=True)
class WriteOnly(OneKey):
    """A key about tensor names rather than the computation: inferred from the tensors, and written as a constant."""

    key: str
    value: Any

    @property
    def sets(self) -> tuple[str, ...]:
        return (f"written {self.key}",)

    def to_fields(self, hf: Hf) -> Fields:
        return {}

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        return {self.key: self.value}


@dataclass(frozen=True)
class Custom:
    """Fields and keys that depend on each other, mapped by two functions."""

    sets: tuple[str, ...]
    keys: tuple[str, ...]
    reader: Callable[[Hf], Fields]
    writer: Callable[[Fields], dict[str, Any]]

    def to_fields(self, hf: Hf) -> Fields:
        return self.reader(hf)

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        return self.writer(fields)


def derived(path: str, reader: Callable[[Hf], Any]) -> Custom:
    """A field without a key, computed from other keys, as Gemma's embedding scale is from its width."""
    return Custom((path,), (), lambda hf: {path: reader(hf)}, lambda fields: {})


def agrees(key: str, reader: Callable[[Hf], Any], path: str = "") -> Custom:
    """A key that must have the value that other keys give, where a file contains it. path: the field of that value, if any."""

    def to_fields(hf: Hf) -> Fields:
        value = reader(hf)
        if hf.get(key) not in (None, value):
            raise ConfigError(
                f"{key}={hf[key]!r}: this family derives it from other keys, which give {value!r}. Remove it."
            )
        return {path: value} if path else {}

    return Custom((path or f"only {key}",), (key,), to_fields, lambda fields: {})


def head_dim(reader: Callable[[Hf], int]) -> Custom:
    """The head dimension of a family that derives it; the key `head_dim` must agree."""
    return agrees("head_dim", reader, "layers.head_dim")


def multiplier(path: str, key: str) -> Custom:
    """A scale factor; a field of None is written as 1. The default is in `Family.defaults`."""
    return Custom(
        (path,),
        (key,),
        lambda hf: {path: hf[key]},
        lambda fields: {key: 1.0 if fields.get(path) is None else fields[path]},
    )


def decimal(value: float) -> float | int:
    """The shortest number equal to this one up to the rounding of a division or a root: 1 / (1 / 49) is 49."""
    near = float(f"{value:.15g}")
    return int(near) if near.is_integer() else near


def same_as(key: str) -> Callable[[Hf], Any]:
    """A default taken from another key."""
    return lambda hf: hf.get(key)


def quotient(whole: str, parts: str) -> Callable[[Hf], Any]:
    """A default that is one key divided by another, as head_dim = hidden_size / num_attention_heads."""
    return lambda hf: hf[whole] // hf[parts]
