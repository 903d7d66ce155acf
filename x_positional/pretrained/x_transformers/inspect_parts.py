"""The parts of a living block: attention, feedforward, norms, in x-transformers' flags without their prefix."""

import math
from typing import Any

from torch import nn

from x_positional.pretrained.x_transformers.module_specs import ACTIVATIONS, NORMS, SOFTMAXES, XT
from x_positional.pretrained.x_transformers.reader import Members, Reader, class_of, name_of

EPS = 1e-5


def attention_flags(read: Reader, module: nn.Module, path: str, stack: Members) -> dict[str, Any]:
    """The flags of one attention, as they are after `attn_`."""
    held = read.members(module, path)
    attend = read.members(held["attend"], f"{path}.attend") if held else {}
    if not held or not attend:
        return {}
    heads, head_dim = stack["attn_heads"], stack["attn_dim_head"]
    flags = read.said(module, held) | read.said(held["attend"], attend)
    flags["kv_heads"] = None if held["kv_heads"] == heads else held["kv_heads"]
    if held["sublayer_dropout"] is not None:
        flags["sublayer_dropout"] = read.dropout(held["sublayer_dropout"], f"{path}.sublayer_dropout")
    flags["qk_rmsnorm"] = held["q_rmsnorm"] is not None
    flags["k_rmsnorm"] = held["k_rmsnorm"] is not None and not flags["qk_rmsnorm"]
    scale = head_dim**-0.5
    if flags["qk_norm"]:
        flags |= {"qk_norm_scale": held["qk_norm_scale"], "qk_norm_groups": held["qk_norm_groups"]}
        scale = held["qk_norm_scale"]
    if flags["softclamp_logits"]:
        flags["logit_softclamp_value"] = attend["logit_softclamp_value"]
    read.expect(attend["scale"] == scale, path, f"multiplies scores by {attend['scale']}, and its flags say {scale}")
    read.expect(held["heads"] == heads, path, f"has {held['heads']} heads, and the stack {heads}")
    flags["learned_value_residual_mix"] = class_of(held["to_value_residual_mix"]) != XT + "always"
    return flags | _softmax(read, attend["attn_fn"], path) | _inside(read, held, attend, path)


def _softmax(read: Reader, function: Any, path: str) -> dict[str, Any]:
    name = name_of(function)
    if name in SOFTMAXES:
        return {SOFTMAXES[name]: True}
    inner = function
    bound = dict(inner.keywords) if name == "softmax" else {}
    if name != "softmax" or bound.get("dim") not in (-1, -2):
        return {"custom_attn_fn": name or function}
    return {}


def _inside(read: Reader, held: Members, attend: Members, path: str) -> dict[str, Any]:
    """CoPE and forget gates, which each attention has of its own."""
    flags: dict[str, Any] = {"use_cope": False, "data_dependent_alibi": False}
    cope, gates = attend["cope"], held["data_dependent_alibi"]
    if cope is not None and (inner := read.members(cope, f"{path}.attend.cope")):
        flags |= {"use_cope": True, **read.said(cope, inner)}
    if gates is not None:
        flags["data_dependent_alibi"] = True
        if class_of(gates) == XT + "PerRowDataDependentAlibi":
            flags["data_dependent_alibi_per_row"] = True
        elif inner := read.members(gates, f"{path}.data_dependent_alibi"):
            factor = inner["post_log_scale"]
            flags["data_dependent_alibi_kwargs"] = {} if factor == 1.0 else {"post_log_scale": factor}
    return flags


def feedforward_flags(read: Reader, module: nn.Module, path: str, dim: int) -> dict[str, Any]:
    """The flags of one feedforward, `ff_` included."""
    held = read.members(module, path)
    if not held:
        return {}
    parts = list(held["ff"])
    linear = [i for i, part in enumerate(parts) if class_of(part) == "torch.Linear"]
    if len(linear) != 1 or not linear[0]:
        read.strange(path, "has another order of parts than x-transformers' feedforward")
        return {}
    down, between, after = parts[linear[0]], parts[1 : linear[0]], parts[linear[0] + 1 :]
    flags: dict[str, Any] = {"ff_no_bias": down.bias is None, "ff_mult": multiple(down.in_features, dim)}
    if len(between) == 2 and class_of(between[0]) == XT + "LayerNorm":
        flags["ff_post_act_ln"] = True
        between = between[1:]
    flags["ff_dropout"] = max([read.dropout(part, path) for part in between], default=0.0)
    flags["ff_sublayer_dropout"] = max([read.dropout(part, path) for part in after], default=0.0)
    return flags | _way_in(read, parts[0], path)


