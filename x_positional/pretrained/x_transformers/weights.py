"""Loads a state dict of x-transformers into an x_positional model: names, order of heads, joined projections.

H query heads, D head dim, M model dim.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from x_positional.config.layers import LayersConfig
from x_positional.errors import ConversionError
from x_positional.models.language import TransformerWrapper
from x_positional.models.stacks import ConfiguredLayers
from x_positional.models.vision import ViTransformerWrapper
from x_positional.pretrained.x_transformers.build import BuiltModel, StackOwner
from x_positional.pretrained.x_transformers.inspect_positions import polar_table, rotary_table, xpos_table
from x_positional.pretrained.x_transformers.keywords import head_order
from x_positional.schemes import Rope
from x_positional.schemes.absolute import LearnedAbsolute, ScaledSinusoidalEmbedding
from x_positional.schemes.base import PositionScheme
from x_positional.schemes.cope import CopeScores
from x_positional.schemes.dynamic_bias import DynamicBias
from x_positional.schemes.forgetting import ForgettingBias
from x_positional.schemes.rotary.polar import PolarEmbedding
from x_positional.schemes.t5 import T5Bias

Weights = dict[str, Tensor]
TABLES_CLOSE = 1e-5


@dataclass(frozen=True)
class Rename:
    """Maps tensor names of x-transformers to names of x_positional."""

    source: str
    """Regular expression of the name in x-transformers."""
    target: str
    """The name in x_positional, with the groups of the expression."""
    heads: int | None = None
    """The axis along which query heads are reordered."""
    scheme: type[PositionScheme] | None = None
    """`target` is relative to the scheme of this class (to that of the block where each block has its own)."""


RENAMES: tuple[Rename, ...] = (
    Rename(r"token_emb\.emb\.weight", "token_emb.weight"),
    Rename(r"pos_emb\.emb\.weight", "table", scheme=LearnedAbsolute),
    Rename(r"pos_emb\.scale", "scale", scheme=ScaledSinusoidalEmbedding),
    Rename(r"post_emb_norm\.gamma", "emb_norm.gain"),
    Rename(r"project_emb\.(weight|bias)", r"project_emb.\1"),
    Rename(r"project_(in|out)\.weight", r"project_\1.weight"),
    Rename(r"to_logits\.weight", "to_logits.weight"),
    Rename(r"attn_layers\.final_norm\.(?:gamma|g)", "attn_layers.final_norm.gain"),
    Rename(r"attn_layers\.polar_pos_emb\.learned_bias", "delta", scheme=PolarEmbedding),
    Rename(r"attn_layers\.rel_pos\.relative_attention_bias\.weight", "table", 1, T5Bias),
    Rename(r"attn_layers\.rel_pos\.mlp\.(\d+)\.0\.(weight|bias)", r"\1.linear.\2", None, DynamicBias),
    Rename(r"attn_layers\.rel_pos\.mlp\.(\d+)\.1\.(?:weight|gamma)", r"\1.norm.weight", None, DynamicBias),
    Rename(r"attn_layers\.rel_pos\.mlp\.(\d+)\.1\.bias", r"\1.norm.bias", None, DynamicBias),
    Rename(r"attn_layers\.rel_pos\.mlp\.(\d+)\.(weight|bias)", r"\1.linear.\2", 0, DynamicBias),
    Rename(r"patch_to_embedding\.0\.gamma", "patch_embedding.pixel_norm.weight"),
    Rename(r"patch_to_embedding\.1\.(weight|bias)", r"patch_embedding.project.\1"),
    Rename(r"patch_to_embedding\.2\.gamma", "patch_embedding.norm.weight"),
    Rename(r"pos_embedding", "patch_table.table"),
    Rename(r"register_tokens", "register_tokens"),
    Rename(r"mlp_head\.(weight|bias)", r"to_logits.\1"),
    Rename(r"(.+)\.0\.0\.(?:gamma|g)", r"\1_residual.before.gain"),
    Rename(r"(.+)\.0\.1\.(?:gamma|g)", r"\1_residual.after.gain"),
    Rename(r"(.+)\.0\.2\.(?:gamma|g)", r"\1_residual.outer.gain"),
    Rename(r"(.+)\.1\.to_q\.weight", r"\1.to_q.weight", 0),
    Rename(r"(.+)\.1\.to_([kv])\.weight", r"\1.to_\2.weight"),
    Rename(r"(.+)\.1\.to_out\.weight", r"\1.to_out.weight", 1),
    Rename(r"(.+)\.1\.q_rmsnorm\.gamma", r"\1.q_norm.gain", 0),
    Rename(r"(.+)\.1\.k_rmsnorm\.gamma", r"\1.k_norm.gain"),
    Rename(r"(.+)\.1\.attend\.head_attn_sink", r"\1.sinks", 0),
    Rename(r".+\.1\.attend\.cope\.pos_emb", "table", None, CopeScores),
    Rename(r".+\.1\.data_dependent_alibi\.to_forget_gates\.0\.(weight|bias)", r"gate.\1", 0, ForgettingBias),
    Rename(r"(.+)\.1\.ff\.0\.(?:0|proj)\.(weight|bias)", r"\1.up.\2"),
    Rename(r"(.+)\.1\.ff\.2\.(weight|bias)", r"\1.down.\2"),
)
"""The first match counts. Names inside blocks already have the form `attn_layers.blocks.0.attn.1.to_q.weight`."""

BRANCHES = {"a": "attn", "c": "cross", "f": "ff"}
CONSTANTS = r"attn_layers\.(rotary|polar)_pos_emb\.(inv_freq|scale)"
"""Frequency tables, which x-transformers saves although they are no weights."""


def load_weights(built: BuiltModel, state: Mapping[str, Tensor]) -> None:
    """Load a state dict of x-transformers into a model without weights, as copies that keep device and dtype.

    Raises:
        ConversionError: for every unexpected tensor, missing parameter and shape mismatch.
    """
    problems: list[str] = []
    found: Weights = {}
    remaining = dict(state)
    for owner in sorted(built.owners, key=lambda owner: -len(owner.source_prefix)):
        prefix = owner.source_prefix
        part = {name.removeprefix(prefix): remaining.pop(name) for name in list(remaining) if name.startswith(prefix)}
        found |= _converted(owner, part, problems)
    problems += [f"unexpected tensor {name} in the state dict." for name in remaining]
    parameters = built.model.state_dict()
    problems += [f"no tensor of the state dict maps to parameter {name}." for name in parameters if name not in found]
    problems += [f"unexpected weights for {name}: no such parameter." for name in found if name not in parameters]
    for name in found.keys() & parameters.keys():
        if found[name].shape != parameters[name].shape:
            problems.append(
                f"shape mismatch for {name}: {list(parameters[name].shape)} in the model, {list(found[name].shape)} in the "
                "state dict."
            )
    if problems:
        raise ConversionError("the state dict does not match the model:", problems)
    built.model.load_state_dict({name: tensor.detach().clone() for name, tensor in found.items()}, assign=True)


def _converted(owner: StackOwner, state: Mapping[str, Tensor], problems: list[str]) -> Weights:
    """The weights of one stack owner, under x_positional's names."""
    layers = stack_of(owner)
    config, found = layers.config, {}
    order = head_order(config.heads, config.kv_heads or config.heads)
    for given, tensor in state.items():
        source, block = _with_block(f"attn_layers.{given}" if owner.is_stack else given, config)
        if re.fullmatch(CONSTANTS, source):
            _check_constant(source, tensor, config, problems)
            continue
        rename, name = _renamed(source)
        target = None if rename is None else _in_scheme(rename, name, layers.position_schemes, block)
        if rename is None or target is None:
            problems.append(f"unexpected tensor {owner.source_prefix}{given} in the state dict.")
        else:
            unit = (
                rename.scheme is LearnedAbsolute
                and isinstance(owner.model, TransformerWrapper)
                and owner.model.config.l2norm_embed
            )
            tensor = F.normalize(tensor, dim=-1) * tensor.shape[-1] ** 0.5 if unit else tensor
            found[target] = tensor if rename.heads is None else _reordered(tensor, rename.heads, order)
    _adapt(found, owner, config)
    stack_prefix = "attn_layers." if owner.is_stack else ""
    return {owner.target_prefix + name.removeprefix(stack_prefix): tensor for name, tensor in found.items()}


