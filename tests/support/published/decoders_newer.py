"""Small models of newer decoders: DeepSeek-V2, ERNIE 4.5, EXAONE 4, GLM 4.5, Ministral 3, Seed-OSS."""

from tests.support.draws import draws
from tests.support.published.compare import EPS, Published
from tests.support.published.decoders_llama import LLAMA
from tests.support.published.decoders_moe import DEEPSEEK

WIDE = {**LLAMA, "head_dim": 10}
FULL, SLIDING = "full_attention", "sliding_attention"
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 16.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
TEMPERATURE = {
    "rope_type": "default",
    "rope_theta": 500.0,
    "llama_4_scaling_beta": 0.3,
    "original_max_position_embeddings": 4,
}
PERSIMMON = {
    **{key: value for key, value in LLAMA.items() if key not in ("rms_norm_eps", "num_key_value_heads")},
    "layer_norm_eps": EPS,
}

DENSE = [
    Published(name="seed_oss", model="SeedOssForCausalLM", config=WIDE),
    Published(
        name="seed_oss, other biases",
        model="SeedOssForCausalLM",
        config={**WIDE, "attention_bias": False, "attention_out_bias": True, "mlp_bias": True},
    ),
    Published(
        name="exaone4",
        model="Exaone4ForCausalLM",
        config={**LLAMA, "num_hidden_layers": 5, "sliding_window": 5, "rope_parameters": LLAMA3},
    ),
    Published(
        name="exaone4, full attention alone",
        model="Exaone4ForCausalLM",
        config={
            **WIDE,
            "sliding_window": None,
            "sliding_window_pattern": None,
            "layer_types": [FULL] * 3,
            "tie_word_embeddings": True,
        },
    ),
    Published(
        name="ministral3",
        model="Ministral3ForCausalLM",
        config={
            **WIDE,
            "rope_parameters": {**YARN, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3}
            | {"original_max_position_embeddings": 7},
        },
    ),
    Published(
        name="ministral3 with windows",
        model="Ministral3ForCausalLM",
        config={**LLAMA, "head_dim": 8, "sliding_window": 5, "rope_parameters": TEMPERATURE},
    ),
    Published(
        name="ministral",
        model="MinistralForCausalLM",
        config={**WIDE, "sliding_window": 5, "layer_types": [FULL, SLIDING, SLIDING]},
    ),
    Published(name="ernie4_5", model="Ernie4_5ForCausalLM", config=WIDE),
    Published(
        name="ernie4_5 with biases",
        model="Ernie4_5ForCausalLM",
        config={**WIDE, "use_bias": True, "tie_word_embeddings": False},
    ),
]

SMALL = [
    Published(
        name="hunyuan_v1_dense",
        model="HunYuanDenseV1ForCausalLM",
        config={
            **WIDE,
            "attention_bias": True,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 500.0, "alpha": 50.0, "factor": 1.0},
        },
    ),
    Published(
        name="arcee",
        model="ArceeForCausalLM",
        config={**WIDE, "attention_bias": True, "mlp_bias": True, "rope_parameters": YARN},
    ),
    Published(
        name="helium",
        model="HeliumForCausalLM",
        config={**LLAMA, "head_dim": 8, "attention_bias": True, "mlp_bias": True},
    ),
    Published(
        name="nanochat",
        model="NanoChatForCausalLM",
        config={**LLAMA, "final_logit_softcapping": 2.5, "attention_bias": True},
    ),
    Published(
        name="apertus",
        model="ApertusForCausalLM",
        config={**WIDE, "attention_bias": True, "rope_parameters": LLAMA3},
    ),
    Published(
        name="apertus with another activation",
        model="ApertusForCausalLM",
        config={**LLAMA, "hidden_act": "relu2", "rope_parameters": {"rope_theta": 500.0, "rope_type": "default"}},
    ),
    Published(name="persimmon", model="PersimmonForCausalLM", config=PERSIMMON),
    Published(
        name="persimmon without norms of heads",
        model="PersimmonForCausalLM",
        config={
            **PERSIMMON,
            "qk_layernorm": False,
            "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.75},
        },
    ),
]

GLM = {
    **{key: value for key, value in DEEPSEEK.items() if not key.endswith(("_rank", "_head_dim"))},
    "num_key_value_heads": 2,
    "head_dim": 12,
}
ERNIE = {
    **WIDE,
    "moe_intermediate_size": 12,
    "moe_num_experts": 6,
    "moe_k": 3,
}
MINIMAX = {**WIDE, "num_local_experts": 5, "num_experts_per_tok": 2, "intermediate_size": 20}
MIXTURES = [
    Published(name="glm4_moe", model="Glm4MoeForCausalLM", config={**GLM, "use_qk_norm": True}),
    Published(
        name="glm4_moe in groups",
        model="Glm4MoeForCausalLM",
        config={
            **GLM,
            "attention_bias": False,
            "norm_topk_prob": False,
            "routed_scaling_factor": 1.7,
            "n_group": 1,
            "topk_group": 1,
            "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.34},
        },
    ),
]

OTHERS = [
    Published(
        name="dots1",
        model="Dots1ForCausalLM",
        config={**GLM, "sliding_window": 5, "max_window_layers": 2, "routed_scaling_factor": 1.7},
    ),
    Published(name="ernie4_5_moe", model="Ernie4_5_MoeForCausalLM", config=ERNIE),
    Published(
        name="ernie4_5_moe in every other layer",
        model="Ernie4_5_MoeForCausalLM",
        config={
            **ERNIE,
            "num_hidden_layers": 5,
            "moe_layer_interval": 2,
            "moe_layer_end_index": 2,
            "moe_num_shared_experts": 0,
        },
    ),
    Published(name="minimax_m2", model="MiniMaxM2ForCausalLM", config=MINIMAX),
    Published(
        name="minimax_m2, a part of each head",
        model="MiniMaxM2ForCausalLM",
        config={**MINIMAX, "rotary_dim": 6, "rope_theta": 500.0},
    ),
    Published(
        name="granitemoe",
        model="GraniteMoeForCausalLM",
        config={
            **WIDE,
            "num_local_experts": 5,
            "num_experts_per_tok": 2,
            "intermediate_size": 20,
            "embedding_multiplier": 3.5,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.6,
            "logits_scaling": 0.3,
            "attention_bias": True,
        },
    ),
]

V2 = {
    **{key: value for key, value in DEEPSEEK.items() if key not in ("n_group", "topk_group")},
    "routed_scaling_factor": 1.6,
    "kv_lora_rank": 10,  # the published code needs an even one
}
V2S = [
    Published(name="deepseek_v2", model="DeepseekV2ForCausalLM", config=V2),
    Published(
        name="deepseek_v2 in groups",
        model="DeepseekV2ForCausalLM",
        config={**V2, "topk_method": "group_limited_greedy", "n_group": 4, "topk_group": 2, "attention_bias": False},
    ),
    Published(
        name="deepseek_v2 yarn",
        model="DeepseekV2ForCausalLM",
        config={
            **V2,
            "q_lora_rank": None,
            "num_experts_per_tok": 6,
            "n_group": 1,
            "topk_group": 1,
            "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
        },
    ),
]

RARE = {
    "seed_oss, other biases",
    "ernie4_5 with biases",
    "persimmon without norms of heads",
    "apertus with another activation",
    "minimax_m2, a part of each head",
    "glm4_moe in groups",
    "deepseek_v2 yarn",
}
"""Settings that the published configs cover too: tested with all draws."""
CASES = [case for case in (*DENSE, *SMALL, *MIXTURES, *OTHERS, *V2S) if case.name not in draws(RARE, set())]
