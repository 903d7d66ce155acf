"""GPT-BigCode (StarCoder 1, SantaCoder): GPT-2 with multi-query attention, optionally with one key head per query head."""

from typing import Any

from x_positional.pretrained.config_json.codecs import Custom, Fields, Hf, Key, Only
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.families.gpt2 import GPT2
from x_positional.pretrained.families.llama import ACTIVATIONS
from x_positional.pretrained.families.sizes import OLD_ALIASES
from x_positional.pretrained.tensors.layouts import grouped_qkv


def _scale_fields(hf: Hf) -> Fields:
    return {"layers.attn.scale": (hf["n_embd"] // hf["n_head"]) ** -0.5 if hf.get("scale_attn_weights", True) else 1.0}


def _scale_keys(fields: Fields) -> dict[str, Any]:
    return {"scale_attn_weights": fields.get("layers.attn.scale") != 1.0}


KV_HEADS = Custom(
    ("layers.kv_heads",),
    ("multi_query",),
    lambda hf: {"layers.kv_heads": 1 if hf.get("multi_query", True) else hf.get("n_head", 12)},
    lambda fields: {"multi_query": fields["layers.kv_heads"] == 1},
)

GPT_BIGCODE = GPT2.like(
    "gpt_bigcode",
    "GPTBigCodeForCausalLM",
    codecs=(
        Key("layers.ff.activation", "activation_function", "gelu_pytorch_tanh", ACTIVATIONS),
        Custom(("layers.attn.scale", "each.attn.scale"), ("scale_attn_weights",), _scale_fields, _scale_keys),
        KV_HEADS,
        Only("add_cross_attention", (False,), "a decoder with cross-attention is unsupported."),
    ),
    names={
        "blocks.{i}.attn.to_qkv": grouped_qkv("transformer.h.{i}.attn.c_attn"),
        "blocks.{i}.attn.to_out": "transformer.h.{i}.attn.c_proj",
        "blocks.{i}.ff.up": "transformer.h.{i}.mlp.c_fc",
        "blocks.{i}.ff.down": "transformer.h.{i}.mlp.c_proj",
    },
    aliases=OLD_ALIASES,
    ignored_keys=key_names(
        "attention_softmax_in_fp32 scale_attention_softmax_in_fp32 inference_runner validate_runner_input pre_allocate_kv_cache "
        "max_sequence_length max_batch_size pad_key_length num_key_value_heads n_ctx"
    ),
)
