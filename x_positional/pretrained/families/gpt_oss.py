"""gpt-oss: attention sinks, windows in every other layer, experts with biases, clamped gates, softmax over the chosen experts."""

from x_positional.pretrained.config_json.codecs import Fixed, Key
from x_positional.pretrained.config_json.layer_types import LayerTypesCodec, full_every
from x_positional.pretrained.config_json.moe_codec import AliasedKey, MoECodec
from x_positional.pretrained.families.llama import LLAMA, rms_norms, sizes
from x_positional.pretrained.families.mixtral import LAYER, TRAINING
from x_positional.pretrained.tensors.layouts import FusedExperts, gates_interleaved

GPT_OSS = LLAMA.like(
    "gpt_oss",
    "GptOssForCausalLM",
    codecs=(
        MoECodec(
            numbers={
                "experts": AliasedKey("num_local_experts", 128, alias="num_experts"),
                "top_k": AliasedKey("num_experts_per_tok", 4),
            },
            fixed={"router_bias": True},
            width="intermediate_size",
        ),
        *rms_norms(eps=1e-5),
        LayerTypesCodec(default_types=full_every(2), window_needed=True),
        Key("layers.attn.bias", "attention_bias", True),
        Fixed("layers.attn.sinks", True),
        Fixed("layers.ff.bias", True),
        Fixed("layers.ff.activation", "silu"),
        Key("layers.ff.swish_beta", "swiglu_alpha", 1.702),
        Key("layers.ff.glu_clamp", "swiglu_limit", 7.0),
        Fixed("layers.ff.glu_shift", 1.0),
    ),
    names={
        "blocks.{i}.attn.sinks": LAYER + "self_attn.sinks",
        "blocks.{i}.ff.experts.up": FusedExperts(LAYER + "mlp.experts.gate_up_proj", gates_interleaved),
        "blocks.{i}.ff.experts.up_bias": FusedExperts(LAYER + "mlp.experts.gate_up_proj_bias", gates_interleaved),
        "blocks.{i}.ff.experts.down": FusedExperts(LAYER + "mlp.experts.down_proj"),
        "blocks.{i}.ff.experts.down_bias": FusedExperts(LAYER + "mlp.experts.down_proj_bias"),
        "blocks.{i}.ff.router": LAYER + "mlp.router",
    },
    ignored_keys=TRAINING | {"hidden_act", "initial_context_length", "experts_per_token"},
    defaults=sizes(201088, 2880, 2880, 36, 64, 131072, num_key_value_heads=8, head_dim=64, sliding_window=128),
)
