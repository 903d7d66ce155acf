"""GLM 4: interleaved RoPE on half of each head, gate and value in one projection; and its later version with sandwich norms."""

from x_positional.pretrained.config_json.codecs import Fixed, Key
from x_positional.pretrained.config_json.layer_types import PARTIAL_FACTOR, RopeCodec
from x_positional.pretrained.families.llama import LLAMA, rms_norms, sizes
from x_positional.pretrained.tensors.layouts import Swapped

GLM = LLAMA.like(
    "glm",
    "GlmForCausalLM",
    codecs=(
        *rms_norms(eps=1.5625e-7),
        RopeCodec(reads=(PARTIAL_FACTOR,)),
        Key("layers.attn.bias", "attention_bias", True),
        Fixed("layers.attn.out_bias", False),
        Fixed("layers.ff.bias", False),
    ),
    names={"blocks.{i}.ff.up": Swapped("model.layers.{i}.mlp.gate_up_proj")},
    defaults=sizes(151552, 4096, 13696, 40, 32, 131072, num_key_value_heads=2, head_dim=128),
)

GLM4 = GLM.like(
    "glm4",
    "Glm4ForCausalLM",
    codecs=(Fixed("layers.norm_place", "sandwich"),),
    names={
        "blocks.{i}.attn_residual.after": "model.layers.{i}.post_self_attn_layernorm",
        "blocks.{i}.ff_residual.after": "model.layers.{i}.post_mlp_layernorm",
    },
)
