"""Weights of x-transformers into a model of ours: each of theirs is used, each of ours is filled, or the names are told.

H query heads, D head dim, M model dim.
"""

import re
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from x_positional.config.layers import LayersConfig
from x_positional.errors import ConversionError
from x_positional.models.language import TransformerWrapper
from x_positional.models.stacks import ConfiguredLayers
from x_positional.models.vision import ViTransformerWrapper
from x_positional.pretrained.x_transformers.build import Built, Core
from x_positional.pretrained.x_transformers.inspect_positions import polar_table, rotary_table, xpos_table
from x_positional.pretrained.x_transformers.keywords import head_order
from x_positional.pretrained.x_transformers.names import BRANCHES, CONSTANTS, NAMES, Named
from x_positional.schemes import Rope
from x_positional.schemes.absolute import LearnedAbsolute
from x_positional.schemes.base import PositionScheme

Weights = dict[str, Tensor]
TABLES_CLOSE = 1e-5


def fill(made: Built, state: Mapping[str, Tensor]) -> None:
    """Put a state dict of x-transformers into a model without weights, as copies on the devices and in the dtypes that they
    have. Raises ConversionError with every tensor that has no place, that is missing, or that does not fit."""
    problems: list[str] = []
    found: Weights = {}
    rest = dict(state)
    for core in sorted(made.cores, key=lambda core: -len(core.theirs)):
        own = {name: rest.pop(name) for name in list(rest) if name.startswith(core.theirs)}
        found |= _of_core(core, {name.removeprefix(core.theirs): tensor for name, tensor in own.items()}, problems)
    problems += [f"{name} has no place in the model." for name in rest]
    wanted = made.model.state_dict()
    problems += [f"nothing of the state dict is {name}." for name in wanted if name not in found]
    problems += [f"{name} is for no parameter of the model." for name in found if name not in wanted]
    for name in found.keys() & wanted.keys():
        if found[name].shape != wanted[name].shape:
            problems.append(
                f"{name} is {list(wanted[name].shape)} here, and the state dict has {list(found[name].shape)}."
            )
    if problems:
        raise ConversionError("the weights do not fit the flags:", problems)
    made.model.load_state_dict({name: tensor.detach().clone() for name, tensor in found.items()}, assign=True)


def _of_core(core: Core, state: Mapping[str, Tensor], problems: list[str]) -> Weights:
    """Our names and tensors of one model around a stack."""
    layers = stack_of(core)
    config, found = layers.config, {}
    order = head_order(config.heads, config.kv_heads or config.heads)
    for given, tensor in state.items():
        place, block = _block_named(f"attn_layers.{given}" if core.bare else given, config)
        if re.fullmatch(CONSTANTS, place):
            _check_constant(place, tensor, config, problems)
            continue
        named, name = _renamed(place)
        ours = None if named is None else _in_scheme(named, name, layers.position_schemes, block)
        if named is None or ours is None:
            problems.append(f"{core.theirs}{given} has no place in the model.")
        else:
            unit = (
                named.scheme is LearnedAbsolute
                and isinstance(core.model, TransformerWrapper)
                and core.model.config.l2norm_embed
            )
            tensor = F.normalize(tensor, dim=-1) * tensor.shape[-1] ** 0.5 if unit else tensor
            found[ours] = tensor if named.heads is None else _reordered(tensor, named.heads, order)
    _adapt(found, core, config)
    cut = "attn_layers." if core.bare else ""
    return {core.ours + name.removeprefix(cut): tensor for name, tensor in found.items()}


def stack_of(core: Core) -> ConfiguredLayers:
    """The stack inside a model, or the model if it is one."""
    layers = core.model if core.bare else core.model.attn_layers
    if not isinstance(layers, ConfiguredLayers):
        raise TypeError(f"{type(core.model).__name__} has no stack of layers")
    return layers


def _block_named(name: str, config: LayersConfig) -> tuple[str, int]:
    """`attn_layers.layers.3.1.x` -> `attn_layers.blocks.1.ff.1.x` and the number of the block."""
    kinds = "cf" if config.kind == "cross_attender" else "acf" if config.cross_attend else "af"
    match = re.fullmatch(r"attn_layers\.layers\.(\d+)\.(.+)", name)
    if match is None:
        return name, 0
    block, branch = divmod(int(match[1]), len(kinds))
    return f"attn_layers.blocks.{block}.{BRANCHES[kinds[branch]]}.{match[2]}", block


