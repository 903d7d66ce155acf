"""Mixtures of experts: Mixtral, Qwen 2 and 3, OLMoE, gpt-oss, DeepSeek-V3, Llama 4."""

from tests.support.published.compare import Published
from tests.support.published.decoders_llama import LLAMA

WIDE = {**LLAMA, "head_dim": 10}
MIXTRAL = {**WIDE, "num_local_experts": 5, "num_experts_per_tok": 2}
QWEN = {
    **LLAMA,
    "num_hidden_layers": 4,
    "moe_intermediate_size": 12,
    "num_experts": 6,
    "num_experts_per_tok": 3,
}
QWEN2 = {**QWEN, "shared_expert_intermediate_size": 20, "decoder_sparse_step": 2}
QWEN3 = {**QWEN, "head_dim": 10, "mlp_only_layers": [1], "attention_bias": True}
OLMOE = {**LLAMA, "num_experts": 5, "num_experts_per_tok": 3, "intermediate_size": 20}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
GPT_OSS = {
    **WIDE,
    "intermediate_size": 20,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "sliding_window": 6,
    "rope_parameters": {**YARN, "beta_fast": 2.0, "beta_slow": 0.25, "truncate": False},
}
DEEPSEEK = {
    **LLAMA,
    "num_hidden_layers": 3,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 12,
    "n_routed_experts": 8,
    "n_shared_experts": 2,
    "num_experts_per_tok": 3,
    "n_group": 4,
    "topk_group": 2,
    "first_k_dense_replace": 1,
    "kv_lora_rank": 9,
    "q_lora_rank": 14,
    "qk_rope_head_dim": 6,
    "qk_nope_head_dim": 10,
    "v_head_dim": 7,
    "attention_bias": True,
}
LLAMA4 = {
    **LLAMA,
    "num_hidden_layers": 5,
    "head_dim": 10,
    "intermediate_size": 20,
    "intermediate_size_mlp": 44,
    "num_local_experts": 5,
    "num_experts_per_tok": 2,
    "interleave_moe_layer_step": 2,
    "attention_chunk_size": 7,
    "floor_scale": 5,
    "attn_scale": 0.4,
    "attention_bias": True,
    "layer_types": None,
}

CASES = [
    Published(name="mixtral", model="MixtralForCausalLM", config=MIXTRAL),
    Published(name="mixtral window", model="MixtralForCausalLM", config={**MIXTRAL, "sliding_window": 5}),
    Published(name="qwen2_moe", model="Qwen2MoeForCausalLM", config=QWEN2),
    Published(
        name="qwen2_moe windows",
        model="Qwen2MoeForCausalLM",
        config={
            **QWEN2,
            "use_sliding_window": True,
            "sliding_window": 5,
            "norm_topk_prob": True,
            "qkv_bias": False,
            "mlp_only_layers": [2],
            "decoder_sparse_step": 1,
        },
    ),
    Published(name="qwen3_moe", model="Qwen3MoeForCausalLM", config=QWEN3),
    Published(
        name="qwen3_moe window",
        model="Qwen3MoeForCausalLM",
        config={**QWEN3, "use_sliding_window": True, "sliding_window": 6, "norm_topk_prob": True},
    ),
    Published(name="olmoe", model="OlmoeForCausalLM", config={**OLMOE, "attention_bias": True}),
    Published(
        name="olmoe clipped", model="OlmoeForCausalLM", config={**OLMOE, "clip_qkv": 0.6, "norm_topk_prob": True}
    ),
    Published(name="gpt_oss", model="GptOssForCausalLM", config=GPT_OSS, attention="eager"),
    Published(
        name="gpt_oss clamped",
        model="GptOssForCausalLM",
        attention="eager",
        config={**GPT_OSS, "swiglu_limit": 0.3, "swiglu_alpha": 1.1, "attention_bias": False},
    ),
    Published(name="deepseek_v3", model="DeepseekV3ForCausalLM", config=DEEPSEEK),
    Published(
        name="deepseek_v3 halves",
        model="DeepseekV3ForCausalLM",
        config={
            **DEEPSEEK,
            "rope_interleave": False,
            "q_lora_rank": None,
            "norm_topk_prob": False,
            "attention_bias": False,
        },
    ),
    Published(
        name="deepseek_v3 yarn",
        model="DeepseekV3ForCausalLM",
        config={
            **DEEPSEEK,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 2,
            "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 1.3},
        },
    ),
    Published(name="llama4 text", model="Llama4ForCausalLM", config={**LLAMA4, "attn_temperature_tuning": False}),
    # Its temperature counts cache slots including padding; x_positional uses positions.
    Published(name="llama4 temperature", model="Llama4ForCausalLM", config=LLAMA4, padded=False, jumping=False),
    Published(
        name="llama4 bare",
        model="Llama4ForCausalLM",
        padded=False,
        jumping=False,  # as above
        config={**LLAMA4, "use_qk_norm": False, "moe_layers": [1, 2], "no_rope_layers": [1, 0, 1, 1, 0]},
    ),
]