def stack_of(owner: StackOwner) -> ConfiguredLayers:
    """The stack of a model, or the model itself if it is one."""
    layers = owner.model if owner.is_stack else owner.model.attn_layers
    if not isinstance(layers, ConfiguredLayers):
        raise TypeError(f"{type(owner.model).__name__} has no stack of layers")
    return layers


def _with_block(name: str, config: LayersConfig) -> tuple[str, int]:
    """`attn_layers.layers.3.1.x` -> (`attn_layers.blocks.1.ff.1.x`, index of the block)."""
    kinds = "cf" if config.kind == "cross_attender" else "acf" if config.cross_attend else "af"
    match = re.fullmatch(r"attn_layers\.layers\.(\d+)\.(.+)", name)
    if match is None:
        return name, 0
    block, branch = divmod(int(match[1]), len(kinds))
    return f"attn_layers.blocks.{block}.{BRANCHES[kinds[branch]]}.{match[2]}", block


def _renamed(source: str) -> tuple[Rename | None, str]:
    for rename in RENAMES:
        match = re.fullmatch(rename.source, source)
        if match:
            return rename, match.expand(rename.target)
    return None, source


def _in_scheme(rename: Rename, name: str, schemes: Sequence[PositionScheme], block: int) -> str | None:
    """The full name of a parameter that belongs to a scheme; None if the model has no such scheme."""
    if rename.scheme is None:
        return name
    indices = [i for i, scheme in enumerate(schemes) if type(scheme) is rename.scheme]
    if not indices or (schemes[indices[0]].per_layer and block >= len(indices)):
        return None
    index = indices[block if schemes[indices[0]].per_layer else 0]
    return f"attn_layers.schemes.{index}.{_flat_mlp(name, schemes[index])}"


