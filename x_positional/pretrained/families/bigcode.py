"""GPT-BigCode (StarCoder 1, SantaCoder): GPT-2 with one key head for all queries, or a key head for each."""

from typing import Any

from x_positional.pretrained.config_json.codecs import Both, Fields, Hf, Key, Only
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.families.gpt2 import GPT2
from x_positional.pretrained.families.llama import ACTIVATIONS
from x_positional.pretrained.families.sizes import OLD_ALIASES
from x_positional.pretrained.tensors.fused_qkv import grouped


def _scale_fields(hf: Hf) -> Fields:
    return {"layers.attn.scale": (hf["n_embd"] // hf["n_head"]) ** -0.5 if hf.get("scale_attn_weights", True) else 1.0}


def _scale_keys(config: Fields) -> dict[str, Any]:
    return {"scale_attn_weights": config.get("layers.attn.scale") != 1.0}


KV_HEADS = Both(
    ("layers.kv_heads",),
    ("multi_query",),
    lambda hf: {"layers.kv_heads": 1 if hf.get("multi_query", True) else hf.get("n_head", 12)},
    lambda config: {"multi_query": config["layers.kv_heads"] == 1},
)

GPT_BIGCODE = GPT2.like(
    "gpt_bigcode",
    "GPTBigCodeForCausalLM",
    fields=(
        Key("layers.ff.activation", "activation_function", "gelu_pytorch_tanh", ACTIVATIONS),
        Both(("layers.attn.scale", "each.attn.scale"), ("scale_attn_weights",), _scale_fields, _scale_keys),
        KV_HEADS,
        Only("add_cross_attention", (False,), "a decoder with cross-attention is not read here."),
    ),
    names={
        "blocks.{i}.attn.to_qkv": grouped("transformer.h.{i}.attn.c_attn"),
        "blocks.{i}.attn.to_out": "transformer.h.{i}.attn.c_proj",
        "blocks.{i}.ff.up": "transformer.h.{i}.mlp.c_fc",
        "blocks.{i}.ff.down": "transformer.h.{i}.mlp.c_proj",
    },
    aliases=OLD_ALIASES,
    harmless=key_names(
        "attention_softmax_in_fp32 scale_attention_softmax_in_fp32 inference_runner validate_runner_input pre_allocate_kv_cache "
        "max_sequence_length max_batch_size pad_key_length num_key_value_heads n_ctx"
    ),
)
