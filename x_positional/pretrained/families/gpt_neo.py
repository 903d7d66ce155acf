"""GPT-Neo: unscaled scores, alternating full and sliding-window layers."""

from typing import Any

from x_positional.errors import ConfigError
from x_positional.pretrained.config_json.causal import causal_only
from x_positional.pretrained.config_json.codecs import Custom, Fields, Fixed, Hf, Key
from x_positional.pretrained.families.gpt2 import TABLE, layer_norms
from x_positional.pretrained.families.llama import ACTIVATIONS, tied
from x_positional.pretrained.families.sizes import even_heads, inner_width
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import qkv


def _window_fields(hf: Hf) -> Fields:
    """`attention_types` is [[names, repeats], ...]."""
    kinds = hf.get("attention_layers")
    if hf.get("attention_types") is not None or kinds is None:
        types = hf.get("attention_types") or [[["global", "local"], 12]]
        kinds = [kind for names, times in types for _ in range(times) for kind in names]
    depth, window = hf.get("num_layers", 24), hf.get("window_size", 256)
    if len(kinds) != depth or set(kinds) - {"global", "local"}:
        raise ConfigError(
            f"unsupported attention_types: {kinds} for {depth} layers; it must give 'global' or 'local' for each layer."
        )
    return {"each.window": [window if kind == "local" else None for kind in kinds]}


def _window_keys(fields: Fields) -> dict[str, Any]:
    windows = fields["each.window"]
    kinds = ["global" if window is None else "local" for window in windows]
    return {"attention_types": [[kinds, 1]], "attention_layers": kinds, "window_size": next(filter(None, windows), 256)}


GPT_NEO = Family(
    model_type="gpt_neo",
    architecture="GPTNeoForCausalLM",
    prefix="transformer.",
    codecs=(
        Key("num_tokens", "vocab_size", 50257),
        Key("max_seq_len", "max_position_embeddings", 2048),
        Key("layers.dim", "hidden_size", 2048),
        Key("layers.depth", "num_layers", 24),
        Key("layers.heads", "num_heads", 16),
        even_heads("hidden_size", "num_heads", (2048, 16)),
        inner_width("intermediate_size", "hidden_size", 2048),
        Key("layers.ff.activation", "activation_function", "gelu_new", ACTIVATIONS),
        *tied(True),
        *layer_norms("layer_norm_epsilon"),
        TABLE,
        causal_only("attention of this family is causal in transformers in any case."),
        Fixed("layers.attn.scale", 1.0),
        Fixed("layers.attn.out_bias", True),
        Custom(("each.window",), ("attention_types", "attention_layers", "window_size"), _window_fields, _window_keys),
    ),
    names={
        "token_emb": "transformer.wte",
        "schemes.0": "transformer.wpe",
        "blocks.{i}.attn_residual.before": "transformer.h.{i}.ln_1",
        "blocks.{i}.attn.to_qkv": qkv(*(f"transformer.h.{{i}}.attn.attention.{p}_proj" for p in "qkv")),
        "blocks.{i}.attn.to_out": "transformer.h.{i}.attn.attention.out_proj",
        "blocks.{i}.ff_residual.before": "transformer.h.{i}.ln_2",
        "blocks.{i}.ff.up": "transformer.h.{i}.mlp.c_fc",
        "blocks.{i}.ff.down": "transformer.h.{i}.mlp.c_proj",
        "final_norm": "transformer.ln_f",
        "to_logits": "lm_head",
    },
    ignored_tensors=(r"\.attention\.(masked_)?bias$",),
    aliases={"num_hidden_layers": "num_layers", "num_attention_heads": "num_heads"},
    ignored_keys=frozenset(("embed_dropout", "resid_dropout", "gradient_checkpointing")),
)