def multiple(inner: int, dim: int) -> float:
    """The ff_mult whose product with dim, cut to a whole number, is the inner width."""
    mult = inner / dim
    if int(dim * mult) != inner:
        mult = math.nextafter(mult, math.inf)
    return int(mult) if mult == int(mult) else mult


def _way_in(read: Reader, part: nn.Module, path: str) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    if class_of(part) == XT + "GLU":
        held = read.members(part, f"{path}.ff.0")
        if not held:
            return {}
        flags["ff_glu"], activation = True, held["act"]
        flags["ff_glu_mult_bias"] = isinstance(held["mult_bias"], nn.Parameter)
        if held["up_softclamp_value"] is not None:
            return {**flags, "ff_glu_softclamp": True}
    elif read.is_a(part, f"{path}.ff.0", "torch_einops_utils.Sequential", "torch.Sequential"):
        first, *rest = part.children()
        activation = rest[-1] if rest else first
        if len(rest) == 2:
            flags["ff_softclamp_value"] = vars(rest[0]).get("value", True)
    else:
        return {}
    name = class_of(activation)
    if name not in ACTIVATIONS:
        return {**flags, "ff_custom_activation": name}
    chosen = ACTIVATIONS[name]
    if name == "torch.GELU":
        exact = activation.approximate == "none"
        return flags if exact else {**flags, "ff_custom_activation": f"GELU(approximate={activation.approximate!r})"}
    return flags if chosen is None else {**flags, chosen: True}


def norm_flags(read: Reader, norms: dict[str, nn.Module], dim: int) -> dict[str, Any]:
    """The flags that all norms of a stack say together. norms: by where they are."""
    classes = {class_of(norm) for norm in norms.values()}
    flags: dict[str, Any] = {flag: True for name in classes if (flag := NORMS.get(name)) is not None}
    if len(classes) > 1:
        read.strange("the stack", f"has norms of several kinds: {', '.join(sorted(classes))}")
    offsets = set()
    for path, norm in norms.items():
        if NORMS.get(class_of(norm), "use_scalenorm") not in (
            None,
            "use_scalenorm",
            "use_rmsnorm",
            "use_simple_rmsnorm",
        ):
            continue
        held = read.members(norm, path)
        if held:
            _check_norm(read, held, path, dim)
            offsets |= {held["unit_offset"]} if "unit_offset" in held else set()
    if len(offsets) > 1:
        read.strange("the stack", "has norms with a unit offset and norms without")
    return {**flags, "norm_add_unit_offset": False} if offsets == {False} else flags


def _check_norm(read: Reader, held: Members, path: str, dim: int) -> None:
    if "scale" in held:
        read.expect(held["scale"] == dim**0.5, path, f"multiplies by {held['scale']}, and not by the root of its width")
    if "ln" in held and read.is_a(held["ln"], f"{path}.ln", "torch.LayerNorm"):
        inner = held["ln"]
        right = inner.eps == EPS and not inner.elementwise_affine and inner.normalized_shape == (dim,)
        read.expect(right, f"{path}.ln", f"is {inner}, and not the LayerNorm of x-transformers")


def plain_norm(read: Reader, module: nn.Module, path: str, dim: int) -> bool:
    """Whether a LayerNorm stands where there may be none."""
    if not read.is_a(module, path, XT + "LayerNorm", "torch.Identity", "torch_einops_utils.Identity"):
        return False
    held = read.members(module, path) if class_of(module) == XT + "LayerNorm" else {}
    if held:
        _check_norm(read, held, path, dim)
        read.expect(not held["unit_offset"], path, "has a unit offset")
    return bool(held)
