"""Puts the weights of an x-transformers model into ours: one table of names, and the order of grouped heads.

H query heads, G key/value heads.
"""

import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from x_positional import ModelConfig, TransformerWrapper, ViTransformerWrapper

NAMES: list[tuple[str, str, int | None]] = [
    (r"token_emb\.emb\.weight", "token_emb.weight", None),
    (r"pos_emb\.emb\.weight", "{LearnedAbsolute}.table", None),
    (r"pos_emb\.scale", "{ScaledSinusoidal}.scale", None),
    (r"post_emb_norm\.gamma", "emb_norm.gain", None),
    (r"project_emb\.(weight|bias)", r"project_emb.\1", None),
    (r"to_logits\.weight", "to_logits.weight", None),
    (r"final_norm\.(?:gamma|g)", "attn_layers.final_norm.gain", None),
    (r"polar_pos_emb\.learned_bias", "{PolarEmbedding}.delta", None),
    (r"rel_pos\.relative_attention_bias\.weight", "{T5Bias}.table", 1),
    (r"rel_pos\.mlp\.(\d+)\.0\.(weight|bias)", r"{DynamicBias}.\1.linear.\2", None),
    (r"rel_pos\.mlp\.(\d+)\.1\.(?:weight|gamma)", r"{DynamicBias}.\1.norm.weight", None),
    (r"rel_pos\.mlp\.(\d+)\.1\.bias", r"{DynamicBias}.\1.norm.bias", None),
    (r"rel_pos\.mlp\.(\d+)\.(weight|bias)", r"{DynamicBias}.\1.linear.\2", 0),
    (r"patch_to_embedding\.0\.gamma", "patch_embedding.pixel_norm.weight", None),
    (r"patch_to_embedding\.1\.(weight|bias)", r"patch_embedding.project.\1", None),
    (r"patch_to_embedding\.2\.gamma", "patch_embedding.norm.weight", None),
    (r"pos_embedding", "patch_table.table", None),
    (r"register_tokens", "register_tokens", None),
    (r"mlp_head\.(weight|bias)", r"to_logits.\1", None),
    (r"(.+)\.0\.0\.(?:gamma|g)", r"\1_residual.before.gain", None),
    (r"(.+)\.0\.1\.(?:gamma|g)", r"\1_residual.after.gain", None),
    (r"(.+)\.0\.2\.(?:gamma|g)", r"\1_residual.outer.gain", None),
    (r"(.+)\.1\.to_q\.weight", r"\1.to_q.weight", 0),
    (r"(.+)\.1\.to_([kv])\.weight", r"\1.to_\2.weight", None),
    (r"(.+)\.1\.to_out\.weight", r"\1.to_out.weight", 1),
    (r"(.+)\.1\.q_rmsnorm\.gamma", r"\1.q_norm.gain", 0),
    (r"(.+)\.1\.k_rmsnorm\.gamma", r"\1.k_norm.gain", None),
    (r"(.+)\.1\.attend\.head_attn_sink", r"\1.sinks", 0),
    (r"(.+)\.1\.attend\.cope\.pos_emb", "{CoPE}.table", None),
    (r"(.+)\.1\.data_dependent_alibi\.to_forget_gates\.0\.(weight|bias)", r"{Forgetting}.gate.\2", 0),
    (r"(.+)\.1\.ff\.0\.(?:0|proj)\.(weight|bias)", r"\1.up.\2", None),
    (r"(.+)\.1\.ff\.2\.(weight|bias)", r"\1.down.\2", None),
]
"""Their name, our name, the axis that counts query heads. {Class} is the scheme of that class (of that block, where
each has its own). A block's names come as `blocks.0.attn.1.to_q.weight`: the branch in place of their running number."""

BRANCHES = {"a": "attn", "c": "cross", "f": "ff"}
CONSTANTS = r"(?:rotary|polar)_pos_emb\.(?:inv_freq|scale)"


