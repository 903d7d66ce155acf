"""One set of rotary parameters as Hugging Face's `config.json` writes it, read into a scaling, and written back."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from x_positional.errors import did_you_mean
from x_positional.schemes.rotary.axes import SectionOrder
from x_positional.schemes.rotary.scaling import SCALINGS, DynamicNtk, LengthScaling, NtkAlpha, Proportional, RopeScaling

BEYOND = {
    "xdrope_section": "it splits channels, and not pairs of them, over the axes of a position",
    "llama_4_scaling_beta": "it scales queries by their position",
}
"""Keys that say more than how fast each pair turns, and on which axis of a position."""

TAKES_TURNS = ("mrope_interleaved", "interleaved")
"""True where the axes of a position take turns over the pairs."""

ALIASES = {"su": "longrope", "mrope": "default", "xdrope": "dynamic"}
COMMON = {
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "max_position_embeddings",
    "mrope_section",
    *TAKES_TURNS,
    *BEYOND,
}
REQUIRED = {
    "linear": ("factor",),
    "dynamic": ("factor",),
    "yarn": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor"),
    "longrope": ("short_factor", "long_factor"),
}
"""What has no default in that form."""
DEAD = {"ntk_alpha": {"factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "attention_factor"}}
"""Written beside a key that overrules them."""
OWN = {"rope_type", "length_policy", "length"}
"""Fields that the form has no key for, or another one."""


@dataclass(frozen=True)
class Around:
    """What the rest of the config says: its length, the trained length (which wins over the dict's), the defaults of theta
    and of the rotated fraction, how the family splits pairs over axes, and the length that frequencies are fixed for (None:
    each row's own)."""

    max_position_embeddings: int | None = None
    original_max_position_embeddings: int | None = None
    theta: float = 10_000.0
    fraction: float | None = None
    length: int | None = None
    sections: tuple[int, ...] | None = None
    section_order: SectionOrder = "contiguous"


@dataclass
class Parameters:
    """What was read. beyond: keys that say more than frequencies. problems: why it cannot be used; [] if it can."""

    theta: float = 10_000.0
    fraction: float | None = None
    scaling: RopeScaling | None = None
    sections: tuple[int, ...] | None = None
    section_order: SectionOrder = "contiguous"
    beyond: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def read(written: Mapping[str, Any], around: Around) -> Parameters:
    """Reads one flat dict. Never raises: what is wrong is in `problems`."""
    found = Parameters()
    kind = rope_type(written)
    if kind not in SCALINGS:
        found.problems.append(_unknown_type(kind))
        return found
    allowed = _keys(kind)
    given = {key: value for key, value in written.items() if value is not None}
    found.beyond = [key for key in given if key in BEYOND]
    for key in given:
        if key not in allowed:
            found.problems.append(f"{key} is unknown for rope_type={kind!r}; {did_you_mean(key, allowed)}")
    found.theta = _theta(written, around, found.problems)
    fraction = _number("partial_rotary_factor", given.get("partial_rotary_factor", around.fraction), found.problems)
    if fraction is not None and not 0 < fraction <= 1 and kind != "proportional":
        found.problems.append(f"partial_rotary_factor={fraction:g} is a share of the head: above 0, at most 1.")
    said = written if kind == "yarn" else given  # YaRN's factor may be None: the ratio of the two lengths
    missing = [key for key in REQUIRED.get(kind, ()) if key not in said]
    found.problems += [f"{key} is missing; rope_type={kind!r} needs it." for key in missing]
    values = {key: _plain(key, value, found.problems) for key, value in given.items() if key in allowed - COMMON}
    values = {key: value for key, value in values.items() if key not in DEAD.get(kind, ())}
    if kind == "proportional":
        values["fraction"], fraction = 1.0 if fraction is None else fraction, None
    found.fraction = None if fraction == 1 else fraction
    _split(found, given, around)
    if not missing:
        found.scaling = _scaling(kind, values, written, around, found.problems)
    return found


def rope_type(written: Mapping[str, Any]) -> str:
    """Which scaling a dict means: `rope_type`, or in older files `type`, whose meaning other keys may change."""
    kind = str(written.get("rope_type") or written.get("type") or "default")
    kind = ALIASES.get(kind, kind)
    if kind == "yarn" and written.get("short_factor") is not None:
        return "longrope"  # Phi-3's first files
    if kind == "dynamic" and written.get("alpha"):
        return "ntk_alpha"  # HunYuan
    return kind


def _split(found: Parameters, given: Mapping[str, Any], around: Around) -> None:
    """Which axis of a position turns which pair."""
    sections = given.get("mrope_section", around.sections)
    if sections is None:
        return
    whole = isinstance(sections, list | tuple) and all(
        isinstance(n, int | float) and not isinstance(n, bool) and n > 0 and n % 1 == 0 for n in sections
    )
    if not whole or len(sections) < 2:
        found.problems.append(
            f"mrope_section={sections!r} must be a list of two or more whole numbers, the pairs of each axis."
        )
        return
    found.sections, found.section_order = tuple(map(int, sections)), around.section_order
    if any(given.get(key) for key in TAKES_TURNS):
        found.section_order = "interleaved"
    if found.section_order == "video":  # height, width, time: here time is the first axis
        found.sections = (found.sections[-1], *found.sections[:-1])


def write(theta: float, fraction: float | None, scaling: RopeScaling | None) -> dict[str, Any]:
    """The dict that `read` turns into the same. DynamicNtk's trained length is not in it: that form takes the config's
    max_position_embeddings."""
    out: dict[str, Any] = {"rope_type": "default" if scaling is None else scaling.rope_type, "rope_theta": theta}
    if fraction is not None:
        out["partial_rotary_factor"] = fraction
    if scaling is None:
        return out
    if isinstance(scaling, NtkAlpha):
        return out | {"rope_type": "dynamic", "factor": 1.0, "alpha": scaling.alpha}
    if isinstance(scaling, Proportional):
        stretched = {} if scaling.factor == 1 else {"factor": scaling.factor}
        return out | {"partial_rotary_factor": scaling.fraction} | stretched
    hidden = OWN | ({"original_max_position_embeddings"} if isinstance(scaling, DynamicNtk) else set())
    for name in type(scaling).model_fields:
        value = getattr(scaling, name)
        if name not in hidden and value is not None:
            out[name] = list(value) if isinstance(value, tuple) else value
    return out


def _scaling(
    kind: str, values: dict[str, Any], written: Mapping[str, Any], around: Around, problems: list[str]
) -> RopeScaling | None:
    inside = _number("max_position_embeddings", written.get("max_position_embeddings"), problems)
    schema, length = SCALINGS[kind], around.max_position_embeddings or inside
    fields = schema.model_fields
    if "original_max_position_embeddings" in fields:
        _trained_length(kind, values, length, around, problems)
    if kind in ("yarn", "longrope"):
        _implied_factor(kind, values, length)
    if kind == "yarn":
        _drop_idle(values)
    if issubclass(schema, LengthScaling):
        values |= {"length_policy": "recompute"} if around.length is None else {"length": around.length}
    if kind == "default":
        return None
    try:
        return schema.model_validate({name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        for problem in error.errors(include_url=False):
            name, told = str(problem["loc"][0]), [text.split("=")[0].split(" ")[0].split("[")[0] for text in problems]
            if name in told:
                continue
            text = problem["msg"][0].lower() + problem["msg"][1:]
            missing = problem["type"] == "missing"
            problems.append(f"{name} is missing." if missing else f"{name}={problem['input']!r}: {text}.")
    return None


def _trained_length(kind: str, values: dict[str, Any], length: Any, around: Around, problems: list[str]) -> None:
    """`dynamic` means the config's own length; elsewhere a length at the top of the config wins, as in transformers."""
    if kind == "dynamic":
        trained = length or values.get("original_max_position_embeddings")
    else:
        trained = around.original_max_position_embeddings or values.get("original_max_position_embeddings") or length
    if trained is None:
        problems.append(
            "original_max_position_embeddings is missing, and no max_position_embeddings stands in for it. Give one."
        )
    values["original_max_position_embeddings"] = trained


def _implied_factor(kind: str, values: dict[str, Any], length: Any) -> None:
    """Without a factor it is the ratio of the config's length to the trained one."""
    known = values.get("attention_factor") is not None or values.get("short_mscale") is not None
    trained = values.get("original_max_position_embeddings")
    if values.get("factor") is None and trained and length and not (kind == "longrope" and known):
        values["factor"] = length / trained


def _drop_idle(values: dict[str, Any]) -> None:
    """Zero means the default there, and one mscale without the other means nothing."""
    for name in ("beta_fast", "beta_slow"):
        if not values.get(name):
            values.pop(name, None)
    if not (values.get("mscale") and values.get("mscale_all_dim")):
        values.pop("mscale", None)
        values.pop("mscale_all_dim", None)


def _theta(written: Mapping[str, Any], around: Around, problems: list[str]) -> float:
    if "rope_theta" in written and written["rope_theta"] is None:
        problems.append("rope_theta is None. Give the base of the wavelengths, 10000.0 in most models.")
        return around.theta
    theta = _number("rope_theta", written.get("rope_theta", around.theta), problems)
    if theta is not None and theta <= 0:
        problems.append(f"rope_theta={theta:g} must be above 0.")
        return around.theta
    return around.theta if theta is None else theta


def _number(name: str, value: Any, problems: list[str]) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        problems.append(f"{name}={value!r} is no number.")
        return None
    return float(value)


def _plain(name: str, value: Any, problems: list[str]) -> Any:
    """Lists as tuples, whole floats as they are meant; text is no number, and pydantic would read it as one."""
    if isinstance(value, list | tuple):
        return tuple(_number(f"{name}[{i}]", item, problems) for i, item in enumerate(value))
    if isinstance(value, str) or (isinstance(value, bool) and name != "truncate"):
        problems.append(f"{name}={value!r} is no number.")
        return None
    whole = name == "original_max_position_embeddings" and isinstance(value, float) and value.is_integer()
    return int(value) if whole else value


def _keys(kind: str) -> set[str]:
    fields = set(SCALINGS[kind].model_fields) - OWN
    return COMMON | DEAD.get(kind, set()) | (fields - {"fraction"} if kind == "proportional" else fields)


def _unknown_type(kind: str) -> str:
    if kind == "axial":
        return "rope_type='axial' turns images by row and column: a scheme of its own, position='axial'."
    return f"no rope_type {kind!r}; {did_you_mean(kind, {*SCALINGS, *ALIASES})}"
