"""Reads one flat dict of RoPE parameters of a Hugging Face `config.json` into a scaling, and writes it back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from x_positional.errors import did_you_mean
from x_positional.schemes.rotary.axes import SectionOrder
from x_positional.schemes.rotary.scaling import SCALINGS, DynamicNtk, LengthScaling, NtkAlpha, Proportional, RopeScaling

UNSUPPORTED = {
    "xdrope_section": "it splits channels, not pairs, over the position axes",
    "llama_4_scaling_beta": "it scales queries by their position",
}
"""Keys that change more than frequencies and sections, and what they do."""

INTERLEAVED_KEYS = ("mrope_interleaved", "interleaved")
"""Keys that are True where pairs are assigned to position axes in an interleaved order."""

ALIASES = {"su": "longrope", "mrope": "default", "xdrope": "dynamic"}
COMMON_KEYS = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "max_position_embeddings",
    "mrope_section",
    *INTERLEAVED_KEYS,
    *UNSUPPORTED,
}
REQUIRED_KEYS = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
"""Keys without a default in Hugging Face's form, by rope_type."""
IGNORED = {
    "ntk_alpha": {"factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"},
    "linear": {"original_max_position_embeddings"},
    "default": {"original_max_position_embeddings"},
}
"""Keys that files contain without effect in this rope_type."""
INEFFECTIVE: Mapping[str, tuple[Any, ...]] = {
    "finetuned": (True, False),
    "attn_factor": (1,),
    "extrapolation_factor": (1,),
}
"""Keys that transformers does not read -> the values without effect in other implementations; others are refused."""
NOT_WRITTEN = {"rope_type", "length_policy", "length"}
"""Fields of a scaling that have no key of the same name."""


@dataclass(frozen=True)
class ConfigContext:
    """Values from outside the dict of RoPE parameters: the rest of the config, the family, the caller."""

    max_position_embeddings: int | None = None
    """Context length of the model."""
    original_max_position_embeddings: int | None = None
    """Trained length; overrides the one in the dict."""
    theta: float = 10_000.0
    """Used where the dict has no rope_theta."""
    fraction: float | None = None
    """Rotated fraction of a head; used where the dict has no partial_rotary_factor."""
    length: int | None = None
    """Sequence length to fix the frequencies for; None: each row's own length."""
    sections: tuple[int, ...] | None = None
    """Used where the dict has no mrope_section."""
    section_order: SectionOrder = "contiguous"
    """Order of the sections in this family."""


@dataclass
class RopeParameters:
    """The result of reading one dict."""

    theta: float = 10_000.0
    fraction: float | None = None
    scaling: RopeScaling | None = None
    sections: tuple[int, ...] | None = None
    section_order: SectionOrder = "contiguous"
    unsupported: list[str] = field(default_factory=list)
    """Keys of the dict that are in `UNSUPPORTED`."""
    problems: list[str] = field(default_factory=list)
    """Everything that is wrong with the dict."""


def read_parameters(data: Mapping[str, Any], context: ConfigContext) -> RopeParameters:
    """Read one flat dict. Never raises: everything that is wrong is in `problems`."""
    found = RopeParameters()
    kind = rope_type(data)
    if kind not in SCALINGS:
        found.problems.append(_unknown_type(kind))
        return found
    allowed = _keys(kind)
    given = {key: value for key, value in data.items() if value is not None}
    found.unsupported = [key for key in given if key in UNSUPPORTED]
    for key, value in given.items():
        if key in INEFFECTIVE:
            found.problems += _ineffective_problems(key, value)
        elif key not in allowed:
            found.problems.append(f"{key} is unknown for rope_type={kind!r}; {did_you_mean(key, allowed)}")
    found.theta = _theta(data, context, found.problems)
    fraction = _number("partial_rotary_factor", given.get("partial_rotary_factor", context.fraction), found.problems)
    if fraction is not None and not 0 < fraction <= 1 and kind != "proportional":
        found.problems.append(
            f"partial_rotary_factor={fraction:g} must be above 0 and at most 1: it is the rotated fraction of a head."
        )
    present = data if kind == "yarn" else given  # YaRN's factor may be None: it is then the ratio of the two lengths
    missing = [key for key in REQUIRED_KEYS.get(kind, ()) if key not in present]
    found.problems += [f"{key} is missing; rope_type={kind!r} needs it." for key in missing]
    values = {key: _plain(key, value, found.problems) for key, value in given.items() if key in allowed - COMMON_KEYS}
    values = {key: value for key, value in values.items() if key not in IGNORED.get(kind, ())}
    if kind == "proportional":
        values["fraction"], fraction = 1.0 if fraction is None else fraction, None
    found.fraction = None if fraction == 1 else fraction
    _read_sections(found, given, context)
    if not missing:
        found.scaling = _scaling(kind, values, data, context, found.problems)
    return found


