"""GPT-NeoX (Pythia): parallel attention and feedforward with a norm each, RoPE on a part of each head."""

from typing import Any

from x_positional.pretrained.config_json.causal import CAUSAL
from x_positional.pretrained.config_json.codecs import Custom, Fields, Hf, Key
from x_positional.pretrained.config_json.layer_types import ROPE_KEYS
from x_positional.pretrained.families.gpt2 import layer_norms
from x_positional.pretrained.families.llama import ACTIVATIONS, tied
from x_positional.pretrained.families.sizes import even_heads
from x_positional.pretrained.family import Family
from x_positional.pretrained.rope import published_rope, to_hf
from x_positional.pretrained.tensors.layouts import grouped_qkv
from x_positional.schemes import Rope


def _rope_fields(hf: Hf) -> Fields:
    return {"layers.position": [published_rope(hf, ("rotary_emb_base", "rotary_pct"))]}


def rotary_pct(dim: int, head_dim: int) -> float:
    """The fraction of a head that reads back as `dim` channels, given that readers take int(fraction * head_dim)."""
    exact = dim / head_dim
    return exact if int(exact * head_dim) == dim else (dim + 0.5) / head_dim


def _rope_keys(fields: Fields) -> dict[str, Any]:
    """The fraction is always written, because this family's default is a quarter."""
    match fields.get("layers.position"):
        case (Rope(dim=int() as dim) as rope,):
            part = rotary_pct(dim, fields["layers.head_dim"])
            keys = to_hf(rope.model_copy(update={"dim": None}))
            return keys | {"rope_parameters": {**keys["rope_parameters"], "partial_rotary_factor": part}}
        case _:
            return {}


GPT_NEOX = Family(
    model_type="gpt_neox",
    architecture="GPTNeoXForCausalLM",
    prefix="gpt_neox.",
    codecs=(
        Key("num_tokens", "vocab_size", 50432),
        Key("max_seq_len", "max_position_embeddings", 2048),
        Key("layers.dim", "hidden_size", 6144),
        Key("layers.depth", "num_hidden_layers", 44),
        Key("layers.heads", "num_attention_heads", 64),
        even_heads("hidden_size", "num_attention_heads", (6144, 64)),
        Key("layers.ff.dim", "intermediate_size", 24576),
        Key("layers.ff.activation", "hidden_act", "gelu", ACTIVATIONS),
        *tied(False),
        *layer_norms("layer_norm_eps"),
        Custom(("layers.position",), ROPE_KEYS, _rope_fields, _rope_keys),
        CAUSAL,
        Key("layers.norm_place", "use_parallel_residual", True, {True: "parallel_two", False: "pre"}),
        Key("layers.attn.bias", "attention_bias", True),
    ),
    names={
        "token_emb": "gpt_neox.embed_in",
        "blocks.{i}.attn_residual.before": "gpt_neox.layers.{i}.input_layernorm",
        "blocks.{i}.attn.to_qkv": grouped_qkv("gpt_neox.layers.{i}.attention.query_key_value"),
        "blocks.{i}.attn.to_out": "gpt_neox.layers.{i}.attention.dense",
        "blocks.{i}.ff_residual.before": "gpt_neox.layers.{i}.post_attention_layernorm",
        "blocks.{i}.ff.up": "gpt_neox.layers.{i}.mlp.dense_h_to_4h",
        "blocks.{i}.ff.down": "gpt_neox.layers.{i}.mlp.dense_4h_to_h",
        "final_norm": "gpt_neox.final_layer_norm",
        "to_logits": "embed_out",
    },
    ignored_tensors=(r"\.attention\.(masked_)?bias$", r"rotary_emb\.inv_freq$"),
)
