"""Phi 1 to 2: parallel attention and feedforward, RoPE on a part of each head, biases everywhere; and Phi 3, Llama with fused
projections and LongRoPE.
"""

from typing import Any

from x_positional.pretrained.config_json.codecs import Custom, Fields, Fixed, Key, Nullable
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.config_json.layer_types import PARTIAL_FACTOR, RopeCodec
from x_positional.pretrained.families.gpt2 import layer_norms
from x_positional.pretrained.families.llama import LLAMA, activations, qk_norms_if, rms_norms, sizes
from x_positional.pretrained.tensors.layouts import Swapped
from x_positional.schemes import LongRope, Rope

PHI = LLAMA.like(
    "phi",
    "PhiForCausalLM",
    codecs=(
        *layer_norms("layer_norm_eps"),
        RopeCodec(reads=(PARTIAL_FACTOR,)),
        Fixed("layers.norm_place", "parallel"),
        Fixed("layers.attn.bias", True),
        Fixed("layers.ff.bias", True),
        Fixed("layers.ff.glu", False),
        Key("layers.ff.activation", "hidden_act", "gelu_new", activations("gelu_new")),
        Fixed("logits_bias", True),
        qk_norms_if("qk_layernorm", "layer", "layer_norm_eps", 1e-5, bias=True),
    ),
    names={
        "blocks.{i}.attn.to_out": "model.layers.{i}.self_attn.dense",
        "blocks.{i}.attn.q_norm": "model.layers.{i}.self_attn.q_layernorm",
        "blocks.{i}.attn.k_norm": "model.layers.{i}.self_attn.k_layernorm",
        "blocks.{i}.ff_residual.before": None,
        "blocks.{i}.ff.up": "model.layers.{i}.mlp.fc1",
        "blocks.{i}.ff.down": "model.layers.{i}.mlp.fc2",
        "final_norm": "model.final_layernorm",
        "tied_bias": "lm_head.bias",
    },
    defaults=sizes(51200, 2048, 8192, 24, 32, 2048),
)


def _trained_length(fields: Fields) -> dict[str, Any]:
    """The length at the top level overrides the one in the RoPE parameters, and so does its default."""
    match fields.get("layers.position"):
        case (Rope(scaling=LongRope() as scaling),):
            return {"original_max_position_embeddings": scaling.original_max_position_embeddings}
        case _:
            return {}


PHI3 = LLAMA.like(
    "phi3",
    "Phi3ForCausalLM",
    codecs=(
        *rms_norms(eps=1e-5),
        RopeCodec(reads=(PARTIAL_FACTOR,)),
        Nullable("layers.window", "sliding_window"),
        Custom((), (), lambda hf: {}, _trained_length),
        Fixed("layers.attn.bias", False),
        Fixed("layers.ff.bias", False),
    ),
    names={
        "blocks.{i}.attn.to_qkv": "model.layers.{i}.self_attn.qkv_proj",
        "blocks.{i}.ff.up": Swapped("model.layers.{i}.mlp.gate_up_proj"),
    },
    ignored_keys=key_names(
        "attention_bias full_attn_mod interpolate_factor lm_head_bias mlp_bias"  # no checkpoint has a bias
    ),
    defaults=sizes(32064, 3072, 8192, 32, 32, 4096, original_max_position_embeddings=4096),
)