def _renamed(place: str) -> tuple[Named | None, str]:
    for named in NAMES:
        match = re.fullmatch(named.theirs, place)
        if match:
            return named, match.expand(named.ours)
    return None, place


def _in_scheme(named: Named, name: str, schemes: Sequence[PositionScheme], block: int) -> str | None:
    """Our name, in the scheme that it belongs to. None where there is no such scheme."""
    if named.scheme is None:
        return name
    places = [i for i, scheme in enumerate(schemes) if type(scheme) is named.scheme]
    if not places or (schemes[places[0]].per_layer and block >= len(places)):
        return None
    place = places[block if schemes[places[0]].per_layer else 0]
    return f"attn_layers.schemes.{place}.{_flat_mlp(name, schemes[place])}"


def _flat_mlp(name: str, scheme: nn.Module) -> str:
    """`1.norm.weight` -> `mlp.4.weight`: ours is one sequence of linear, norm if any, activation."""
    match = re.fullmatch(r"(\d+)\.(linear|norm)\.(\w+)", name)
    if match is None:
        return name
    step = 3 if any(isinstance(module, nn.LayerNorm) for module in scheme.modules()) else 2
    return f"mlp.{int(match[1]) * step + (match[2] == 'norm')}.{match[3]}"


def _reordered(tensor: Tensor, axis: int, order: Sequence[int]) -> Tensor:
    """Heads along an axis in our order. A tensor that holds no whole heads stays: its shape is judged later."""
    if tensor.ndim <= axis or tensor.shape[axis] % len(order):
        return tensor
    by_head = tensor.unflatten(axis, (len(order), -1))
    return by_head.index_select(axis, torch.tensor(order, device=tensor.device)).flatten(axis, axis + 1)


def _adapt(found: Weights, core: Core, config: LayersConfig) -> None:
    """What differs in more than its name: joined projections, a norm without bias, a missing projection, positions of length
    one, the table of an image."""
    for name in core.model.state_dict():
        whole = f"attn_layers.{name}" if core.bare else name
        match = re.fullmatch(r"(.+\.to_)(qkv|kv)\.weight", whole)
        parts = [] if match is None else [f"{match[1]}{part}.weight" for part in match[2]]
        if parts and all(part in found for part in parts):
            found[whole] = torch.cat([found.pop(part) for part in parts])
        if whole.endswith("mlp.1.bias") and (gain := found.get(whole.replace("bias", "weight"))) is not None:
            found.setdefault(whole, torch.zeros_like(gain))
    given = core.flags.get("attn_project_out")
    if config.heads * config.head_dim == config.dim and (given is False or (given is None and config.heads == 1)):
        _without_projection(found, config.dim)
    if (table := found.get("patch_table.table")) is not None and isinstance(core.model, ViTransformerWrapper):
        found["patch_table.table"] = table[0].unflatten(0, core.model.config.grid)


def _without_projection(found: Weights, dim: int) -> None:
    """x-transformers leaves the last projection out where there is one head: ours is the identity."""
    for name in [name for name in found if name.endswith(("to_qkv.weight", "to_kv.weight"))]:
        out = re.sub(r"to_\w+\.weight$", "to_out.weight", name)
        found.setdefault(out, torch.eye(dim, dtype=found[name].dtype, device=found[name].device))


def _check_constant(place: str, tensor: Tensor, config: LayersConfig, problems: list[str]) -> None:
    """Saved tables of frequencies must be those that the flags say."""
    table = _constant(place, config)
    if table is None or table.shape != tensor.shape:
        problems.append(f"{place} is not a table of these flags.")
        return
    close = max(TABLES_CLOSE, torch.finfo(tensor.dtype).eps)
    if not torch.allclose(tensor.detach().cpu().double(), table.double(), rtol=close, atol=0):
        problems.append(f"{place} holds other frequencies than the flags say; rotary_base_rescale_factor changes them.")


def _constant(place: str, config: LayersConfig) -> Tensor | None:
    if ".polar_pos_emb." in place:
        return polar_table(config.head_dim)
    rope = next((part for part in config.position or () if isinstance(part, Rope)), None)
    if rope is None:
        return None
    width = rope.width(config.dims())
    return xpos_table(width) if place.endswith(".scale") else rotary_table(width, rope.base_rescale_factor)
