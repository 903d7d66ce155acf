"""What keywords mean in x-transformers, said in the flags of this library, where the same word means something else.

H query heads, G key/value heads.
"""

from collections.abc import Mapping
from typing import Any

from x_positional.config.flags.table import PLACES
from x_positional.schemes import alibi_slopes

Flags = dict[str, Any]

INITIAL = {
    "verbose",
    "zero_init_branch_output",
    "attn_zero_init_output",
    "cross_attn_zero_init_output",
    "ff_zero_init_output",
    "attn_project_out",
}
"""What only new weights see, and what the weights themselves say."""
TURNING = ("rotary_pos_emb", "rotary_xpos", "polar_pos_emb")
DROPS_TABLE = ("rel_pos_bias", *TURNING)
"""Flags beside which x-transformers drops the absolute table."""
PLACING = (*DROPS_TABLE, "alibi_pos_bias", "dynamic_pos_bias")
"""Flags beside which it matters where a token stands."""
SELF_ONLY = {"max_attend_past": "bounds", "use_cope": "counts in", "data_dependent_alibi": "forgets in"}
"""Settings of attention that x-transformers gives to cross-attention too, and what they do there."""


def head_order(heads: int, kv_heads: int) -> list[int]:
    """[H] which of x-transformers' query heads ours is: theirs reads key head h % G, ours key head h // (H / G)."""
    return [head for group in range(kv_heads) for head in range(group, heads, kv_heads)]


def heads_of(flags: Mapping[str, Any]) -> tuple[int, int]:
    """H and G of a stack's flags."""
    heads = flags.get("heads", 8)
    return heads, 1 if flags.get("attn_one_kv_head") else flags.get("attn_kv_heads") or heads


def layers_meaning(kind: str, given: Mapping[str, Any], problems: list[str], prefix: str = "") -> Flags:
    """The flags of a stack. What cannot be said goes to `problems`."""
    own = {name for name, flag in PLACES["AttentionLayers"].items() if flag.own}
    problems += [f"{prefix}{name} is no keyword of x-transformers." for name in given if name in own]
    flags = {name: value for name, value in given.items() if name not in INITIAL | own}
    if flags.get("depth_scale_residual") is True:  # scales new weights; a number scales what blocks compute
        del flags["depth_scale_residual"]
    if flags.get("cross_attend") and kind != "cross_attender":
        _self_only(flags, problems, prefix)
    turning = [name for name in TURNING if flags.get(name)]
    if flags.get("attn_use_cope") and turning:
        problems.append(
            f"{prefix}attn_use_cope with {prefix}{turning[0]}: x-transformers counts with queries that are turned already, and "
            "CoPE here with queries as they are."
        )
    heads, kv_heads = heads_of(flags)
    if kv_heads != heads and flags.get("polar_pos_emb"):
        problems.append(
            f"{prefix}polar_pos_emb with fewer key heads than heads: x-transformers learns one phase per query head, and a key "
            "head here has one."
        )
    if 1 < kv_heads < heads and flags.get("alibi_pos_bias"):
        _alibi(flags, heads, kv_heads, problems, prefix)
    return flags


def _self_only(flags: Flags, problems: list[str], prefix: str) -> None:
    for name, does in SELF_ONLY.items():
        both = flags.get(f"attn_{name}")
        crossed = flags.pop(f"cross_attn_{name}", both)
        if crossed is not None and crossed is not False:
            off = False if both is True else None
            problems.append(
                f"{prefix}attn_{name}={both!r} {does} cross-attention too in x-transformers, where distances between two "
                f"sequences mean nothing. Only a model made with {prefix}cross_attn_{name}={off} has an equal here."
            )


def _alibi(flags: Flags, heads: int, kv_heads: int, problems: list[str], prefix: str) -> None:
    """Slopes belong to heads, and grouped heads come in another order here."""
    count = flags.pop("alibi_num_heads", None) or heads
    slopes = list(flags.get("rel_pos_kwargs", {}).get("slopes") or alibi_slopes(count))
    slopes += [0.0] * (heads - len(slopes))
    ours = [slopes[i] for i in head_order(heads, kv_heads)]
    while ours and not ours[-1]:
        ours.pop()
    if not all(ours):
        problems.append(
            f"{prefix}alibi_num_heads={count} with {kv_heads} key heads: the heads without a slope are not the last ones in the "
            "order of grouped heads here."
        )
    flags["rel_pos_kwargs"] = {**flags.get("rel_pos_kwargs", {}), "slopes": ours}


def settle_table(layers: Flags, wrapper: Flags, *, sized: bool, always: bool = False) -> None:
    """Say in the layers' flags whether there is an absolute table: x-transformers drops it beside rotary, polar and T5
    embeddings and keeps it beside the others, where this library asks. always: the wrapper has one in any case."""
    off = layers.pop("disable_abs_pos_emb", None)
    off = any(layers.get(name) for name in DROPS_TABLE) if off is None else off
    used, scaled = wrapper.pop("use_abs_pos_emb", True), wrapper.pop("scaled_sinu_pos_emb", False)
    table = always or (sized and used and not off)
    layers["disable_abs_pos_emb"] = not table
    if table and scaled:
        wrapper["scaled_sinu_pos_emb"] = True


def cut_sides(flags: Mapping[str, Any]) -> tuple[Flags, dict[str, Flags]]:
    """The keywords of an XTransformer without a prefix, and those of each side."""
    sides: dict[str, Flags] = {"enc_": {}, "dec_": {}}
    rest: Flags = {}
    for name, value in flags.items():
        if name[:4] in sides:
            sides[name[:4]][name[4:]] = value
        else:
            rest[name] = value
    return rest, sides
