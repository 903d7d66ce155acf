"""GLM 4.5 and dots.llm1: DeepSeek-V3's experts with grouped queries; GLM rotates half of each head."""

from dataclasses import replace

from x_positional.pretrained.config_json.codecs import Fixed, Key
from x_positional.pretrained.config_json.layer_types import PARTIAL_FACTOR, LayerTypesCodec, RopeCodec, sliding_from
from x_positional.pretrained.config_json.moe_codec import AliasedKey
from x_positional.pretrained.families.deepseek import FURTHER, MIXTURE, ROUTING
from x_positional.pretrained.families.llama import LLAMA, qk_norms, qk_norms_if, rms_norms, sizes
from x_positional.pretrained.families.mixtral import TRAINING
from x_positional.pretrained.families.qwen import QWEN3

GLM4_MOE = LLAMA.like(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    codecs=(
        *rms_norms(eps=1e-5),
        qk_norms_if("use_qk_norm", "rms", "rms_norm_eps", 1e-5),
        RopeCodec(reads=(PARTIAL_FACTOR,)),
        Key("layers.attn.bias", "attention_bias", False),
        Fixed("layers.attn.out_bias", False),
        Fixed("layers.ff.bias", False),
        replace(
            MIXTURE,
            numbers={
                **MIXTURE.numbers,
                "experts": AliasedKey("n_routed_experts", 128),
                "scale": AliasedKey("routed_scaling_factor", 1.0),
                "groups": AliasedKey("n_group", 1),
                "top_groups": AliasedKey("topk_group", 1),
            },
        ),
    ),
    names={**ROUTING, **{ours: layout for ours, layout in QWEN3.names.items() if "attn." in ours and "_norm" in ours}},
    ignored_tensors=(*LLAMA.ignored_tensors, r"^model\.layers\.(46|92)\."),  # multi-token prediction, unused here
    aliases={"num_local_experts": "n_routed_experts"},
    ignored_keys=TRAINING | FURTHER,
    defaults=sizes(
        151552,
        4096,
        10944,
        46,
        96,
        131072,
        num_key_value_heads=8,
        moe_intermediate_size=1408,
        n_shared_experts=1,
        first_k_dense_replace=1,
    ),
)

DOTS1 = GLM4_MOE.like(
    "dots1",
    "Dots1ForCausalLM",
    codecs=(
        *rms_norms(eps=1e-6),
        *qk_norms("rms", "rms_norm_eps", 1e-6),
        RopeCodec(),
        Key("layers.attn.bias", "attention_bias", False),
        Key("layers.attn.out_bias", "attention_bias", False),
        LayerTypesCodec(default_types=sliding_from("max_window_layers"), legacy_keys=("max_window_layers",)),
        replace(
            MIXTURE,
            numbers={
                **MIXTURE.numbers,
                "experts": AliasedKey("n_routed_experts", None),
                "top_k": AliasedKey("num_experts_per_tok", None),
                "scale": AliasedKey("routed_scaling_factor", 1.0),
                "renorm": AliasedKey("norm_topk_prob", False),
                "groups": AliasedKey("n_group", 1),
                "top_groups": AliasedKey("topk_group", 1),
            },
        ),
    ),
    ignored_tensors=LLAMA.ignored_tensors,
    defaults=sizes(
        152064,
        4608,
        10944,
        62,
        32,
        2048,
        num_key_value_heads=32,
        moe_intermediate_size=1408,
        first_k_dense_replace=0,
        sliding_window=4096,
        max_window_layers=62,
    ),
)
