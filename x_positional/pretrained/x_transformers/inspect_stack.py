"""A living stack of x-transformers, in its own flags."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from x_positional.config.flags.reader import same
from x_positional.pretrained.x_transformers.inspect_parts import attention_flags, feedforward_flags, norm_flags
from x_positional.pretrained.x_transformers.inspect_positions import position_flags
from x_positional.pretrained.x_transformers.keywords import DROPS_TABLE
from x_positional.pretrained.x_transformers.module_specs import AROUND, RESIDUALS, XT
from x_positional.pretrained.x_transformers.reader import Members, Reader, class_of, without_defaults

BLOCKS = (("a", "f"), ("a", "c", "f"), ("c", "f"))
"""Kinds of branches in the order in which they run: self-attention, cross-attention, feedforward."""
DROPOUT = "cross_attn_tokens_dropout"
NONE = ("torch.Identity", "torch_einops_utils.Identity")


def stack_form(read: Reader, stack: nn.Module, path: str) -> dict[str, dict[str, Any]]:
    """{"Decoder": flags} of a stack."""
    held = read.members(stack, path.rstrip("."))
    if not held:
        return {}
    types = tuple(held["layer_types"])
    flags = read.said(stack, held) | _order(held, types) | position_flags(read, held, path, held["attn_dim_head"])
    flags |= _around(read, held, path)
    branches = _branches(read, held, path, flags)
    kind = "CrossAttender" if "a" not in types else "Decoder" if held["causal"] else "Encoder"
    of_kind = {
        name: _together([attention_flags(read, branch, where, held) for t, where, branch in branches if t == name])
        for name in "ac"
    }
    main, crossed = (of_kind["c"], {}) if kind == "CrossAttender" else (of_kind["a"], of_kind["c"])
    flags |= {f"attn_{name}": value for name, value in main.items()}
    flags |= {f"cross_attn_{name}": value for name, value in crossed.items() if not same(value, main.get(name))}
    feeds = [feedforward_flags(read, branch, where, held["dim"]) for t, where, branch in branches if t == "f"]
    flags |= _together(feeds) | _widths(read, branches, held, kind)
    by_default = any(flags.get(name) for name in DROPS_TABLE)
    if bool(held["disable_abs_pos_emb"]) != by_default:
        flags["disable_abs_pos_emb"] = bool(held["disable_abs_pos_emb"])
    return {kind: _said(flags)}


def _said(flags: dict[str, Any]) -> dict[str, Any]:
    """Without defaults; what cross-attention says differs from self-attention, so it stays."""
    stays = {n: v for n, v in flags.items() if n.startswith("cross_attn_") or n == "attn_project_out"}
    stays = stays if stays.get(DROPOUT) else {n: v for n, v in stays.items() if n != DROPOUT}
    return {
        **without_defaults({n: v for n, v in flags.items() if n not in (*stays, DROPOUT)}, "AttentionLayers"),
        **stays,
    }


def _order(held: Members, types: Sequence[str]) -> dict[str, Any]:
    """How many blocks of which branches."""
    flags: dict[str, Any] = {}
    order, dropouts = tuple(held["layers_execute_order"]), tuple(held["layer_dropouts"])
    if order != tuple(range(len(types))):
        tied = order == tuple(range(len(types))) * (len(order) // len(types))
        flags |= {"weight_tie_layers": True} if tied else {"layers_execute_order": order}
    if any(dropouts):
        flags["layer_dropout"] = dropouts
    for block in BLOCKS:
        depth, rest = divmod(len(types), len(block))
        if not rest and tuple(types) == block * depth:
            return {**flags, "depth": depth, **({"cross_attend": True} if block == ("a", "c", "f") else {})}
    if "f" not in types:
        return {**flags, "depth": len(types), "only_attn": True}
    if types[0] == "f":
        return {**flags, "depth": held["depth"], "macaron": True}
    return {**flags, "depth": held["depth"], "custom_layers": tuple(types)}


def _branches(read: Reader, held: Members, path: str, flags: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Kind, path and module of each branch. What stands around a branch becomes a flag."""
    found = []
    for i, (kind, entry) in enumerate(zip(held["layer_types"], held["layers"], strict=True)):
        _, branch, residual = entry
        where = f"{path}layers.{i}"
        if class_of(residual) in RESIDUALS:
            flags.setdefault(RESIDUALS[class_of(residual)], True)
        elif inner := read.members(residual, f"{where}.2"):
            flags |= read.said(residual, inner)
        if class_of(branch) in AROUND:
            if class_of(branch) != XT + "Scale" or held["residual_scale"] in (None, 1.0):
                flags[AROUND[class_of(branch)]] = True
        elif read.is_a(branch, f"{where}.1", XT + ("FeedForward" if kind == "f" else "Attention")):
            found.append((kind, f"{where}.1", branch))
    return found


def _around(read: Reader, held: Members, path: str) -> dict[str, Any]:
    """Norms, and what joins blocks."""
    flags: dict[str, Any] = {}
    if any(module is not None for module in held["layer_integrators"]):
        flags["integrate_layers"] = True
    norms: dict[str, nn.Module] = {}
    wanted = (held["pre_norm"], held["sandwich_norm"], not held["pre_norm"] or held["pre_and_post_norm"])
    for i, entry in enumerate(held["layers"]):
        there = tuple(norm is not None for norm in entry[0])
        norms |= {f"{path}layers.{i}.0.{n}": norm for n, norm in enumerate(entry[0]) if norm is not None}
        read.expect(there == wanted, f"{path}layers.{i}.0", "has other norms than pre_norm and sandwich_norm say")
    if class_of(held["final_norm"]) not in NONE:
        norms[f"{path}final_norm"] = held["final_norm"]
        read.expect(held["pre_norm"], f"{path}final_norm", "stands after norms that follow the residual")
    elif held["pre_norm"] and not held["pre_and_post_norm"]:
        flags["pre_norm_has_final_norm"] = False
    return flags | norm_flags(read, norms, held["dim"])


def _widths(read: Reader, branches: list[tuple[str, str, Any]], held: Members, kind: str) -> dict[str, Any]:
    """What only shapes and single modules say: the heads that turn, the width of contexts and of values."""
    flags: dict[str, Any] = {}
    for name, where, branch in branches:
        if name == "f":
            continue
        head_dim, kv_heads = held["attn_dim_head"], branch.kv_heads
        rows = branch.to_v.weight.shape[0]
        if rows != kv_heads * head_dim:
            flags["attn_value_dim_head"] = rows // kv_heads
        columns = branch.to_k.weight.shape[1]
        if columns != held["dim"] and not branch.use_latent_kv:
            flags["cross_attn_dim_context" if name == "c" else "attn_dim_context"] = columns
        if name == "a" and branch.rotate_num_heads != branch.heads:
            flags["rotate_num_heads"] = branch.rotate_num_heads
        bare = class_of(branch.to_out) in NONE
        read.expect(not bare or rows == held["dim"], where, "has no output projection")
        if bare and held["attn_heads"] > 1:
            flags["attn_project_out"] = False
    return flags


def _together(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One value where all agree, else one value per layer."""
    each = [flags for flags in each if flags]
    names = {name for flags in each for name in flags}
    out = {}
    for name in sorted(names):
        values = [flags.get(name) for flags in each]
        out[name] = values[0] if all(same(value, values[0]) for value in values) else tuple(values)
    return out
