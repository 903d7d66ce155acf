"""x-transformers' position flags -> the value of `position`: a list of scheme configs as plain dicts."""

from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

from x_positional.config.flags.reader import FlagReader, same
from x_positional.errors import shown
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.values import MAX_HEADS

SWITCHES = {
    "rotary": ("rotary_pos_emb", "rotary_xpos"),
    "polar": ("polar_pos_emb",),
    "alibi": ("alibi_pos_bias",),
    "t5": ("rel_pos_bias",),
    "dynamic": ("dynamic_pos_bias",),
    "forgetting": ("attn_data_dependent_alibi",),
    "cope": ("attn_use_cope", "cope"),
}
"""The flags that switch a family of schemes on; any of them suffices."""

DETAILS = {
    "rotary": (
        "rotary_emb_dim",
        "rotary_interpolation_factor",
        "rotary_base_rescale_factor",
        "rotate_num_heads",
        "attn_rotate_num_heads",
    ),
    "polar": ("polar_bias_uniform_init",),
    "alibi": ("alibi_num_heads", "rel_pos_kwargs"),
    "t5": ("rel_pos_num_buckets", "rel_pos_max_distance"),
    "dynamic": ("dynamic_pos_bias_log_distance", "dynamic_pos_bias_mlp_depth", "dynamic_pos_bias_norm"),
    "forgetting": ("attn_data_dependent_alibi_kwargs",),
    "cope": ("attn_cope_max_pos", "cope_max_pos"),
}
"""The flags that have an effect only while their family is on."""

EXCLUSIVE = (
    (("rotary", "polar"), "both rotate queries and keys. Keep one of them."),
    (
        ("alibi", "t5", "dynamic", "forgetting"),
        "each is a bias for the same distances. Keep one of them; to add several use a list in position=.",
    ),
)

TABLES = ("absolute", "sinusoidal", "scaled_sinusoidal")
"""Schemes that are added to the embeddings."""

KEEP_TABLE = ("alibi", "dynamic", "cope", "forgetting")
"""x-transformers keeps the absolute table beside these schemes and drops it silently beside the others."""


def position_of(read: FlagReader, kind: str, head_dim: int) -> Any:
    """The value of `position`, None where nothing was chosen. A given `position=` is passed through unchanged."""
    on = {family: [s for s in switches if read.value(s) is True] for family, switches in SWITCHES.items()}
    _check_details(read, on)
    if read.given.get("position") is not None:
        return _explicit(read, on)
    for families, why in EXCLUSIVE:
        clash = [read.prefix + on[family][0] for family in families if on[family]]
        if len(clash) > 1:
            read.problem(f"{' and '.join(clash)} cannot be combined: {why}")
    chosen = [build(read, kind, head_dim) for family, build in BUILDERS.items() if on[family]]
    if read.value("disable_abs_pos_emb") is True and not chosen:
        return [{"kind": "none"}]
    if read.value("disable_abs_pos_emb") is False and chosen:
        return [{"kind": "absolute"}, *chosen]
    return chosen or None


def _check_details(read: FlagReader, on: Mapping[str, list[str]]) -> None:
    needs = {name: SWITCHES[family][0] for family, names in DETAILS.items() for name in names if not on[family]}
    if "rotary_xpos" not in on["rotary"]:
        needs["rotary_xpos_scale_base"] = "rotary_xpos"
    explicit = read.given.get("position") is not None
    for name, switch in needs.items():
        if read.asked(name):
            way_out = "Put it into the config in position=" if explicit else "Switch that on"
            read.problem(
                f"{read.shown(name)} has no effect without {read.prefix}{switch}=True. {way_out}, or leave it out."
            )


def _explicit(read: FlagReader, on: Mapping[str, list[str]]) -> Any:
    position = read.given["position"]
    switches = [read.shown(name) for names in on.values() for name in names]
    if switches:
        read.problem(f"position= and {', '.join(switches)} both choose the scheme. Keep position= alone.")
    disable = read.given.get("disable_abs_pos_emb")
    if disable is not None and disable is bool(set(kinds_of(position)) & set(TABLES)):
        read.problem(
            f"{read.shown('disable_abs_pos_emb')} contradicts position={shown(position)}. Set it with position= alone."
        )
    return position


def kinds_of(position: Any) -> list[str | None]:
    """The scheme names in a value of `position`; None for entries without one."""
    if isinstance(position, str):
        return [position]
    if isinstance(position, list | tuple):
        return [kind for entry in position for kind in kinds_of(entry)]
    if isinstance(position, Mapping):
        kind = position.get("kind")
        return [kind if isinstance(kind, str) else None]
    if isinstance(position, SchemeConfig):
        return [position.kind]
    return [None]


