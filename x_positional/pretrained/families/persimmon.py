"""Persimmon: LayerNorm, also of each query and key, biases everywhere, squared ReLU, RoPE on half of each head."""

from x_positional.pretrained.config_json.codecs import Fixed, Key, head_dim, quotient
from x_positional.pretrained.config_json.layer_types import PARTIAL_FACTOR, RopeCodec
from x_positional.pretrained.families.gpt2 import layer_norms
from x_positional.pretrained.families.llama import LLAMA, activations, qk_norms_if, sizes
from x_positional.pretrained.tensors.layouts import grouped_qkv

PLACE = "model.layers.{i}."

PERSIMMON = LLAMA.like(
    "persimmon",
    "PersimmonForCausalLM",
    codecs=(
        *layer_norms("layer_norm_eps"),
        RopeCodec(reads=(PARTIAL_FACTOR,)),
        head_dim(quotient("hidden_size", "num_attention_heads")),
        Fixed("layers.kv_heads", None),
        Fixed("layers.attn.bias", True),
        Fixed("layers.ff.bias", True),
        Fixed("layers.ff.glu", False),
        Key("layers.ff.activation", "hidden_act", "relu2", activations("relu2")),
        qk_norms_if("qk_layernorm", "layer", "layer_norm_eps", 1e-5, bias=True),
    ),
    names={
        "blocks.{i}.attn.to_qkv": grouped_qkv(PLACE + "self_attn.query_key_value"),
        "blocks.{i}.attn.to_out": PLACE + "self_attn.dense",
        "blocks.{i}.attn.q_norm": PLACE + "self_attn.q_layernorm",
        "blocks.{i}.attn.k_norm": PLACE + "self_attn.k_layernorm",
        "blocks.{i}.ff.up": PLACE + "mlp.dense_h_to_4h",
        "blocks.{i}.ff.down": PLACE + "mlp.dense_4h_to_h",
        "final_norm": "model.final_layernorm",
    },
    defaults=sizes(262144, 4096, 16384, 36, 64, 16384, qk_layernorm=True),
)
