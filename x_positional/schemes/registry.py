"""Configs that are chosen by name: the base of all configs, the registry of named ones, and the position schemes in it."""

import copy
from typing import Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict
from typing_extensions import Self

from x_positional.errors import ArgumentError, did_you_mean
from x_positional.schemes.base import Dims, PositionScheme


class Config(BaseModel):
    """Values only: frozen, equal if their values are; unknown keys and infinities are rejected."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    tag: ClassVar[str] = ""
    """The field that names the class. It is always written out, even at its default; "" if there is none."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as a dict. peft calls this on a model's config."""
        return self.model_dump()


class NamedConfig(Config):
    """Base of configs that are chosen by a name in their field `tag`. A subclass registers itself when it is defined."""

    registry: ClassVar[dict[str, type[Any]]]
    """The classes by name."""
    noun: ClassVar[str]
    """What the classes are, for messages."""
    expected: ClassVar[str]
    """What `read` accepts, for messages."""
    abstract: ClassVar[bool] = True
    """Set on a base class that has no name of its own; not inherited."""
    by_name: ClassVar[bool] = True
    """Whether keywords and files can choose the class by its name."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if vars(cls).get("abstract"):
            return
        names = get_args(cls.model_fields[cls.tag].annotation)
        if len(names) != 1:
            raise TypeError(f'{cls.__name__} must have a field `{cls.tag}: Literal["name"] = "name"`')
        known = cls.registry.get(names[0])
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ArgumentError(
                f"{cls.noun} {names[0]!r} is already registered, by {known.__module__}.{known.__name__}"
            )
        cls.registry[names[0]] = cls

    @classmethod
    def names(cls) -> list[str]:
        """Every name that `read` can be given, sorted."""
        return sorted(name for name, known in cls.registry.items() if known.by_name)

    @classmethod
    def read(cls, value: Any) -> Self:
        """A config, its name, or a dict with its name and settings -> the config. Raises ArgumentError."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            value = {cls.tag: value}
        if not isinstance(value, dict) or cls.tag not in value:
            raise ArgumentError(f"{cls.expected}; got {value!r}. Names: {', '.join(cls.names())}")
        name = str(value[cls.tag])
        if name not in cls.registry:
            raise ArgumentError(f"no {cls.noun} named {name!r}; {did_you_mean(name, cls.names())}")
        return cls.registry[name].model_validate(value)


REGISTRY: dict[str, type["SchemeConfig"]] = {}
"""Every position scheme by name."""


class SchemeConfig(NamedConfig):
    """Base of every scheme's config. Subclass with `kind: Literal["name"] = "name"` and `build`; that registers it."""

    tag: ClassVar[str] = "kind"
    registry: ClassVar[dict[str, type[Any]]] = REGISTRY
    noun: ClassVar[str] = "position scheme"
    expected: ClassVar[str] = "position must be a name, a config, a scheme, or a list of them"
    abstract: ClassVar[bool] = True
    kind: str
    """The name in `position=` and in files."""
    summary: ClassVar[str] = ""
    """One line for the table of schemes."""
    paper: ClassVar[str] = ""
    """Authors, year, arXiv number."""

    @property
    def label(self) -> str:
        """What messages call it: the name in `position=`, or the class of an instance."""
        return self.kind

    def build(self, dims: Dims) -> PositionScheme:
        """The scheme, for these sizes."""
        raise TypeError(f"{type(self).__name__} defines no build(dims)")

    def model_dims(self) -> frozenset[str]:
        """The fields of `Dims` that `build` reads and only the model around the layers knows: "max_seq_len", "embed_dim"."""
        return frozenset()

    def problems(self, dims: Dims) -> list[str]:
        """Why `build(dims)` cannot work, each with the value, the reason and the way out; [] if it can."""
        return []

    def warnings(self, dims: Dims) -> list[str]:
        """What works but may not be intended; [] if nothing."""
        return []

    def resolved(self, dims: Dims) -> "SchemeConfig":
        """The same config with all defaults filled in, so that configs which compute the same are equal."""
        return self

    def unstretched(self) -> "SchemeConfig | None":
        """The same config without its context extension; None if it has none."""
        return None

    def trained_length(self) -> int | None:
        """The context length before extension, if the config specifies it."""
        return None


class Custom(SchemeConfig):
    """A scheme given as an instance. It has no name, so it cannot be written to a file.

    A scheme with parameters per layer is copied for each layer; any other is shared.
    """

    kind: Literal["custom"] = "custom"
    by_name: ClassVar[bool] = False
    scheme: Any
    """The `PositionScheme` instance."""
    summary: ClassVar[str] = "your own `PositionScheme` instance"

    @property
    def label(self) -> str:
        return type(self.scheme).__name__

    def build(self, dims: Dims) -> PositionScheme:
        return copy.deepcopy(self.scheme) if self.scheme.per_layer else self.scheme


def scheme_config(value: Any) -> SchemeConfig:
    """A name, a dict with `kind`, a config or a scheme instance -> a config. Raises ArgumentError."""
    return Custom(scheme=value) if isinstance(value, PositionScheme) else SchemeConfig.read(value)
