"""Position schemes by name: a pydantic config per scheme, registered by being defined."""

import copy
from typing import Any, ClassVar, Literal, get_args

from pydantic import BaseModel, ConfigDict

from x_positional.errors import did_you_mean
from x_positional.schemes.base import Dims, PositionScheme


class Config(BaseModel):
    """Values only: frozen, unknown keys and infinities refused, equal when their values are."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    tag: ClassVar[str] = ""
    """The field that says which class this is, written out even where it is the default; none by default."""


class SchemeConfig(Config):
    """Base of every scheme's config. Subclass with `kind: Literal["name"] = "name"` and `build`; that registers it."""

    tag: ClassVar[str] = "kind"
    kind: str
    summary: ClassVar[str] = ""
    """One line for the table of schemes."""
    paper: ClassVar[str] = ""
    """Authors, year, arXiv number."""
    needs_wrapper: ClassVar[bool] = False
    """Built from the wrapper's max_seq_len or embedding width, so made again once the layers are wrapped."""

    @property
    def label(self) -> str:
        """What messages call it: the name in `position=`, or the class of an instance."""
        return self.kind

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        names = get_args(cls.model_fields["kind"].annotation)
        if len(names) != 1:
            raise TypeError(f'{cls.__name__} must have a field `kind: Literal["name"] = "name"`')
        known = REGISTRY.get(names[0])
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(
                f"position scheme {names[0]!r} is already registered, by {known.__module__}.{known.__name__}"
            )
        REGISTRY[names[0]] = cls

    def build(self, dims: Dims) -> PositionScheme:
        """The scheme, for these sizes."""
        raise TypeError(f"{type(self).__name__} defines no build(dims)")

    def problems(self, dims: Dims) -> list[str]:
        """Why `build(dims)` cannot work, each with the value, the reason and the way out; [] if it can."""
        return []

    def warnings(self, dims: Dims) -> list[str]:
        """What works but deserves a second look; [] if nothing."""
        return []

    def resolved(self, dims: Dims) -> "SchemeConfig":
        """The same with what is left to defaults spelled out, so that what computes alike is equal."""
        return self

    def unstretched(self) -> "SchemeConfig | None":
        """The same before it was stretched to texts longer than those trained on; None where nothing is stretched."""
        return None

    def trained_length(self) -> int | None:
        """The length before stretching, where the config says it."""
        return None


REGISTRY: dict[str, type[SchemeConfig]] = {}


class Custom(SchemeConfig):
    """A scheme instance of the user's own. It has no name, so it cannot be written to a file.

    A scheme with parameters per layer is copied, once for each layer; any other is used itself.
    """

    kind: Literal["custom"] = "custom"
    scheme: Any
    summary: ClassVar[str] = "your own `PositionScheme` instance"

    @property
    def label(self) -> str:
        return type(self.scheme).__name__

    def build(self, dims: Dims) -> PositionScheme:
        return copy.deepcopy(self.scheme) if self.scheme.per_layer else self.scheme


def scheme_config(value: Any) -> SchemeConfig:
    """A name, a dict with `kind`, a config or a scheme instance -> a config. Raises ValueError."""
    if isinstance(value, SchemeConfig):
        return value
    if isinstance(value, PositionScheme):
        return Custom(scheme=value)
    if isinstance(value, str):
        value = {"kind": value}
    if not isinstance(value, dict) or "kind" not in value:
        raise ValueError(
            f"position must be a name, a config, a scheme, or a list of them; got {value!r}. "
            f"Names: {', '.join(sorted(set(REGISTRY) - {'custom'}))}"
        )
    kind = value["kind"]
    if kind not in REGISTRY:
        raise ValueError(f"no position scheme named {kind!r}; {did_you_mean(str(kind), set(REGISTRY) - {'custom'})}")
    return REGISTRY[kind].model_validate(value)
