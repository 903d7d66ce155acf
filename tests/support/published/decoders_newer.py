"""Small models of newer decoders: DeepSeek-V2, ERNIE 4.5, EXAONE 4, GLM 4.5, Ministral 3, Seed-OSS."""

from tests.support.published.compare import Published
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

GLM = {
    **{key: value for key, value in DEEPSEEK.items() if not key.endswith(("_rank", "_head_dim"))},
    "num_key_value_heads": 2,
    "head_dim": 12,
}
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

CASES = [*DENSE, *MIXTURES, *V2S]
