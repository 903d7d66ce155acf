"""ModernBERT: an encoder with RoPE, symmetric windows, no norm before the first attention, a gated feedforward."""

from typing import Any

from x_positional.errors import RopeError
from x_positional.pretrained.config_json.codecs import Codec, Custom, Fields, Fixed, Hf, Key
from x_positional.pretrained.config_json.layer_types import ROPE_KEYS
from x_positional.pretrained.families.bert import ENCODER, NORMED, TIED, norms, sizes
from x_positional.pretrained.families.llama import ACTIVATIONS
from x_positional.pretrained.family import Family
from x_positional.pretrained.rope import published_rope, to_hf
from x_positional.pretrained.tensors.layouts import Swapped
from x_positional.schemes import Rope

FULL, SLIDING = "full_attention", "sliding_attention"
ROTARY = (
    *ROPE_KEYS,
    "local_rope_theta",
    "layer_types",
    "global_attn_every_n_layers",
    "local_attention",
    "sliding_window",
)


def _types(hf: Hf) -> list[str]:
    """The type of every layer."""
    if given := hf.get("layer_types"):
        return list(given)
    every = hf.get("global_attn_every_n_layers") or 3
    return [SLIDING if i % every else FULL for i in range(hf.get("num_hidden_layers", 22))]


def _layer_fields(hf: Hf) -> Fields:
    types, ropes = _types(hf), published_rope(hf, ("global_rope_theta",))
    if not isinstance(ropes, dict):
        ropes = {FULL: ropes, SLIDING: ropes}
    if unknown := sorted(set(types) - {FULL, SLIDING}):
        raise RopeError([f"unsupported layer_types: {', '.join(unknown)}; supported: {FULL}, {SLIDING}."])
    half = hf.get("sliding_window") or (hf.get("local_attention") or 128) // 2
    window = half + 1  # to either side, including the token itself
    return {
        "each.position": [[ropes[kind]] for kind in types],
        "each.window": [window if kind == SLIDING else None for kind in types],
    }


def _layer_keys(fields: Fields) -> dict[str, Any]:
    windows, positions = fields["each.window"], fields["each.position"]
    types = [FULL if window is None else SLIDING for window in windows]
    ropes = {}
    for kind, position in zip(types, positions, strict=True):
        match position:
            case (Rope() as rope,):
                ropes.setdefault(kind, rope)
    sizes = {window for window in windows if window is not None}
    out: dict[str, Any] = {"layer_types": types}
    if len(sizes) == 1:
        out["local_attention"] = 2 * (sizes.pop() - 1)
    one = next(iter(ropes.values()), None)  # transformers requires a theta for unused types too
    return out if one is None else {**out, **to_hf({kind: ropes.get(kind, one) for kind in (FULL, SLIDING)})}


def _norm_bias(place: str) -> Codec:
    return Key(f"{place}.bias", "norm_bias", False)


MODERNBERT = Family(
    model_type="modernbert",
    architecture="ModernBertForMaskedLM",
    body_architecture="ModernBertModel",
    kind="encoder",
    codecs=(
        *sizes(768, 22, 12, 1152, 50368),
        *TIED,
        ENCODER[0],
        *(codec for codec in norms(NORMED, "norm_eps", 1e-5) if not codec.sets[0].endswith(".bias")),
        *map(_norm_bias, NORMED),
        Key("max_seq_len", "max_position_embeddings", 8192),
        Custom(("each.position", "each.window"), ROTARY, _layer_fields, _layer_keys),
        Fixed("layers.first_norm", False),
        Key("layers.attn.bias", "attention_bias", False),
        Fixed("layers.ff.glu", True),
        Key("layers.ff.activation", "hidden_activation", "gelu", ACTIVATIONS),
        Key("layers.ff.bias", "mlp_bias", False),
        Key("head.activation", "classifier_activation", "gelu", ACTIVATIONS),
        Key("head.bias", "classifier_bias", False),
        Key("logits_bias", "decoder_bias", True),
    ),
    names={
        "token_emb": "model.embeddings.tok_embeddings",
        "emb_norm": "model.embeddings.norm",
        "blocks.{i}.attn_residual.before": "model.layers.{i}.attn_norm",
        "blocks.{i}.attn.to_qkv": "model.layers.{i}.attn.Wqkv",
        "blocks.{i}.attn.to_out": "model.layers.{i}.attn.Wo",
        "blocks.{i}.ff_residual.before": "model.layers.{i}.mlp_norm",
        "blocks.{i}.ff.up": Swapped("model.layers.{i}.mlp.Wi"),
        "blocks.{i}.ff.down": "model.layers.{i}.mlp.Wo",
        "final_norm": "model.final_norm",
        "head.linear": "head.dense",
        "head.norm": "head.norm",
        "to_logits": "decoder",
        "tied_bias": "decoder.bias",
    },
    ignored_keys=frozenset(
        {
            "initializer_cutoff_factor",
            "embedding_dropout",
            "classifier_pooling",
            "deterministic_flash_attn",
            "sparse_prediction",
            "sparse_pred_ignore_index",
            "reference_compile",
            "repad_logits_with_grad",
            "position_embedding_type",
            "layer_norm_eps",
            "cls_token_id",
        }
    ),
)
