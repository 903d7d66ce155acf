"""From a whole `config.json` of Hugging Face to one set of rotary parameters, or one for each type of layer."""

import reprlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from x_positional.errors import RopeError, did_you_mean
from x_positional.pretrained.rope.families import (
    FRACTION,
    INTERLEAVED,
    INTERLEAVED_SECTIONS,
    LOCAL_GLOBAL,
    REFUSED,
    SCALED,
    SCALED_EVERYWHERE,
    SECTIONS,
    THETA,
    VIDEO_SECTIONS,
)
from x_positional.pretrained.rope.parameters import Around
from x_positional.schemes.rotary.axes import SectionOrder

THETAS = ("rope_theta", "rotary_emb_base", "global_rope_theta")
FRACTIONS = ("partial_rotary_factor", "rotary_pct", "rope_pct")
LOCAL_THETAS = ("rope_local_base_freq", "local_rope_theta")
READ = {
    "rope_parameters",
    "rope_scaling",
    *THETAS,
    *FRACTIONS,
    *LOCAL_THETAS,
    "rotary_dim",
    "rope_interleave",
    "qk_rope_head_dim",
    "original_max_position_embeddings",
    "max_position_embeddings",
}
OF_THE_STACK = {"no_rope_layers", "no_rope_layer_interval"}
"""Which layers turn at all: a matter of the stack, not of one rotation."""
BY_LAYER = {
    "layer_rope_theta": "each layer has a theta of its own.",
    "rope_scaling_layers": "only these layers use the scaling.",
}
"""Keys that no single rotation can follow."""
SLIDING, FULL = "sliding_attention", "full_attention"
LAYER_TYPES = {
    f"{kind}_attention"
    for kind in ("full", "sliding", "chunked", "window", "indexed", "linear", "hybrid_sliding", "reference_sliding")
} | {"hybrid", "hybrid_sliding", "main", "compress", "conv", "moe"}


@dataclass(frozen=True)
class Written:
    """What a config says: one dict, or one (None: no positions) per layer type; what stands around it; how many channels
    turn where it says so in channels; and whether pairs are neighbours. head_dim: None where it cannot be told."""

    layers: dict[str, Mapping[str, Any] | None]
    nested: bool
    around: Around
    dim: int | None
    interleaved: bool
    head_dim: int | None


def written(config: Mapping[str, Any], length: int | None, elsewhere: Collection[str]) -> Written:
    """Reads a whole config or a bare dict of rotary parameters. Raises RopeError with every problem."""
    data: dict[str, Any] = {"rope_parameters": config} if _is_bare(config) else dict(config)
    family = str(data.get("model_type") or "")
    problems = _top_problems(data, family, elsewhere)
    layers, nested = _layers(data, family, problems)
    if problems:
        raise RopeError(problems)
    around = Around(
        max_position_embeddings=data.get("max_position_embeddings"),
        original_max_position_embeddings=None if nested else data.get("original_max_position_embeddings"),
        theta=_theta(data, family),
        fraction=_first(data, FRACTIONS, FRACTION.get(family)),
        length=length,
        sections=SECTIONS.get(family),
        section_order=_section_order(family),
    )
    interleaved = data.get("rope_interleave")
    return Written(
        layers=layers,
        nested=nested,
        around=around,
        dim=data.get("rotary_dim"),
        interleaved=family in INTERLEAVED if interleaved is None else bool(interleaved),
        head_dim=_head_dim(data),
    )


def _section_order(family: str) -> SectionOrder:
    if family in INTERLEAVED_SECTIONS:
        return "interleaved"
    return "video" if family in VIDEO_SECTIONS else "contiguous"


def _is_bare(config: Mapping[str, Any]) -> bool:
    if {"rope_parameters", "rope_scaling", "model_type"} & set(config):
        return False
    return "rope_type" in config or "type" in config or _is_nested(config)


def _is_nested(parameters: Mapping[str, Any]) -> bool:
    return bool(parameters) and all(value is None or isinstance(value, Mapping) for value in parameters.values())


