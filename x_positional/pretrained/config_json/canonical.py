"""Configs to flat fields by dotted path, and back.

`canonical` gives the fields of a config with every default filled in, so that two configs that compute the same function
have equal fields; settings that do not affect the result (dropout, backends) are left out. `assemble` nests fields into the
input of a config class.

A path is `num_tokens`, `layers.heads`, or `each.window` with one value per layer. A value that all layers share is also
under `layers.window`. Parts that a layer may lack altogether (`ff.moe`, `attn.mla`) are a single value.
"""

import math
import re
from typing import Any

from x_positional.config.layers import AttentionConfig, FeedForwardConfig, LayerConfig, LayersConfig, NormConfig
from x_positional.config.models import HeadConfig, ModelConfig
from x_positional.config.seq2seq import Seq2SeqConfig
from x_positional.config.vision import VisionConfig
from x_positional.modules.norms import EPS
from x_positional.modules.qk_norm import KINDS
from x_positional.pretrained.config_json.codecs import Fields
from x_positional.schemes.base import Dims

LEFT_OUT = {"dropout", "emb_dropout", "patch_dropout", "backend", "flash", "mult", "unit_offset", "qk_norm_unit_offset"}
"""Fields that do not affect the logits, or only how a gain is stored."""
HEAD_FIELDS = ("head.", "logits_", "tie_embedding", "num_classes", "pool", "register_heads")
"""Prefixes of fields that have no effect without a head."""
GROUPS = ("attn", "ff")
LAYER_SETTINGS = ("window", "chunk", "keep_first")

AnyConfig = ModelConfig | Seq2SeqConfig | VisionConfig


def canonical(config: AnyConfig, headed: bool = True) -> Fields:
    """Every field of a model by path; of an encoder-decoder, under `encoder.` and `decoder.`.

    Args:
        config: The config of a text model, an encoder-decoder or an image model.
        headed: Whether to include the fields of the head.
    """
    if isinstance(config, Seq2SeqConfig):
        sides = {"encoder": canonical(config.encoder, headed=False), "decoder": canonical(config.decoder)}
        out = {f"{side}.{path}": value for side, fields in sides.items() for path, value in fields.items()}
        return out | {"tie_token_emb": config.tie_token_emb}
    fields = _image(config) if isinstance(config, VisionConfig) else _canonical(config)
    return fields if headed else {path: value for path, value in fields.items() if not path.startswith(HEAD_FIELDS)}


def _canonical(config: ModelConfig) -> Fields:
    dims = config.layers.dims(config.max_seq_len, config.placed_dim)
    return _model_fields(config) | _every_layer(config.layers, dims, config.max_seq_len)


def _image(config: VisionConfig) -> Fields:
    """Fields of an image model. `table` is the scale of its position table, which belongs to the patches."""
    stack, length = config.stack, config.trained_patches
    skipped = LEFT_OUT | {"layers", "post_emb_norm", "tokens_norm"}
    out = {name: getattr(config, name) for name in VisionConfig.model_fields if name not in skipped}
    table = config.tables[0].scale if config.tables else None
    out |= {"table": 1.0 if config.tables and table is None else table, "has_cls": config.has_cls}
    out |= {"attention_pooling": config.pool == "attention", **_norm_fields("tokens_norm", config.tokens_norm)}
    out |= _norm_fields("emb_norm", NormConfig() if config.post_emb_norm else None)
    return out | _every_layer(stack, stack.dims(length), length)


def _every_layer(layers: LayersConfig, dims: Dims, length: int) -> Fields:
    """The fields of a stack, and of each of its layers."""
    out = {f"layers.{name}": value for name, value in _stack_fields(layers).items()}
    kinds = layers.resolved_layers(length)
    by_layer = [_layer_fields(kinds[i % len(kinds)], layers, dims) for i in range(layers.depth)]
    for path in by_layer[0]:
        values = [fields[path] for fields in by_layer]
        out[f"each.{path}"] = values
        if all(value == values[0] for value in values):
            out[f"layers.{path}"] = values[0]
    return out


def _model_fields(config: ModelConfig) -> Fields:
    out = {name: getattr(config, name) for name in ModelConfig.model_fields if name not in LEFT_OUT | {"layers"}}
    out["emb_dim"] = config.emb_dim or config.layers.dim
    if not config.projected:
        del out["emb_proj_bias"], out["emb_proj_first"]
    out["logits_dim"] = config.logits_dim or config.num_tokens
    scale = config.layers.dim**-0.5 if config.tie_embedding_scale is None else config.tie_embedding_scale
    out["tie_embedding_scale"] = scale if config.tie_embedding else None
    out |= {name: None for name in ("emb_scale", "logits_scale") if out[name] == 1.0}
    normed = config.post_emb_norm or config.emb_norm is not None
    del out["post_emb_norm"], out["emb_norm"], out["head"]
    out |= _head_fields(config.head, config.layers.dim)
    return out | _norm_fields("emb_norm", config.emb_norm or NormConfig() if normed else None)


def _head_fields(head: HeadConfig | None, dim: int) -> Fields:
    if head is None:
        return {"head.activation": None}
    own = {"head.activation": head.activation, "head.bias": head.bias, "head.width": head.width or dim}
    return {**own, **_norm_fields("head.norm", head.norm)}


