"""Finds the RoPE parameters in a whole `config.json` of Hugging Face: one dict, or one per layer type."""

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
from x_positional.pretrained.rope.parameters import ConfigContext
from x_positional.schemes.rotary.axes import SectionOrder

THETAS = ("rope_theta", "rotary_emb_base", "global_rope_theta")
FRACTIONS = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rope_percent", "rotary_emb_fraction")
LOCAL_THETAS = ("rope_local_base_freq", "local_rope_theta")
READ_KEYS = {
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
STACK_KEYS = {"no_rope_layers", "no_rope_layer_interval"}
"""Keys that select the layers that use RoPE, which is up to the stack and not to `Rope`."""
PER_LAYER_KEYS = {
    "layer_rope_theta": "it sets a different theta for each layer.",
    "rope_scaling_layers": "it applies the scaling to these layers only.",
}
"""Keys that one `Rope` for all layers cannot express."""
NEUTRAL: Mapping[str, float] = {"rotary_scaling_factor": 1}
"""Keys that are not read -> the value without effect."""
SLIDING, FULL = "sliding_attention", "full_attention"
LAYER_TYPES = {
    f"{kind}_attention"
    for kind in ("full", "sliding", "chunked", "window", "indexed", "linear", "hybrid_sliding", "reference_sliding")
} | {"hybrid", "hybrid_sliding", "main", "compress", "conv", "moe"}


@dataclass(frozen=True)
class RopeSource:
    """The RoPE parameters of a config and everything needed to read them."""

    layers: dict[str, Mapping[str, Any] | None]
    """Layer type -> parameters, None for no position scheme; a single key "" where all layers share one dict."""
    nested: bool
    """Parameters are given per layer type."""
    context: ConfigContext
    """Values from the rest of the config."""
    dim: int | None
    """Rotated channels, where the config sets them as a count (`rotary_dim`)."""
    interleaved: bool
    """Pairs are neighbouring channels."""
    head_dim: int | None
    """None if the config does not contain it."""


def read_config_json(config: Mapping[str, Any], length: int | None, ignore: Collection[str]) -> RopeSource:
    """Read a whole config, or a dict of RoPE parameters alone. Raises RopeError with every problem."""
    data: dict[str, Any] = {"rope_parameters": config} if _is_bare(config) else dict(config)
    family = str(data.get("model_type") or "")
    problems = _top_problems(data, family, ignore)
    layers, nested = _layers(data, family, problems)
    if problems:
        raise RopeError(problems)
    context = ConfigContext(
        max_position_embeddings=data.get("max_position_embeddings"),
        original_max_position_embeddings=None if nested else data.get("original_max_position_embeddings"),
        theta=_theta(data, family),
        fraction=_first(data, FRACTIONS, FRACTION.get(family)),
        length=length,
        sections=SECTIONS.get(family),
        section_order=_section_order(family),
    )
    interleaved = data.get("rope_interleave")
    return RopeSource(
        layers=layers,
        nested=nested,
        context=context,
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
        problems.append(f"RoPE parameters must be a dict, got {given!r}.")
        return {}, False
    if _is_nested(given):
        known = LAYER_TYPES | set(data.get("layer_types") or ())
        problems += [f"unknown layer type {name!r}; {did_you_mean(name, known)}" for name in given if name not in known]
        thetas = _thetas(data, family)
        return {
            name: {"rope_theta": thetas[name], **value} if value is not None and name in thetas else value
            for name, value in given.items()
        }, True
    mixed = [name for name, value in given.items() if isinstance(value, Mapping)]
    if mixed:
        problems.append(
            f"RoPE parameters mix dicts ({', '.join(mixed)}) and plain values. Use one dict for all layers, or one per layer type."
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
    """Theta of sliding and of full attention, where they differ; {} otherwise."""
    local = _first(data, LOCAL_THETAS, None)
    if local is None and family not in LOCAL_GLOBAL:
        return {}
    default = LOCAL_GLOBAL.get(family, (None, None))
    theta = _theta(data, family)
    return {SLIDING: local or default[0] or theta, FULL: _first(data, THETAS, default[1]) or theta}


def _top_problems(data: Mapping[str, Any], family: str, ignore: Collection[str]) -> list[str]:
    found = []
    if family in REFUSED:
        found.append(f"model_type={family!r} is unsupported: {REFUSED[family]}. Write a custom scheme for it.")
    known = READ_KEYS | STACK_KEYS | set(ignore)
    for key, value in data.items():
        harmless = value in (None, False) or (key in NEUTRAL and value == NEUTRAL[key])
        if ("rope" in key or "rotary" in key) and key not in known and not harmless:
            reason = PER_LAYER_KEYS.get(key) or f"unknown key; {did_you_mean(key, known)}"
            found.append(f"{key}={reprlib.repr(value)}: {reason} To ignore this key: ignore=({key!r},).")
    one, other = data.get("rope_scaling"), data.get("rope_parameters")
    if one and other and one != other:
        found.append("rope_scaling and rope_parameters mean the same thing but differ. Keep one.")
    for names in (THETAS[:2], FRACTIONS):
        given = {name: data[name] for name in names if data.get(name) is not None}
        if len(set(given.values())) > 1:
            found.append(
                f"{' and '.join(f'{n}={v}' for n, v in given.items())} mean the same thing but differ. Keep one."
            )
    for name in ("max_position_embeddings", "original_max_position_embeddings", "rotary_dim"):
        value = data.get(name)
        whole = isinstance(value, int | float) and not isinstance(value, bool) and value >= 1 and value % 1 == 0
        if value is not None and not whole:
            found.append(f"{name}={value!r} must be a positive integer.")
    if data.get("alibi"):
        found.append("alibi=True: this model uses ALiBi, not RoPE.")
    return found + _missing_problems(data, family)


def _missing_problems(data: Mapping[str, Any], family: str) -> list[str]:
    """Problems of a config without RoPE parameters: its model may scale its frequencies by default, or not use RoPE at all."""
    if family in SCALED and not (data.get("rope_parameters") or data.get("rope_scaling")):
        return [
            f"rope_parameters is missing, and model_type={family!r} scales its frequencies by default. Add rope_parameters."
        ]
    if any(data.get(key) for key in READ_KEYS - {"max_position_embeddings"}):
        return []
    if not family or family in THETA or family in LOCAL_GLOBAL:
        return []
    if "text_config" in data:
        return [f"no RoPE parameters in this config (model_type={family!r}). The config has a text_config: pass that."]
    return [
        f"no RoPE parameters in this config (model_type={family!r}). If the model uses RoPE, pass "
        "rope_parameters={'rope_theta': 10000.0}."
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