def _ineffective_problems(key: str, value: Any) -> list[str]:
    if value in INEFFECTIVE[key]:
        return []
    only = " or ".join(map(str, INEFFECTIVE[key]))
    return [f"{key}={value!r}: transformers ignores this key, and here it must be {only}. Remove it."]


def rope_type(data: Mapping[str, Any]) -> str:
    """The rope_type of a dict: `rope_type`, or `type` in older files; other keys can change what it means."""
    kind = str(data.get("rope_type") or data.get("type") or "default")
    kind = ALIASES.get(kind, kind)
    if kind == "yarn" and data.get("short_factor") is not None:
        return "longrope"  # first files of Phi-3
    if kind == "dynamic" and data.get("alpha"):
        return "ntk_alpha"  # HunYuan
    return kind


def _read_sections(found: RopeParameters, given: Mapping[str, Any], context: ConfigContext) -> None:
    """Read how pairs are split over the position axes."""
    sections = given.get("mrope_section", context.sections)
    if sections is None:
        return
    whole = isinstance(sections, list | tuple) and all(
        isinstance(n, int | float) and not isinstance(n, bool) and n > 0 and n % 1 == 0 for n in sections
    )
    if not whole or len(sections) < 2:
        found.problems.append(
            f"mrope_section={sections!r} must be a list of two or more positive integers, the number of pairs of each axis."
        )
        return
    found.sections, found.section_order = tuple(map(int, sections)), context.section_order
    if any(given.get(key) for key in INTERLEAVED_KEYS):
        found.section_order = "interleaved"
    if found.section_order == "video":  # height, width, time -> time first
        found.sections = (found.sections[-1], *found.sections[:-1])


def write_parameters(theta: float, fraction: float | None, scaling: RopeScaling | None) -> dict[str, Any]:
    """The inverse of `read_parameters`. The dict lacks the trained length of DynamicNtk: Hugging Face's form takes the
    config's max_position_embeddings for it."""
    out: dict[str, Any] = {"rope_type": "default" if scaling is None else scaling.rope_type, "rope_theta": theta}
    if fraction is not None:
        out["partial_rotary_factor"] = fraction
    if scaling is None:
        return out
    if isinstance(scaling, NtkAlpha):
        return out | {"rope_type": "dynamic", "factor": 1.0, "alpha": scaling.alpha}
    if isinstance(scaling, Proportional):
        scaled = {} if scaling.factor == 1 else {"factor": scaling.factor}
        return out | {"partial_rotary_factor": scaling.fraction} | scaled
    hidden = NOT_WRITTEN | ({"original_max_position_embeddings"} if isinstance(scaling, DynamicNtk) else set())
    for name in type(scaling).model_fields:
        value = getattr(scaling, name)
        if name not in hidden and value is not None:
            out[name] = list(value) if isinstance(value, tuple) else value
    return out


