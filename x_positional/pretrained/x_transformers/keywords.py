"""Translates keywords of x-transformers into flags of x_positional where the same keyword has another meaning.

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
"""Flags that affect only the initial weights, or that the weights reveal."""
ROTATING = ("rotary_pos_emb", "rotary_xpos", "polar_pos_emb")
DROPS_TABLE = ("rel_pos_bias", *ROTATING)
"""Flags with which x-transformers drops the absolute position table."""
POSITIONAL = (*DROPS_TABLE, "alibi_pos_bias", "dynamic_pos_bias")
"""Flags that make attention depend on the positions of tokens."""
SELF_ONLY = ("max_attend_past", "use_cope", "data_dependent_alibi")
"""Settings of self-attention that x-transformers applies to cross-attention too."""


def head_order(heads: int, kv_heads: int) -> list[int]:
    """[H] the query head of x-transformers that becomes each query head here.

    Query head h shares key head h % G in x-transformers, and key head h // (H / G) in x_positional.
    """
    return [head for group in range(kv_heads) for head in range(group, heads, kv_heads)]


def heads_of(flags: Mapping[str, Any]) -> tuple[int, int]:
    """(H, G) of a stack's flags."""
    heads = flags.get("heads", 8)
    return heads, 1 if flags.get("attn_one_kv_head") else flags.get("attn_kv_heads") or heads


def translate_layer_flags(kind: str, given: Mapping[str, Any], problems: list[str], prefix: str = "") -> Flags:
    """The x_positional flags of a stack.

    Args:
        kind: decoder, encoder or cross_attender.
        given: keywords of x-transformers.
        problems: keywords that cannot be translated are appended here.
        prefix: `enc_` or `dec_` inside an XTransformer, for messages.
    """
    own = {name for name, flag in PLACES["AttentionLayers"].items() if flag.own}
    problems += [f"{prefix}{name} is not a keyword of x-transformers." for name in given if name in own]
    flags = {name: value for name, value in given.items() if name not in INITIAL | own}
    if flags.get("depth_scale_residual") is True:  # True scales only the initial weights; a number scales the residual
        del flags["depth_scale_residual"]
    if flags.get("cross_attend") and kind != "cross_attender":
        _self_only(flags, problems, prefix)
    rotating = [name for name in ROTATING if flags.get(name)]
    if flags.get("attn_use_cope") and rotating:
        problems.append(
            f"{prefix}attn_use_cope with {prefix}{rotating[0]}: x-transformers computes CoPE from rotated queries, "
            "x_positional from queries before the rotation."
        )
    heads, kv_heads = heads_of(flags)
    if kv_heads != heads and flags.get("polar_pos_emb"):
        problems.append(
            f"{prefix}polar_pos_emb with fewer key heads than query heads: x-transformers learns one phase per query head, "
            "x_positional one per key head."
        )
    if 1 < kv_heads < heads and flags.get("alibi_pos_bias"):
        _reorder_slopes(flags, heads, kv_heads, problems, prefix)
    return flags


def _self_only(flags: Flags, problems: list[str], prefix: str) -> None:
    for name in SELF_ONLY:
        both = flags.get(f"attn_{name}")
        crossed = flags.pop(f"cross_attn_{name}", both)
        if crossed is not None and crossed is not False:
            off = False if both is True else None
            problems.append(
                f"{prefix}attn_{name}={both!r} also applies to cross-attention in x-transformers, where distances between two "
                f"sequences are undefined. Only a model made with {prefix}cross_attn_{name}={off} can be converted."
            )


def _reorder_slopes(flags: Flags, heads: int, kv_heads: int, problems: list[str], prefix: str) -> None:
    """Put ALiBi slopes into the order of grouped heads here."""
    count = flags.pop("alibi_num_heads", None) or heads
    slopes = list(flags.get("rel_pos_kwargs", {}).get("slopes") or alibi_slopes(count))
    slopes += [0.0] * (heads - len(slopes))
    reordered = [slopes[i] for i in head_order(heads, kv_heads)]
    while reordered and not reordered[-1]:
        reordered.pop()
    if not all(reordered):
        problems.append(
            f"{prefix}alibi_num_heads={count} with {kv_heads} key heads: heads without a slope must be the last ones, and after "
            "reordering grouped heads they are not."
        )
    flags["rel_pos_kwargs"] = {**flags.get("rel_pos_kwargs", {}), "slopes": reordered}


def decide_absolute_table(layers: Flags, wrapper: Flags, *, sized: bool, always: bool = False) -> None:
    """Set `disable_abs_pos_emb` of the layers explicitly, from the flags of layers and wrapper.

    x-transformers drops the absolute table with rotary, polar and T5 embeddings and keeps it with all others;
    x_positional requires the choice to be explicit.

    Args:
        layers: flags of the layers, changed in place.
        wrapper: flags of the wrapper, changed in place.
        sized: the wrapper has a max_seq_len.
        always: the wrapper has a table in any case.
    """
    off = layers.pop("disable_abs_pos_emb", None)
    off = any(layers.get(name) for name in DROPS_TABLE) if off is None else off
    used, scaled = wrapper.pop("use_abs_pos_emb", True), wrapper.pop("scaled_sinu_pos_emb", False)
    table = always or (sized and used and not off)
    layers["disable_abs_pos_emb"] = not table
    if table and scaled:
        wrapper["scaled_sinu_pos_emb"] = True


def split_sides(flags: Mapping[str, Any]) -> tuple[Flags, dict[str, Flags]]:
    """(keywords without a prefix, {"enc_": keywords, "dec_": keywords}) of an XTransformer."""
    sides: dict[str, Flags] = {"enc_": {}, "dec_": {}}
    rest: Flags = {}
    for name, value in flags.items():
        if name[:4] in sides:
            sides[name[:4]][name[4:]] = value
        else:
            rest[name] = value
    return rest, sides
