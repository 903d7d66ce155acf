"""Configs that are chosen by name: the base of all configs, the registry of named ones, and the position schemes in it."""

import copy
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator
from typing_extensions import Self

from x_positional.errors import ArgumentError, ConfigError, did_you_mean, nearest, shown
from x_positional.schemes.base import Dims, PositionScheme
from x_positional.schemes.suggest import CHOSEN, TAG_WORDS, messages
from x_positional.schemes.values import counted, leaf_problem, require_bounded

T = TypeVar("T")


class Config(BaseModel):
    """Values only: frozen, equal if their values are; unknown keys and infinities are rejected.

    Whatever is wrong raises ConfigError, once and with everything: only the outermost call words what pydantic found, so
    that nested configs are reported by their path.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)
    tag: ClassVar[str] = ""
    """The field that names the class. It is always written out, even at its default; "" if there is none."""

    def __init__(self, **data: Any):
        validator = self.__pydantic_validator__
        _worded(type(self), data, lambda: validator.validate_python(data, self_instance=self))

    __init__.__pydantic_base_init__ = True  # type: ignore[attr-defined]  # nested configs are validated without it

    @field_validator("*")
    @classmethod
    def _bounded(cls, value: Any) -> Any:
        """Strings and foreign numbers (Decimal) are converted only after `require_bounded` has seen them."""
        for number in value if isinstance(value, tuple) else (value,):
            problem = leaf_problem(number) if isinstance(number, int | float) else None
            if problem is not None:
                raise ValueError(problem.removeprefix("="))
        return value

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:
        """The config of a dict of fields; a config of this class is returned as it is. Raises ConfigError."""
        return _worded(cls, obj, lambda: super(Config, cls).model_validate(obj, **options))

    @classmethod
    def model_validate_json(cls, json_data: str | bytes | bytearray, **options: Any) -> Self:
        """The config of a JSON text. Raises ConfigError."""
        return _worded(cls, json_data, lambda: super(Config, cls).model_validate_json(json_data, **options))

    @classmethod
    def parse(cls, data: Any) -> Self:
        """The same as `model_validate`, for bounded data (`schemes/values.py`). Raises pydantic's ValidationError, which
        validators around it extend by their own path."""
        return cls.__pydantic_validator__.validate_python(data)

    def to_dict(self) -> dict[str, Any]:
        """All fields as a dict. peft calls this on a model's config."""
        return self.model_dump()

    if not TYPE_CHECKING:  # type checkers know that configs are frozen

        def __setattr__(self, name: str, value: Any) -> None:
            try:
                super().__setattr__(name, value)
            except ValidationError:
                raise ConfigError(
                    f"{type(self).__name__}.{name} cannot be set: configs are frozen. Use model_copy(update=...)."
                ) from None


def _worded(schema: type[BaseModel], data: Any, validate: Callable[[], T]) -> T:
    """The outcome of `validate`, whose data is bounded; what it finds, as a ConfigError."""
    require_bounded(data, schema.__name__)
    try:
        return validate()
    except ValidationError as error:
        problems = messages(schema, error, data)
    raise ConfigError(f"{schema.__name__}: {counted(problems)}", problems)


