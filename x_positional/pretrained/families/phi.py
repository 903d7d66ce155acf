"""Phi 1 to 2: attention and feedforward side by side, part of each head turns, biases everywhere; and Phi 3, a Llama with
joined projections and frequencies that change past the trained length.
"""

from typing import Any

from x_positional.pretrained.config_json.codecs import Both, Fields, Fixed, Key, Maybe
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.config_json.layer_types import SHARE, Turns
from x_positional.pretrained.families.gpt2 import layer_norms
from x_positional.pretrained.families.llama import LLAMA, activations, qk_norms_if, rms_norms, sizes
from x_positional.pretrained.tensors.layouts import Swapped
from x_positional.schemes import LongRope, Rope

PHI = LLAMA.like(
    "phi",
    "PhiForCausalLM",
    fields=(
        *layer_norms("layer_norm_eps"),
        Turns(honours=(SHARE,)),
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


def _trained_length(config: Fields) -> dict[str, Any]:
    """The length at the top wins over the one among the rotary parameters, and so does its default."""
    match config.get("layers.position"):
        case (Rope(scaling=LongRope() as scaling),):
            return {"original_max_position_embeddings": scaling.original_max_position_embeddings}
        case _:
            return {}


PHI3 = LLAMA.like(
    "phi3",
    "Phi3ForCausalLM",
    fields=(
        *rms_norms(eps=1e-5),
        Turns(honours=(SHARE,)),
        Maybe("layers.window", "sliding_window"),
        Both((), (), lambda hf: {}, _trained_length),
        Fixed("layers.attn.bias", False),
        Fixed("layers.ff.bias", False),
    ),
    names={
        "blocks.{i}.attn.to_qkv": "model.layers.{i}.self_attn.qkv_proj",
        "blocks.{i}.ff.up": Swapped("model.layers.{i}.mlp.gate_up_proj"),
    },
    harmless=key_names(
        "attention_bias full_attn_mod interpolate_factor lm_head_bias mlp_bias"  # no file has a bias
    ),
    defaults=sizes(32064, 3072, 8192, 32, 32, 4096, original_max_position_embeddings=4096),
)
