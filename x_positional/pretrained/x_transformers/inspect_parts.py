"""The flags of attention, feedforward and norms, read from module instances of x-transformers."""

import math
from typing import Any

from torch import nn

from x_positional.pretrained.x_transformers.module_specs import ACTIVATIONS, NORMS, SOFTMAXES, XT
from x_positional.pretrained.x_transformers.reader import Attributes, ModuleReader, class_of, name_of

EPS = 1e-5


def attention_flags(reader: ModuleReader, module: nn.Module, path: str, stack: Attributes) -> dict[str, Any]:
    """The flags of one attention, without the prefix `attn_`."""
    attrs = reader.attributes(module, path)
    attend = reader.attributes(attrs["attend"], f"{path}.attend") if attrs else {}
    if not attrs or not attend:
        return {}
    heads, head_dim = stack["attn_heads"], stack["attn_dim_head"]
    flags = reader.flags(module, attrs) | reader.flags(attrs["attend"], attend)
    flags["kv_heads"] = None if attrs["kv_heads"] == heads else attrs["kv_heads"]
    if attrs["sublayer_dropout"] is not None:
        flags["sublayer_dropout"] = reader.dropout(attrs["sublayer_dropout"], f"{path}.sublayer_dropout")
    flags["qk_rmsnorm"] = attrs["q_rmsnorm"] is not None
    flags["k_rmsnorm"] = attrs["k_rmsnorm"] is not None and not flags["qk_rmsnorm"]
    scale = head_dim**-0.5
    if flags["qk_norm"]:
        flags |= {"qk_norm_scale": attrs["qk_norm_scale"], "qk_norm_groups": attrs["qk_norm_groups"]}
        scale = attrs["qk_norm_scale"]
    if flags["softclamp_logits"]:
        flags["logit_softclamp_value"] = attend["logit_softclamp_value"]
    reader.expect(attend["scale"] == scale, path, f"multiplies scores by {attend['scale']}, but its flags give {scale}")
    reader.expect(attrs["heads"] == heads, path, f"has {attrs['heads']} heads, but the stack has {heads}")
    flags["learned_value_residual_mix"] = class_of(attrs["to_value_residual_mix"]) != XT + "always"
    return flags | _softmax(reader, attend["attn_fn"], path) | _position_flags(reader, attrs, attend, path)


def _softmax(reader: ModuleReader, function: Any, path: str) -> dict[str, Any]:
    name = name_of(function)
    if name in SOFTMAXES:
        return {SOFTMAXES[name]: True}
    inner = function
    bound = dict(inner.keywords) if name == "softmax" else {}
    if name != "softmax" or bound.get("dim") not in (-1, -2):
        return {"custom_attn_fn": name or function}
    return {}


def _position_flags(reader: ModuleReader, attrs: Attributes, attend: Attributes, path: str) -> dict[str, Any]:
    """The flags of CoPE and forget gates, which are modules of each attention."""
    flags: dict[str, Any] = {"use_cope": False, "data_dependent_alibi": False}
    cope, gates = attend["cope"], attrs["data_dependent_alibi"]
    if cope is not None and (inner := reader.attributes(cope, f"{path}.attend.cope")):
        flags |= {"use_cope": True, **reader.flags(cope, inner)}
    if gates is not None:
        flags["data_dependent_alibi"] = True
        if class_of(gates) == XT + "PerRowDataDependentAlibi":
            flags["data_dependent_alibi_per_row"] = True
        elif inner := reader.attributes(gates, f"{path}.data_dependent_alibi"):
            factor = inner["post_log_scale"]
            flags["data_dependent_alibi_kwargs"] = {} if factor == 1.0 else {"post_log_scale": factor}
    return flags