def _layers(
    data: Mapping[str, Any], family: str, problems: list[str]
) -> tuple[dict[str, Mapping[str, Any] | None], bool]:
    given = data.get("rope_scaling") or data.get("rope_parameters") or {}
    if not isinstance(given, Mapping):
        problems.append(f"rotary parameters must be a dict; these are {given!r}.")
        return {}, False
    if _is_nested(given):
        known = LAYER_TYPES | set(data.get("layer_types") or ())
        problems += [
            f"layer type {name!r} is unknown; {did_you_mean(name, known)}" for name in given if name not in known
        ]
        thetas = _thetas(data, family)
        return {
            name: {"rope_theta": thetas[name], **value} if value is not None and name in thetas else value
            for name, value in given.items()
        }, True
    mixed = [name for name, value in given.items() if isinstance(value, Mapping)]
    if mixed:
        problems.append(
            f"{', '.join(mixed)} hold dicts beside plain values. Give one dict for all, or one per layer type."
        )
    thetas = _thetas(data, family)
    if not thetas:
        return {"": given}, False
    everywhere = family in SCALED_EVERYWHERE or "local_rope_theta" in data
    scaling = {key: value for key, value in given.items() if key != "rope_theta"}
    return {
        SLIDING: {**(scaling if everywhere else {}), "rope_theta": thetas[SLIDING]},
        FULL: {"rope_theta": thetas[FULL], **given},
    }, True


def _thetas(data: Mapping[str, Any], family: str) -> dict[str, float]:
    """Of sliding and of full attention, where they differ and nothing else is said; {} where they do not."""
    local = _first(data, LOCAL_THETAS, None)
    if local is None and family not in LOCAL_GLOBAL:
        return {}
    usual = LOCAL_GLOBAL.get(family, (None, None))
    theta = _theta(data, family)
    return {SLIDING: local or usual[0] or theta, FULL: _first(data, THETAS, usual[1]) or theta}


def _top_problems(data: Mapping[str, Any], family: str, elsewhere: Collection[str]) -> list[str]:
    found = []
    if family in REFUSED:
        found.append(f"model_type={family!r}: {REFUSED[family]}. Write a scheme of your own.")
    known = READ | OF_THE_STACK | set(elsewhere)
    for key, value in data.items():
        if ("rope" in key or "rotary" in key) and key not in known and value not in (None, False):
            reason = BY_LAYER.get(key) or f"it is unknown; {did_you_mean(key, known)}"
            found.append(f"{key}={reprlib.repr(value)}: {reason} If you take care of it, say elsewhere=({key!r},).")
    one, other = data.get("rope_scaling"), data.get("rope_parameters")
    if one and other and one != other:
        found.append("rope_scaling and rope_parameters differ, and mean the same thing. Give one.")
    for names in (THETAS[:2], FRACTIONS):
        said = {name: data[name] for name in names if data.get(name) is not None}
        if len(set(said.values())) > 1:
            found.append(f"{' and '.join(f'{n}={v}' for n, v in said.items())} mean the same thing. Give one.")
    for name in ("max_position_embeddings", "original_max_position_embeddings", "rotary_dim"):
        value = data.get(name)
        whole = isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 and value % 1 == 0
        if value is not None and not whole:
            found.append(f"{name}={value!r} must be a whole number above 0.")
    if data.get("alibi"):
        found.append("alibi=True: this model has no rotary positions.")
    return found + _silent(data, family)


def _silent(data: Mapping[str, Any], family: str) -> list[str]:
    """A config that says nothing of rotary positions may have none."""
    if any(data.get(key) for key in READ - {"max_position_embeddings"}):
        return []
    if family in SCALED:
        return [f"model_type={family!r} stretches its frequencies by default, and rope_parameters is missing. Give it."]
    if not family or family in THETA or family in LOCAL_GLOBAL:
        return []
    inner = " It has a text_config: pass that." if "text_config" in data else ""
    return [
        f"nothing says that model_type={family!r} is rotary.{inner} If it is, give rope_parameters={{'rope_theta': 10000.0}}."
    ]


def _theta(data: Mapping[str, Any], family: str) -> float:
    attention = data.get("attn_config")  # DBRX
    inner = attention.get("rope_theta") if isinstance(attention, Mapping) else None
    return _first(data, THETAS[:2], inner or THETA.get(family, 10_000.0))


def _head_dim(data: Mapping[str, Any]) -> int | None:
    width, heads = data.get("hidden_size"), data.get("num_attention_heads")
    shared = width // heads if width and heads else None
    return data.get("qk_rope_head_dim") or data.get("head_dim") or shared


def _first(data: Mapping[str, Any], names: tuple[str, ...], default: Any) -> Any:
    return next((data[name] for name in names if data.get(name) is not None), default)
