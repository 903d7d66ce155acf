"""gpt-oss: sinks, windows in every other layer, experts with biases, clamped gates, weights that are a softmax of the chosen."""

from x_positional.pretrained.config_json.codecs import Fixed, Key, Only
from x_positional.pretrained.config_json.layer_types import Reaches, full_every
from x_positional.pretrained.config_json.moe_codec import Mixture, Named
from x_positional.pretrained.families.llama import LLAMA, rms_norms, sizes
from x_positional.pretrained.families.mixtral import LAYER, TRAINING
from x_positional.pretrained.tensors.layouts_experts import Fused, gates_between

GPT_OSS = LLAMA.like(
    "gpt_oss",
    "GptOssForCausalLM",
    fields=(
        Mixture(
            numbers={
                "experts": Named("num_local_experts", 128, also="num_experts"),
                "top_k": Named("num_experts_per_tok", 4),
            },
            fixed={"router_bias": True},
            width="intermediate_size",
        ),
        *rms_norms(eps=1e-5),
        Reaches(unlisted=full_every(2)),
        Key("layers.attn.bias", "attention_bias", True),
        Fixed("layers.attn.sinks", True),
        Fixed("layers.ff.bias", True),
        Fixed("layers.ff.activation", "silu"),
        Key("layers.ff.swish_beta", "swiglu_alpha", 1.702),
        Key("layers.ff.glu_clamp", "swiglu_limit", 7.0),
        Fixed("layers.ff.glu_shift", 1.0),
        Only(
            "quantization_config",
            (None,),
            "its experts are stored in four bits, which are not read here. Save it as bfloat16 "
            "with transformers first.",
        ),
    ),
    names={
        "blocks.{i}.attn.sinks": LAYER + "self_attn.sinks",
        "blocks.{i}.ff.experts.up": Fused(LAYER + "mlp.experts.gate_up_proj", gates_between),
        "blocks.{i}.ff.experts.up_bias": Fused(LAYER + "mlp.experts.gate_up_proj_bias", gates_between),
        "blocks.{i}.ff.experts.down": Fused(LAYER + "mlp.experts.down_proj"),
        "blocks.{i}.ff.experts.down_bias": Fused(LAYER + "mlp.experts.down_proj_bias"),
        "blocks.{i}.ff.router": LAYER + "mlp.router",
    },
    harmless=TRAINING | {"hidden_act", "initial_context_length", "experts_per_token"},
    defaults=sizes(201088, 2880, 2880, 36, 64, 131072, num_key_value_heads=8, head_dim=64, sliding_window=128),
)