def feedforward_flags(reader: ModuleReader, module: nn.Module, path: str, dim: int) -> dict[str, Any]:
    """The flags of one feedforward, with the prefix `ff_`."""
    attrs = reader.attributes(module, path)
    if not attrs:
        return {}
    parts = list(attrs["ff"])
    linear = [i for i, part in enumerate(parts) if class_of(part) == "torch.Linear"]
    if len(linear) != 1 or not linear[0]:
        reader.unsupported(path, "does not have the layers of x-transformers' feedforward")
        return {}
    down, between, after = parts[linear[0]], parts[1 : linear[0]], parts[linear[0] + 1 :]
    flags: dict[str, Any] = {"ff_no_bias": down.bias is None, "ff_mult": multiple(down.in_features, dim)}
    if len(between) == 2 and class_of(between[0]) == XT + "LayerNorm":
        flags["ff_post_act_ln"] = True
        between = between[1:]
    flags["ff_dropout"] = max([reader.dropout(part, path) for part in between], default=0.0)
    flags["ff_sublayer_dropout"] = max([reader.dropout(part, path) for part in after], default=0.0)
    return flags | _activation_flags(reader, parts[0], path)


def multiple(inner: int, dim: int) -> float:
    """The ff_mult for which int(dim * ff_mult) is the inner width."""
    mult = inner / dim
    if int(dim * mult) != inner:
        mult = math.nextafter(mult, math.inf)
    return int(mult) if mult == int(mult) else mult


def _activation_flags(reader: ModuleReader, part: nn.Module, path: str) -> dict[str, Any]:
    flags: dict[str, Any] = {}
    if class_of(part) == XT + "GLU":
        attrs = reader.attributes(part, f"{path}.ff.0")
        if not attrs:
            return {}
        flags["ff_glu"], activation = True, attrs["act"]
        flags["ff_glu_mult_bias"] = isinstance(attrs["mult_bias"], nn.Parameter)
        if attrs["up_softclamp_value"] is not None:
            return {**flags, "ff_glu_softclamp": True}
    elif reader.is_instance(part, f"{path}.ff.0", "torch_einops_utils.Sequential", "torch.Sequential"):
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


def norm_flags(reader: ModuleReader, norms: dict[str, nn.Module], dim: int) -> dict[str, Any]:
    """The flags that the norms of a stack share.

    Args:
        reader: collects what is unsupported.
        norms: path -> norm, for every norm of the stack.
        dim: width of the stack.
    """
    classes = {class_of(norm) for norm in norms.values()}
    flags: dict[str, Any] = {flag: True for name in classes if (flag := NORMS.get(name)) is not None}
    if len(classes) > 1:
        reader.unsupported("the stack", f"has norms of several kinds: {', '.join(sorted(classes))}")
    offsets = set()
    for path, norm in norms.items():
        if NORMS.get(class_of(norm), "use_scalenorm") not in (
            None,
            "use_scalenorm",
            "use_rmsnorm",
            "use_simple_rmsnorm",
        ):
            continue
        attrs = reader.attributes(norm, path)
        if attrs:
            _check_norm(reader, attrs, path, dim)
            offsets |= {attrs["unit_offset"]} if "unit_offset" in attrs else set()
    if len(offsets) > 1:
        reader.unsupported("the stack", "mixes norms with and without a unit offset")
    return {**flags, "norm_add_unit_offset": False} if offsets == {False} else flags


def _check_norm(reader: ModuleReader, attrs: Attributes, path: str, dim: int) -> None:
    if "scale" in attrs:
        reader.expect(
            attrs["scale"] == dim**0.5, path, f"has scale={attrs['scale']}, but x-transformers uses sqrt(dim)"
        )
    if "ln" in attrs and reader.is_instance(attrs["ln"], f"{path}.ln", "torch.LayerNorm"):
        inner = attrs["ln"]
        right = inner.eps == EPS and not inner.elementwise_affine and inner.normalized_shape == (dim,)
        reader.expect(
            right, f"{path}.ln", f"is {inner}, but x-transformers uses LayerNorm(dim, elementwise_affine=False)"
        )


def plain_norm(reader: ModuleReader, module: nn.Module, path: str, dim: int) -> bool:
    """Whether an optional LayerNorm is there; Identity if not."""
    if not reader.is_instance(module, path, XT + "LayerNorm", "torch.Identity", "torch_einops_utils.Identity"):
        return False
    attrs = reader.attributes(module, path) if class_of(module) == XT + "LayerNorm" else {}
    if attrs:
        _check_norm(reader, attrs, path, dim)
        reader.expect(not attrs["unit_offset"], path, "has a unit offset")
    return bool(attrs)
