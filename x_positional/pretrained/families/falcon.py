"""Falcon in its three variants: 7b (multi-query, parallel branches with one norm), 40b (grouped queries, parallel branches
with two norms), and rw (ALiBi, sequential branches).
"""

from typing import Any

from x_positional.errors import ConfigError
from x_positional.pretrained.config_json.causal import CAUSAL, is_causal
from x_positional.pretrained.config_json.codecs import Custom, Fields, Hf, Key, Only
from x_positional.pretrained.config_json.layer_types import ROPE_KEYS
from x_positional.pretrained.families.gpt2 import layer_norms
from x_positional.pretrained.families.llama import ACTIVATIONS, tied
from x_positional.pretrained.families.sizes import even_heads, inner_width
from x_positional.pretrained.family import Family
from x_positional.pretrained.rope import published_rope, to_hf
from x_positional.pretrained.tensors.layouts import ByNormPlace, grouped_qkv
from x_positional.schemes import Alibi, Rope

WIDTH, HEADS = 4544, 71
LAYER = "transformer.h.{i}."


def _position_fields(hf: Hf) -> Fields:
    """ALiBi's biases are rounded to bfloat16 for any dtype of the model, and scaled like the scores."""
    if not hf.get("alibi"):
        return {"layers.position": [published_rope(hf, ("rope_theta",))]}
    if not is_causal(hf):
        raise ConfigError("is_causal=False: ALiBi of this family is defined for causal attention only.")
    head_dim = hf.get("hidden_size", WIDTH) // hf.get("num_attention_heads", HEADS)
    return {"layers.position": [Alibi(rounding="bfloat16", scale=head_dim**-0.5)]}


def _position_keys(fields: Fields) -> dict[str, Any]:
    match fields.get("layers.position"):
        case (Rope() as rope,):
            return {**to_hf(rope.model_copy(update={"dim": None})), "alibi": False}
        case (Alibi(),):
            return {"alibi": True}
        case _:
            return {}


def _shape_fields(hf: Hf) -> Fields:
    """Key heads and norm placement. The new architecture is always parallel, with two norms by default; the old one ignores
    num_kv_heads.
    """
    heads = hf.get("num_attention_heads", HEADS)
    if hf.get("new_decoder_architecture"):
        norms = hf.get("num_ln_in_parallel_attn") or 2
        place = "parallel" if norms == 1 else "parallel_two"
        return {"layers.kv_heads": hf.get("num_kv_heads") or heads, "layers.norm_place": place}
    place = "parallel" if hf.get("parallel_attn", True) else "pre"
    return {"layers.kv_heads": 1 if hf.get("multi_query", True) else heads, "layers.norm_place": place}


def _shape_keys(fields: Fields) -> dict[str, Any]:
    heads, kv_heads, place = (fields[f"layers.{name}"] for name in ("heads", "kv_heads", "norm_place"))
    newer = place == "parallel_two" or (place == "parallel" and kv_heads not in (1, heads))
    return {
        "new_decoder_architecture": newer,
        "parallel_attn": place != "pre",
        "multi_query": kv_heads == 1,
        "num_kv_heads": kv_heads,
        "num_ln_in_parallel_attn": (2 if place == "parallel_two" else 1) if newer else None,
    }


FALCON = Family(
    model_type="falcon",
    architecture="FalconForCausalLM",
    prefix="transformer.",
    codecs=(
        Key("num_tokens", "vocab_size", 65024),
        Key("max_seq_len", "max_position_embeddings", 2048),
        Key("layers.dim", "hidden_size", WIDTH),
        Key("layers.depth", "num_hidden_layers", 32),
        Key("layers.heads", "num_attention_heads", HEADS),
        even_heads("hidden_size", "num_attention_heads", (WIDTH, HEADS)),
        inner_width("ffn_hidden_size", "hidden_size", WIDTH),
        Key("layers.ff.activation", "activation", "gelu", ACTIVATIONS),
        Custom(
            ("layers.position",),
            ("alibi", *ROPE_KEYS),
            _position_fields,
            _position_keys,
        ),
        Custom(
            ("layers.kv_heads", "layers.norm_place"),
            ("new_decoder_architecture", "multi_query", "parallel_attn", "num_kv_heads", "num_ln_in_parallel_attn"),
            _shape_fields,
            _shape_keys,
        ),
        *tied(True),
        *layer_norms("layer_norm_epsilon"),
        CAUSAL,
        Key("layers.attn.bias", "bias", False),
        Key("layers.ff.bias", "bias", False),
        Only("apply_residual_connection_post_layernorm", (False,), "Falcon's residuals bypass the norm."),
    ),
    names={
        "token_emb": "transformer.word_embeddings",
        "blocks.{i}.attn_residual.before": ByNormPlace(
            {"pre": LAYER + "input_layernorm", "parallel": LAYER + "input_layernorm", "parallel_two": LAYER + "ln_attn"}
        ),
        "blocks.{i}.attn.to_qkv": grouped_qkv(LAYER + "self_attention.query_key_value"),
        "blocks.{i}.attn.to_out": LAYER + "self_attention.dense",
        "blocks.{i}.ff_residual.before": ByNormPlace(
            {"pre": LAYER + "post_attention_layernorm", "parallel_two": LAYER + "ln_mlp"}
        ),
        "blocks.{i}.ff.up": LAYER + "mlp.dense_h_to_4h",
        "blocks.{i}.ff.down": LAYER + "mlp.dense_4h_to_h",
        "final_norm": "transformer.ln_f",
        "to_logits": "lm_head",
    },
    aliases={"n_embed": "hidden_size"},
    ignored_keys=frozenset(("ff_factor",)),
)