def _scaling(
    kind: str, values: dict[str, Any], data: Mapping[str, Any], context: ConfigContext, problems: list[str]
) -> RopeScaling | None:
    in_dict = _number("max_position_embeddings", data.get("max_position_embeddings"), problems)
    schema, length = SCALINGS[kind], context.max_position_embeddings or in_dict
    fields = schema.model_fields
    if "original_max_position_embeddings" in fields:
        _trained_length(kind, values, length, context, problems)
    if kind in ("yarn", "longrope"):
        _implied_factor(kind, values, length)
    if kind == "yarn":
        _drop_ineffective(values)
    if issubclass(schema, LengthScaling):
        values |= {"length_policy": "recompute"} if context.length is None else {"length": context.length}
    if kind == "default":
        return None
    reported = {name for name, value in values.items() if value is None or (isinstance(value, tuple) and None in value)}
    try:
        return schema.parse({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            name = str(problem["loc"][0])
            if name in reported:
                continue
            reported.add(name)
            text = problem["msg"][0].lower() + problem["msg"][1:]
            missing = problem["type"] == "missing"
            problems.append(f"{name} is missing." if missing else f"{name}={problem['input']!r}: {text}.")
    return None


def _trained_length(
    kind: str, values: dict[str, Any], length: Any, context: ConfigContext, problems: list[str]
) -> None:
    """Set the trained length as transformers does: `dynamic` uses the config's context length, other types prefer a
    trained length at the top level of the config."""
    if kind == "dynamic":
        trained = length or values.get("original_max_position_embeddings")
    else:
        trained = context.original_max_position_embeddings or values.get("original_max_position_embeddings") or length
    if trained is None:
        problems.append(
            "original_max_position_embeddings is missing, and there is no max_position_embeddings to use instead. Add one."
        )
    values["original_max_position_embeddings"] = trained


def _implied_factor(kind: str, values: dict[str, Any], length: Any) -> None:
    """Without a factor, use the ratio of context length to trained length."""
    known = values.get("attention_factor") is not None or values.get("short_mscale") is not None
    trained = values.get("original_max_position_embeddings")
    if values.get("factor") is None and trained and length and not (kind == "longrope" and known):
        values["factor"] = length / trained


def _drop_ineffective(values: dict[str, Any]) -> None:
    """Drop values that transformers ignores: betas of zero, and one mscale without the other."""
    for name in ("beta_fast", "beta_slow"):
        if not values.get(name):
            values.pop(name, None)
    if not (values.get("mscale") and values.get("mscale_all_dim")):
        values.pop("mscale", None)
        values.pop("mscale_all_dim", None)


def _theta(data: Mapping[str, Any], context: ConfigContext, problems: list[str]) -> float:
    if "rope_theta" in data and data["rope_theta"] is None:
        problems.append("rope_theta is None. Set it; most models use 10000.0.")
        return context.theta
    theta = _number("rope_theta", data.get("rope_theta", context.theta), problems)
    if theta is not None and theta <= 0:
        problems.append(f"rope_theta={theta:g} must be above 0.")
        return context.theta
    return context.theta if theta is None else theta


def _number(name: str, value: Any, problems: list[str]) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        problems.append(f"{name}={value!r} must be a number.")
        return None
    return float(value)


def _plain(name: str, value: Any, problems: list[str]) -> Any:
    """A value for pydantic: lists become tuples, integral lengths int; strings, which pydantic would parse, are refused."""
    if isinstance(value, list | tuple):
        return tuple(_number(f"{name}[{i}]", item, problems) for i, item in enumerate(value))
    if isinstance(value, str) or (isinstance(value, bool) and name != "truncate"):
        problems.append(f"{name}={value!r} must be a {'bool' if name == 'truncate' else 'number'}.")
        return None
    whole = name == "original_max_position_embeddings" and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def _keys(kind: str) -> set[str]:
    fields = set(SCALINGS[kind].model_fields) - NOT_WRITTEN
    return COMMON_KEYS | IGNORED.get(kind, set()) | (fields - {"fraction"} if kind == "proportional" else fields)


def _unknown_type(kind: str) -> str:
    if kind == "axial":
        return "rope_type='axial' rotates images by row and column, which is a separate scheme: position='axial'."
    return f"unknown rope_type {kind!r}; {did_you_mean(kind, {*SCALINGS, *ALIASES})}"