def _flat_mlp(name: str, scheme: nn.Module) -> str:
    """`1.norm.weight` -> `mlp.4.weight`: the MLP here is one flat sequence of linear, norm if any, activation."""
    match = re.fullmatch(r"(\d+)\.(linear|norm)\.(\w+)", name)
    if match is None:
        return name
    step = 3 if any(isinstance(module, nn.LayerNorm) for module in scheme.modules()) else 2
    return f"mlp.{int(match[1]) * step + (match[2] == 'norm')}.{match[3]}"


def _reordered(tensor: Tensor, axis: int, order: Sequence[int]) -> Tensor:
    """The tensor with its heads reordered along an axis; unchanged if the axis is no multiple of the heads (a shape mismatch)."""
    if tensor.ndim <= axis or tensor.shape[axis] % len(order):
        return tensor
    by_head = tensor.unflatten(axis, (len(order), -1))
    return by_head.index_select(axis, torch.tensor(order, device=tensor.device)).flatten(axis, axis + 1)


def _adapt(found: Weights, owner: StackOwner, config: LayersConfig) -> None:
    """Convert in place what differs in more than its name.

    Joined q, k, v projections; norms without bias; a missing output projection; the position table of images.
    """
    for name in owner.model.state_dict():
        whole = f"attn_layers.{name}" if owner.is_stack else name
        match = re.fullmatch(r"(.+\.to_)(qkv|kv)\.weight", whole)
        parts = [] if match is None else [f"{match[1]}{part}.weight" for part in match[2]]
        if parts and all(part in found for part in parts):
            found[whole] = torch.cat([found.pop(part) for part in parts])
        if whole.endswith("mlp.1.bias") and (gain := found.get(whole.replace("bias", "weight"))) is not None:
            found.setdefault(whole, torch.zeros_like(gain))
    given = owner.flags.get("attn_project_out")
    if config.heads * config.head_dim == config.dim and (given is False or (given is None and config.heads == 1)):
        _without_projection(found, config.dim)
    if (table := found.get("patch_table.table")) is not None and isinstance(owner.model, ViTransformerWrapper):
        found["patch_table.table"] = table[0].unflatten(0, owner.model.config.grid)


def _without_projection(found: Weights, dim: int) -> None:
    """Add identity output projections: x-transformers has none where there is one head."""
    for name in [name for name in found if name.endswith(("to_qkv.weight", "to_kv.weight"))]:
        out = re.sub(r"to_\w+\.weight$", "to_out.weight", name)
        found.setdefault(out, torch.eye(dim, dtype=found[name].dtype, device=found[name].device))


def _check_constant(name: str, tensor: Tensor, config: LayersConfig, problems: list[str]) -> None:
    """Report a saved frequency table that differs from the one the keywords give."""
    table = _constant(name, config)
    if table is None:
        problems.append(f"unexpected tensor {name} in the state dict: these keywords have no rotary embedding.")
        return
    if table.shape != tensor.shape:
        problems.append(
            f"shape mismatch for {name}: {list(table.shape)} from the keywords, {list(tensor.shape)} in the state dict."
        )
        return
    close = max(TABLES_CLOSE, torch.finfo(tensor.dtype).eps)
    if not torch.allclose(tensor.detach().cpu().double(), table.double(), rtol=close, atol=0):
        problems.append(f"{name} holds other frequencies than the keywords give; check rotary_base_rescale_factor.")


def _constant(name: str, config: LayersConfig) -> Tensor | None:
    if ".polar_pos_emb." in name:
        return polar_table(config.head_dim)
    rope = next((part for part in config.position or () if isinstance(part, Rope)), None)
    if rope is None:
        return None
    width = rope.width(config.dims())
    return xpos_table(width) if name.endswith(".scale") else rotary_table(width, rope.base_rescale_factor)