class NamedConfig(Config):
    """Base of configs that are chosen by a name in their field `tag`. A subclass registers itself when it is defined."""

    registry: ClassVar[dict[str, type[Any]]]
    """The classes by name."""
    noun: ClassVar[str]
    """What the classes are, for messages."""
    expected: ClassVar[str]
    """What `read` accepts, for messages."""
    synonyms: ClassVar[Mapping[str, str]] = {}
    """Other words for a name, in lower case with underscores: suggested, never accepted."""
    abstract: ClassVar[bool] = True
    """Set on a base class that has no name of its own; not inherited."""
    by_name: ClassVar[bool] = True
    """Whether keywords and files can choose the class by its name."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        if vars(cls).get("abstract"):
            if "registry" in vars(cls):
                CHOSEN[cls] = (cls.tag, cls.registry)
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
        """A config, its name, or a dict with its name and settings -> the config. Raises ArgumentError, ValidationError."""
        if isinstance(value, cls):
            return value
        if isinstance(value, str):
            value = {cls.tag: value}
        if not isinstance(value, dict) or cls.tag not in value:
            raise ArgumentError(f"{cls.expected}; got {shown(value)}. {cls._named_by_another_key(value)}")
        name = value[cls.tag]
        if not isinstance(name, str):
            raise ArgumentError(f"{cls.tag}={shown(name)} must be a name. Names: {', '.join(cls.names())}")
        if name not in cls.registry:
            raise ArgumentError(f"no {cls.noun} named {shown(name)}; {did_you_mean(name, cls.names(), cls.synonyms)}")
        return cls.registry[name].parse(value)

    @classmethod
    def _named_by_another_key(cls, value: Any) -> str:
        """A way out for a value without the tag: the key that holds a name, if one does."""
        for key in value if isinstance(value, dict) else ():
            if isinstance(key, str) and (key in TAG_WORDS or nearest(key, [cls.tag])):
                return f"Did you mean {cls.tag} in place of {key}?"
        return f"Names: {', '.join(cls.names())}"


REGISTRY: dict[str, type["SchemeConfig"]] = {}
"""Every position scheme by name."""

SYNONYMS = {
    **dict.fromkeys(
        ("rotary", "rotary_emb", "rotary_pos_emb", "rotary_embedding", "roformer", "mrope", "m_rope"), "rope"
    ),
    **dict.fromkeys(("rotate_half", "neox", "yarn", "longrope", "ntk", "dynamic_ntk"), "rope"),
    **dict.fromkeys(
        ("learned", "learnable", "table", "abs", "absolute_learned", "embedding", "gpt2", "bert"), "absolute"
    ),
    **dict.fromkeys(("sincos", "sin_cos", "sine", "sinusoid", "fourier", "transformer"), "sinusoidal"),
    **dict.fromkeys(("scaled_sine", "scaled_sinu", "scaled_sinu_pos_emb"), "scaled_sinusoidal"),
    **dict.fromkeys(
        ("relative", "relative_bias", "rel_pos", "rel_pos_bias", "t5_bias", "t5_relative", "bucketed"), "t5"
    ),
    **dict.fromkeys(("linear_bias", "linear_biases", "alibi_pos_bias", "bloom"), "alibi"),
    **dict.fromkeys(("mlp_bias", "mlp", "cpb", "continuous_bias", "dynamic_pos_bias", "crossformer"), "dynamic"),
    **dict.fromkeys(("fox", "forget", "forget_gate", "forgetting_transformer", "data_dependent_alibi"), "forgetting"),
    **dict.fromkeys(("pope", "polar_pos_emb", "polar_coordinate"), "polar"),
    **dict.fromkeys(("contextual", "use_cope"), "cope"),
    **dict.fromkeys(("rotary_xpos", "x_pos", "lex", "length_extrapolatable"), "xpos"),
    **dict.fromkeys(("disentangled", "c2p", "p2c", "deberta_v2", "deberta_v3"), "deberta"),
    **dict.fromkeys(("2d", "rope_2d", "rope2d", "2d_rope", "axial_rope"), "axial"),
    **dict.fromkeys(("rope_mixed", "mixed_rope", "learned_2d"), "mixed"),
    **dict.fromkeys(("attn_temperature", "attention_temperature", "llama4"), "temperature"),
    **dict.fromkeys(("logn", "log_length", "log_scaling"), "log_n"),
    **dict.fromkeys(("nope", "no", "off", "null", "disabled"), "none"),
}
"""Words that are used elsewhere for a scheme."""


class SchemeConfig(NamedConfig):
    """Base of every scheme's config. Subclass with `kind: Literal["name"] = "name"` and `build`; that registers it."""

    tag: ClassVar[str] = "kind"
    registry: ClassVar[dict[str, type[Any]]] = REGISTRY
    noun: ClassVar[str] = "position scheme"
    expected: ClassVar[str] = "position must be a name, a config, a scheme, or a list of them"
    synonyms: ClassVar[Mapping[str, str]] = SYNONYMS
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
    scheme: PositionScheme
    """The instance."""
    summary: ClassVar[str] = "your own `PositionScheme` instance"

    @property
    def label(self) -> str:
        return type(self.scheme).__name__

    def build(self, dims: Dims) -> PositionScheme:
        return copy.deepcopy(self.scheme) if self.scheme.per_layer else self.scheme


def scheme_config(value: Any) -> SchemeConfig:
    """A name, a dict with `kind`, a config or a scheme instance -> a config.

    Raises ArgumentError, and pydantic's ValidationError for wrong settings: it is a validator of the field `position`.
    """
    return Custom(scheme=value) if isinstance(value, PositionScheme) else SchemeConfig.read(value)