def port(theirs: nn.Module, ours: TransformerWrapper | ViTransformerWrapper) -> None:
    """Every parameter of their wrapper into `ours`. Raises where one has no place or a place stays empty."""
    config = ours.config.layers
    order = head_order(config.heads, config.kv_heads or config.heads)
    found: dict[str, Tensor] = {}
    for name, tensor in theirs.state_dict().items():
        place, block = _block_named(name, theirs.attn_layers.layer_types, config.depth)
        if not re.fullmatch(CONSTANTS, place):
            new, axis = _renamed(place)
            found[_scheme_named(new, ours, block)] = tensor if axis is None else _reordered(tensor, axis, order)
    _adapt(found, ours)
    ours.load_state_dict(found)


def head_order(heads: int, kv_heads: int) -> Tensor:
    """[H] which of their query heads ours is: theirs reads key head h % G, ours key head h // (H / G)."""
    return torch.arange(heads).view(heads // kv_heads, kv_heads).t().flatten()


def perturb(model: nn.Module, seed: int = 0) -> None:
    """Add 0.1 * randn to every parameter, so that no norm, bias or table has a value that hides a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)


def _block_named(name: str, kinds: tuple[str, ...], depth: int) -> tuple[str, int]:
    name = name.removeprefix("attn_layers.")
    match = re.fullmatch(r"layers\.(\d+)\.(.+)", name)
    if match is None:
        return name, 0
    index = int(match[1])
    block = index * depth // len(kinds)
    return f"attn_layers.blocks.{block}.{BRANCHES[kinds[index]]}.{match[2]}", block


def _renamed(name: str) -> tuple[str, int | None]:
    for pattern, new, axis in NAMES:
        match = re.fullmatch(pattern, name)
        if match:
            return match.expand(new), axis
    raise ValueError(f"no place for {name}")


def _reordered(tensor: Tensor, axis: int, order: Tensor) -> Tensor:
    return tensor.unflatten(axis, (len(order), -1)).index_select(axis, order).flatten(axis, axis + 1)


def _scheme_named(name: str, ours: TransformerWrapper | ViTransformerWrapper, block: int) -> str:
    match = re.fullmatch(r"\{(\w+)\}\.(.+)", name)
    if match is None:
        return name
    schemes = ours.attn_layers.position_schemes
    places = [i for i, scheme in enumerate(schemes) if type(scheme).__name__ == match[1]]
    place = places[block if schemes[places[0]].per_layer else 0]
    return f"attn_layers.schemes.{place}.{_flat_mlp(match[2], schemes[place])}"


def _flat_mlp(name: str, scheme: nn.Module) -> str:
    """`1.norm.weight` -> `mlp.4.weight`: ours is one sequence of linear, norm if any, activation."""
    match = re.fullmatch(r"(\d+)\.(linear|norm)\.(\w+)", name)
    if match is None:
        return name
    step = 3 if any(isinstance(m, nn.LayerNorm) for m in scheme.modules()) else 2
    return f"mlp.{int(match[1]) * step + (match[2] == 'norm')}.{match[3]}"


def _adapt(found: dict[str, Tensor], ours: TransformerWrapper | ViTransformerWrapper) -> None:
    """What differs in more than its name: joined projections, a norm without bias, positions of length one, and the table of
    an image, of which theirs reads as many rows as there are patches, from the first."""
    for whole in ours.state_dict():
        match = re.fullmatch(r"(.+\.to_)(qkv|kv)\.weight", whole)
        if match:
            found[whole] = torch.cat([found.pop(f"{match[1]}{part}.weight") for part in match[2]])
        if whole.endswith("mlp.1.bias"):
            found.setdefault(whole, torch.zeros_like(found[whole.replace("bias", "weight")]))
    if "patch_table.table" in found:
        rows, columns = ours.config.grid
        found["patch_table.table"] = found["patch_table.table"][0, : rows * columns].unflatten(0, (rows, columns))
    unit = isinstance(ours.config, ModelConfig) and ours.config.l2norm_embed
    for name in found:
        if unit and name.startswith("attn_layers.schemes") and name.endswith(".table"):
            found[name] = F.normalize(found[name], dim=-1) * found[name].shape[-1] ** 0.5
