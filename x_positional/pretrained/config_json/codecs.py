"""How one key of a published `config.json` says one field of ours, and back. Pure data.

Our fields are dotted paths into `ModelConfig`, as `layers.norm.eps`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

Hf = Mapping[str, Any]
Fields = dict[str, Any]
"""Dotted path -> value."""


class Required:
    """A key without which nothing can be built."""


REQUIRED = Required()


class Null:
    """Written as null. A key that is left out means the default of its class; null means that there is none."""


NULL = Null()


class Codec(Protocol):
    """One thing that both sides say. `said`: our fields that it sets, by which a family replaces another's codec."""

    @property
    def said(self) -> tuple[str, ...]: ...

    @property
    def keys(self) -> tuple[str, ...]: ...

    def read(self, hf: Hf) -> Fields:
        """Theirs -> ours. Raises ValueError with the value, the reason and the way out."""
        ...

    def write(self, config: Fields) -> dict[str, Any]:
        """Ours (every field, by path) -> theirs."""
        ...


class OneKey:
    """A codec of one key, and of one field unless it says otherwise."""

    path: str
    key: str

    @property
    def said(self) -> tuple[str, ...]:
        return (self.path,)

    @property
    def keys(self) -> tuple[str, ...]:
        return (self.key,)


@dataclass(frozen=True)
class Key(OneKey):
    """One field, one key. default: of the key, a value or a function of the whole config. words: their values -> ours."""

    path: str
    key: str
    default: Any = REQUIRED
    words: Mapping[Any, Any] | None = None

    def read(self, hf: Hf) -> Fields:
        value = hf.get(self.key)
        if value is None:
            if isinstance(self.default, Required):
                raise ValueError(f"{self.key} is missing.")
            value = self.default(hf) if callable(self.default) else self.default
        if self.words is None:
            return {self.path: value}
        if value not in self.words:
            raise ValueError(f"{self.key}={value!r} is not known here; there are: {', '.join(map(str, self.words))}.")
        return {self.path: self.words[value]}

    def write(self, config: Fields) -> dict[str, Any]:
        value = config.get(self.path)
        if self.words is not None:
            value = next((theirs for theirs in self._spellings() if self.words[theirs] == value), None)
        return {self.key: value}

    def _spellings(self) -> list[Any]:
        """Their words, the family's own first: two words for one function may round otherwise."""
        words = list(self.words or ())
        return sorted(words, key=lambda word: word != self.default)


@dataclass(frozen=True)
class Maybe(OneKey):
    """One field, one key, where null is a value: no window, no cap. What a missing key means, `Family.defaults` says."""

    path: str
    key: str

    def read(self, hf: Hf) -> Fields:
        return {self.path: hf.get(self.key)}

    def write(self, config: Fields) -> dict[str, Any]:
        value = config.get(self.path)
        return {self.key: NULL if value is None else value}


@dataclass(frozen=True)
class Fixed:
    """A field that is the same in every model of the family."""

    path: str
    value: Any

    @property
    def said(self) -> tuple[str, ...]:
        return (self.path,)

    @property
    def keys(self) -> tuple[str, ...]:
        return ()

    def read(self, hf: Hf) -> Fields:
        return {self.path: self.value}

    def write(self, config: Fields) -> dict[str, Any]:
        return {}


@dataclass(frozen=True)
class Only(OneKey):
    """A key of theirs that must have one of these values (the first one is the default), because nothing here does
    otherwise. why: what other values would mean."""

    key: str
    values: tuple[Any, ...]
    why: str

    @property
    def said(self) -> tuple[str, ...]:
        return (f"only {self.key}",)

    def read(self, hf: Hf) -> Fields:
        value = hf.get(self.key, self.values[0])
        if value not in self.values:
            raise ValueError(f"{self.key}={value!r}: {self.why}")
        return {}

    def write(self, config: Fields) -> dict[str, Any]:
        return {self.key: self.values[0]}


@dataclass(frozen=True)
class Written(OneKey):
    """A key that says how tensors are called, not what is computed: read from the tensors, and always written so."""

    key: str
    value: Any

    @property
    def said(self) -> tuple[str, ...]:
        return (f"written {self.key}",)

    def read(self, hf: Hf) -> Fields:
        return {}

    def write(self, config: Fields) -> dict[str, Any]:
        return {self.key: self.value}


@dataclass(frozen=True)
class Both:
    """Several fields and keys that say something together. reads, writes: which fields, which keys."""

    paths: tuple[str, ...]
    theirs: tuple[str, ...]
    reader: Callable[[Hf], Fields]
    writer: Callable[[Fields], dict[str, Any]]

    @property
    def said(self) -> tuple[str, ...]:
        return self.paths

    @property
    def keys(self) -> tuple[str, ...]:
        return self.theirs

    def read(self, hf: Hf) -> Fields:
        return self.reader(hf)

    def write(self, config: Fields) -> dict[str, Any]:
        return self.writer(config)


def follows(path: str, reader: Callable[[Hf], Any]) -> Both:
    """A field that no key says, because it follows from others, as Gemma's scale of embeddings does from its width."""
    return Both((path,), (), lambda hf: {path: reader(hf)}, lambda config: {})


def multiplier(path: str, key: str) -> Both:
    """What something is multiplied by, where none is 1. The default is in `Family.defaults`."""
    return Both(
        (path,),
        (key,),
        lambda hf: {path: hf[key]},
        lambda config: {key: 1.0 if config.get(path) is None else config[path]},
    )


def decimal(value: float) -> float | int:
    """The shortest number that is this one, up to the rounding of a division or a root: 1 / (1 / 49) is 49."""
    near = float(f"{value:.15g}")
    return int(near) if near.is_integer() else near


def of(key: str) -> Callable[[Hf], Any]:
    """The default is what another key says."""
    return lambda hf: hf.get(key)


def share(whole: str, parts: str) -> Callable[[Hf], Any]:
    """The default is one key divided by another, as head_dim is hidden_size / num_attention_heads."""
    return lambda hf: hf[whole] // hf[parts]