def _stack_fields(layers: LayersConfig) -> Fields:
    skipped = LEFT_OUT | set(LayerConfig.model_fields) | {"pattern", "norm"}
    out = {name: getattr(layers, name) for name in LayersConfig.model_fields if name not in skipped}
    out["kv_heads"] = layers.kv_heads or layers.heads
    out["context_dim"] = layers.context_dim or layers.dim
    out["final_norm"] = layers.ends_normed
    return out | _norm_fields("norm", layers.norm)


def _norm_fields(path: str, norm: NormConfig | None) -> Fields:
    if norm is None:
        return {f"{path}.kind": None}
    eps = EPS[norm.kind] if norm.eps is None else norm.eps
    return {f"{path}.kind": norm.kind, f"{path}.eps": eps, f"{path}.bias": norm.bias, f"{path}.gain": norm.gain}


def _layer_fields(layer: LayerConfig, layers: LayersConfig, dims: Dims) -> Fields:
    attn, ff = layer.attn or layers.attn, layer.ff or layers.ff
    return {
        "position": tuple(part.resolved(dims) for part in layer.parts),
        "window": layer.window,
        "chunk": layer.chunk,
        "keep_first": layer.keep_first,
        **_attention_fields(attn, dims),
        **_feedforward_fields(ff, layers.dim),
    }


def _attention_fields(attn: AttentionConfig, dims: Dims) -> Fields:
    out = {name: getattr(attn, name) for name in AttentionConfig.model_fields if name not in LEFT_OUT}
    out["out_bias"] = attn.bias if attn.out_bias is None else attn.out_bias
    if attn.qk_norm == "l2":
        out["scale"] = attn.qk_norm_scale
    elif attn.scale is None:
        out["scale"] = dims.head_dim**-0.5
    del out["qk_norm_scale"]
    if attn.qk_norm is not None and attn.qk_norm_eps is None:
        out["qk_norm_eps"] = KINDS[attn.qk_norm].eps
    if attn.mla is not None:
        width = attn.mla.value_dim or dims.head_dim - attn.mla.rope_dim
        out["mla"] = attn.mla.model_copy(update={"value_dim": width})
    return {f"attn.{name}": value for name, value in out.items()}


def _feedforward_fields(ff: FeedForwardConfig, dim: int) -> Fields:
    out = {name: getattr(ff, name) for name in FeedForwardConfig.model_fields if name not in LEFT_OUT}
    out["dim"] = ff.dim or int(dim * ff.mult)
    out["gate_bias"] = (ff.bias if ff.gate_bias is None else ff.gate_bias) if ff.glu else None
    return {f"ff.{name}": value for name, value in out.items()}


def differences(one: Fields, other: Fields) -> dict[str, tuple[Any, Any]]:
    """Paths whose values differ -> both values. Values of layers are compared layer by layer."""
    both = one | other
    paths = {p for p in both if re.sub(r"^(encoder\.|decoder\.|)layers\.", r"\1each.", p) not in both.keys() - {p}}
    return {p: (one.get(p), other.get(p)) for p in sorted(paths) if not _equal(one.get(p), other.get(p))}


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, float | int) and isinstance(other, float | int):
        return math.isclose(one, other, rel_tol=1e-9)
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other


def assemble(fields: Fields) -> dict[str, Any]:
    """Nested fields of `ModelConfig`. Values that differ by layer become a pattern."""
    each = {path.removeprefix("each."): values for path, values in fields.items() if path.startswith("each.")}
    shared = {f"layers.{path}": values[0] for path, values in each.items() if all(v == values[0] for v in values)}
    tree: dict[str, Any] = {}
    for path, value in {**{p: v for p, v in fields.items() if not p.startswith("each.")}, **shared}.items():
        _put(tree, path, value)
    differing = {path: values for path, values in each.items() if f"layers.{path}" not in shared}
    if differing:
        layers = tree["layers"]
        layers["pattern"] = _shortest([_entry(layers, differing, i) for i in range(layers["depth"])])
        for name in LAYER_SETTINGS:
            layers.pop(name, None)
        if "position" in differing:
            layers.pop("position", None)
    return tree


def _entry(layers: dict[str, Any], differing: Fields, layer: int) -> dict[str, Any]:
    """The pattern entry of one layer: the settings of the stack, overridden by its own."""
    entry = {name: layers[name] for name in LAYER_SETTINGS if layers.get(name)}
    for path, values in differing.items():
        group = path.split(".")[0]
        if group in GROUPS and group not in entry:
            entry[group] = {name: _copied(value) for name, value in layers.get(group, {}).items()}
        _put(entry, path, values[layer])
    return entry


def _copied(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else value


def _shortest(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shortest prefix that gives all entries when repeated."""
    depth = len(entries)
    period = next(p for p in range(1, depth + 1) if all(entries[i] == entries[i % p] for i in range(depth)))
    return entries[:period]


def _put(tree: dict[str, Any], path: str, value: Any) -> None:
    *above, leaf = path.split(".")
    for part in above:
        inner = tree.get(part)
        tree[part] = inner if isinstance(inner, dict) else {}
        tree = tree[part]
    tree[leaf] = value