def with_table(position: Any, read: FlagReader) -> Any:
    """`position` after the wrapper's `use_abs_pos_emb` and `scaled_sinu_pos_emb`."""
    wanted, scaled = read.given.get("use_abs_pos_emb"), read.value("scaled_sinu_pos_emb") is True
    disable = read.given.get("disable_abs_pos_emb")
    if disable is not None and disable is (True if scaled else wanted):
        asked = "scaled_sinu_pos_emb" if scaled else "use_abs_pos_emb"
        read.problem(f"{read.shown(asked)} contradicts {read.shown('disable_abs_pos_emb')}. Give one of them.")
        return position
    if wanted is False:
        return _without_table(position, scaled, read)
    if wanted is not True and not scaled:
        return position
    table = {"kind": "scaled_sinusoidal" if scaled else "absolute"}
    if position is None:
        return [table]
    kinds = kinds_of(position)
    if not scaled and set(kinds) & set(TABLES):
        return position
    many = isinstance(position, list | tuple)
    if many and kinds[:1] == ["absolute"]:
        return [table, *position[1:]]
    if many and set(kinds) <= set(KEEP_TABLE):
        return [table, *position]
    flag = read.shown("scaled_sinu_pos_emb" if scaled else "use_abs_pos_emb")
    read.problem(
        f"{flag} beside position={shown(position)} is ambiguous: x-transformers drops the table beside RoPE, PoPE and T5 "
        f"silently. For both, put {table['kind']!r} into position=, or give the layers "
        f"{read.prefix}disable_abs_pos_emb=False; for the scheme alone leave the flag out."
    )
    return position


def _without_table(position: Any, scaled: bool, read: FlagReader) -> Any:
    if position is None and not scaled:
        return [{"kind": "none"}]
    if scaled or set(kinds_of(position)) & set(TABLES):
        asked = read.shown("scaled_sinu_pos_emb") if scaled else f"position={shown(position)}"
        read.problem(f"{read.shown('use_abs_pos_emb')} contradicts {asked}. Give one of them.")
    return position


def _rotary(read: FlagReader, kind: str, head_dim: int) -> dict[str, Any]:
    xpos = read.value("rotary_xpos") is True
    width = read.value("rotary_emb_dim")
    if width is None:
        width = head_dim // 2
        if width % 2:
            read.problem(
                f"{read.prefix}rotary_pos_emb rotates half of each head, and half of head_dim={head_dim} is odd. "
                f"Give {read.prefix}rotary_emb_dim, an even number up to {head_dim}."
            )
    config: dict[str, Any] = {"kind": "xpos" if xpos else "rope", "dim": width, "interleaved": True}
    heads = read.one_of("rotate_num_heads", "attn_rotate_num_heads")
    if heads is not None:
        config["heads"] = heads
    for field in ("interpolation_factor", "base_rescale_factor"):
        if read.asked("rotary_" + field):
            config[field] = read.value("rotary_" + field)
    if xpos:
        config["scale_base"] = read.value("rotary_xpos_scale_base")
    return config


def _polar(read: FlagReader, kind: str, head_dim: int) -> dict[str, Any]:
    return {"kind": "polar", "uniform_init": read.value("polar_bias_uniform_init")}


def _alibi(read: FlagReader, kind: str, head_dim: int) -> dict[str, Any]:
    config: dict[str, Any] = {"kind": "alibi", "variant": "causal" if kind == "decoder" else "symmetric"}
    if read.value("alibi_num_heads") is not None:
        config["heads"] = read.value("alibi_num_heads")
    extra = _only(read, "rel_pos_kwargs", "slopes")
    if extra.get("slopes") is not None:
        try:
            config["slopes"] = [float(slope) for slope in islice(iter(extra["slopes"]), MAX_HEADS + 1)]
        except Exception:  # a list, a tensor or an array, of anything
            read.problem(f"{read.prefix}rel_pos_kwargs has slopes={shown(extra['slopes'])}; give one number per head.")
    return config


def _t5(read: FlagReader, kind: str, head_dim: int) -> dict[str, Any]:
    return {
        "kind": "t5",
        "num_buckets": read.value("rel_pos_num_buckets"),
        "max_distance": read.value("rel_pos_max_distance"),
        "scale": head_dim**0.5,
    }


def _dynamic(read: FlagReader, kind: str, head_dim: int) -> dict[str, Any]:
    return {
        "kind": "dynamic",
        "depth": read.value("dynamic_pos_bias_mlp_depth"),
        "log_distance": read.value("dynamic_pos_bias_log_distance"),
        "norm": read.value("dynamic_pos_bias_norm"),
    }


def _forgetting(read: FlagReader, kind: str, head_dim: int) -> dict[str, Any]:
    extra = _only(read, "attn_data_dependent_alibi_kwargs", "bias_init", post_log_scale=1.0)
    return {"kind": "forgetting", "bias_init": extra.get("bias_init", 5.0)}


def _cope(read: FlagReader, kind: str, head_dim: int) -> dict[str, Any]:
    return {"kind": "cope", "max_pos": read.one_of("attn_cope_max_pos", "cope_max_pos")}


def _only(read: FlagReader, name: str, *known: str, **fixed: Any) -> Mapping[str, Any]:
    """A dict flag, of which only some keys are supported; `fixed` keys must have the value given."""
    value = read.value(name)
    if not isinstance(value, Mapping):
        read.problem(f"{read.shown(name)} must be a dict with {', '.join(known)}.")
        return {}
    for key in value:
        if key not in known and not (key in fixed and same(value[key], fixed[key])):
            read.problem(
                f"{read.prefix}{name} has {key}={shown(value[key])}; only {', '.join(known)} is supported in it."
            )
    return value


BUILDERS: dict[str, Callable[[FlagReader, str, int], dict[str, Any]]] = {
    "rotary": _rotary,
    "polar": _polar,
    "alibi": _alibi,
    "t5": _t5,
    "dynamic": _dynamic,
    "forgetting": _forgetting,
    "cope": _cope,
}
