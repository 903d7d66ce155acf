"""The flags of a stack of layers, read from a module instance of x-transformers."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from x_positional.config.flags.reader import same
from x_positional.pretrained.x_transformers.inspect_parts import attention_flags, feedforward_flags, norm_flags
from x_positional.pretrained.x_transformers.inspect_positions import position_flags
from x_positional.pretrained.x_transformers.keywords import DROPS_TABLE
from x_positional.pretrained.x_transformers.module_specs import BRANCH_WRAPPERS, RESIDUALS, XT
from x_positional.pretrained.x_transformers.reader import Attributes, ModuleReader, class_of, without_defaults

BLOCKS = (("a", "f"), ("a", "c", "f"), ("c", "f"))
"""Branches of a block in order: a self-attention, c cross-attention, f feedforward."""
DROPOUT = "cross_attn_tokens_dropout"
NONE = ("torch.Identity", "torch_einops_utils.Identity")


def stack_form(reader: ModuleReader, stack: nn.Module, path: str) -> dict[str, dict[str, Any]]:
    """{"Decoder": flags} of a stack, flags at their default left out."""
    attrs = reader.attributes(stack, path.rstrip("."))
    if not attrs:
        return {}
    types = tuple(attrs["layer_types"])
    flags = (
        reader.flags(stack, attrs) | _order(attrs, types) | position_flags(reader, attrs, path, attrs["attn_dim_head"])
    )
    flags |= _norm_flags(reader, attrs, path)
    branches = _branches(reader, attrs, path, flags)
    kind = "CrossAttender" if "a" not in types else "Decoder" if attrs["causal"] else "Encoder"
    of_kind = {
        name: _merged([attention_flags(reader, branch, where, attrs) for t, where, branch in branches if t == name])
        for name in "ac"
    }
    main, crossed = (of_kind["c"], {}) if kind == "CrossAttender" else (of_kind["a"], of_kind["c"])
    flags |= {f"attn_{name}": value for name, value in main.items()}
    flags |= {f"cross_attn_{name}": value for name, value in crossed.items() if not same(value, main.get(name))}
    feeds = [feedforward_flags(reader, branch, where, attrs["dim"]) for t, where, branch in branches if t == "f"]
    flags |= _merged(feeds) | _widths(reader, branches, attrs, kind)
    by_default = any(flags.get(name) for name in DROPS_TABLE)
    if bool(attrs["disable_abs_pos_emb"]) != by_default:
        flags["disable_abs_pos_emb"] = bool(attrs["disable_abs_pos_emb"])
    return {kind: _without_defaults(flags)}


def _without_defaults(flags: dict[str, Any]) -> dict[str, Any]:
    """Drop defaults, except flags of cross-attention: those are set only where they differ from self-attention."""
    kept = {n: v for n, v in flags.items() if n.startswith("cross_attn_") or n == "attn_project_out"}
    kept = kept if kept.get(DROPOUT) else {n: v for n, v in kept.items() if n != DROPOUT}
    return {
        **without_defaults({n: v for n, v in flags.items() if n not in (*kept, DROPOUT)}, "AttentionLayers"),
        **kept,
    }


def _order(attrs: Attributes, types: Sequence[str]) -> dict[str, Any]:
    """The flags of depth and of the order of branches."""
    flags: dict[str, Any] = {}
    order, dropouts = tuple(attrs["layers_execute_order"]), tuple(attrs["layer_dropouts"])
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
        return {**flags, "depth": attrs["depth"], "macaron": True}
    return {**flags, "depth": attrs["depth"], "custom_layers": tuple(types)}


def _branches(reader: ModuleReader, attrs: Attributes, path: str, flags: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """Kind, path and module of each branch; wrappers and residuals are added to `flags`."""
    found = []
    for i, (kind, entry) in enumerate(zip(attrs["layer_types"], attrs["layers"], strict=True)):
        _, branch, residual = entry
        where = f"{path}layers.{i}"
        if class_of(residual) in RESIDUALS:
            flags.setdefault(RESIDUALS[class_of(residual)], True)
        elif inner := reader.attributes(residual, f"{where}.2"):
            flags |= reader.flags(residual, inner)
        if class_of(branch) in BRANCH_WRAPPERS:
            if class_of(branch) != XT + "Scale" or attrs["residual_scale"] in (None, 1.0):
                flags[BRANCH_WRAPPERS[class_of(branch)]] = True
        elif reader.is_instance(branch, f"{where}.1", XT + ("FeedForward" if kind == "f" else "Attention")):
            found.append((kind, f"{where}.1", branch))
    return found


def _norm_flags(reader: ModuleReader, attrs: Attributes, path: str) -> dict[str, Any]:
    """The flags of norms and of layer integrators."""
    flags: dict[str, Any] = {}
    if any(module is not None for module in attrs["layer_integrators"]):
        flags["integrate_layers"] = True
    norms: dict[str, nn.Module] = {}
    expected = (attrs["pre_norm"], attrs["sandwich_norm"], not attrs["pre_norm"] or attrs["pre_and_post_norm"])
    for i, entry in enumerate(attrs["layers"]):
        present = tuple(norm is not None for norm in entry[0])
        norms |= {f"{path}layers.{i}.0.{n}": norm for n, norm in enumerate(entry[0]) if norm is not None}
        reader.expect(
            present == expected, f"{path}layers.{i}.0", "does not have the norms that pre_norm and sandwich_norm give"
        )
    if class_of(attrs["final_norm"]) not in NONE:
        norms[f"{path}final_norm"] = attrs["final_norm"]
        reader.expect(attrs["pre_norm"], f"{path}final_norm", "exists although pre_norm=False")
    elif attrs["pre_norm"] and not attrs["pre_and_post_norm"]:
        flags["pre_norm_has_final_norm"] = False
    return flags | norm_flags(reader, norms, attrs["dim"])


def _widths(reader: ModuleReader, branches: list[tuple[str, str, Any]], attrs: Attributes, kind: str) -> dict[str, Any]:
    """The flags that only weight shapes reveal: rotated heads, context width, value width."""
    flags: dict[str, Any] = {}
    for name, where, branch in branches:
        if name == "f":
            continue
        head_dim, kv_heads = attrs["attn_dim_head"], branch.kv_heads
        rows = branch.to_v.weight.shape[0]
        if rows != kv_heads * head_dim:
            flags["attn_value_dim_head"] = rows // kv_heads
        columns = branch.to_k.weight.shape[1]
        if columns != attrs["dim"] and not branch.use_latent_kv:
            flags["cross_attn_dim_context" if name == "c" else "attn_dim_context"] = columns
        if name == "a" and branch.rotate_num_heads != branch.heads:
            flags["rotate_num_heads"] = branch.rotate_num_heads
        bare = class_of(branch.to_out) in NONE
        reader.expect(not bare or rows == attrs["dim"], where, "has no output projection")
        if bare and attrs["attn_heads"] > 1:
            flags["attn_project_out"] = False
    return flags


def _merged(each: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The flags of several layers as one: a single value where all agree, else a tuple with one value per layer."""
    each = [flags for flags in each if flags]
    names = {name for flags in each for name in flags}
    out = {}
    for name in sorted(names):
        values = [flags.get(name) for flags in each]
        out[name] = values[0] if all(same(value, values[0]) for value in values) else tuple(values)
    return out
