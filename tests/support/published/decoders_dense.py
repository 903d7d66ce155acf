"""Small models of families similar to Llama: windows, other norms and biases, partial RoPE."""

from tests.support.published.compare import EPS, Published
from tests.support.published.decoders_llama import LLAMA

NO_EPS = {key: value for key, value in LLAMA.items() if key != "rms_norm_eps"}
LAYER_NORM = NO_EPS | {"layer_norm_eps": EPS}
WIDE = LLAMA | {"head_dim": 10}
"""Heads whose dim is not width / heads."""
PHI3_LONG = {
    "rope_type": "longrope",
    "rope_theta": 500.0,
    "short_factor": [1.0, 1.1, 1.2],
    "long_factor": [2.0, 3.0, 4.0],
    "partial_rotary_factor": 0.75,
}


def qwen(name: str, model: str, **config: object) -> Published:
    windows = {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1}
    return Published(name=name, model=model, config={**WIDE, **windows, **config})


MISTRALS = [
    Published(name="mistral", model="MistralForCausalLM", config=WIDE | {"sliding_window": 5}),
    Published(name="mistral without windows", model="MistralForCausalLM", config=LLAMA | {"sliding_window": None}),
    qwen("qwen2", "Qwen2ForCausalLM"),
    qwen("qwen2 listed", "Qwen2ForCausalLM", layer_types=["sliding_attention", "full_attention", "sliding_attention"]),
    qwen("qwen2 without windows", "Qwen2ForCausalLM", use_sliding_window=False, tie_word_embeddings=True),
    qwen("qwen3", "Qwen3ForCausalLM"),
    qwen("qwen3 with biases", "Qwen3ForCausalLM", attention_bias=True, use_sliding_window=False),
]

PHIS = [
    Published(name="phi", model="PhiForCausalLM", config=LAYER_NORM | {"qk_layernorm": True}),
    Published(
        name="phi bare",
        model="PhiForCausalLM",
        config=LAYER_NORM | {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.75}},
    ),
    Published(
        name="phi whole heads",
        model="PhiForCausalLM",
        config=LAYER_NORM
        | {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 1.0}, "tie_word_embeddings": True},
    ),
    Published(name="phi3", model="Phi3ForCausalLM", config=WIDE | {"sliding_window": 6}),
    Published(
        name="phi3 longrope",
        model="Phi3ForCausalLM",
        padded=False,
        jumping=False,  # one long row changes the frequencies of all rows
        config=LLAMA | {"rope_parameters": PHI3_LONG, "original_max_position_embeddings": 12},
    ),
]

OTHERS = [
    Published(
        name="cohere",
        model="CohereForCausalLM",
        config=LAYER_NORM | {"use_qk_norm": True, "logit_scale": 0.3, "attention_bias": True},
    ),
    Published(
        name="cohere bare",
        model="CohereForCausalLM",
        config=LAYER_NORM | {"logit_scale": 1.0, "head_dim": 10, "tie_word_embeddings": False},
    ),
    Published(
        name="cohere2",
        model="Cohere2ForCausalLM",
        config=LAYER_NORM | {"sliding_window": 5, "logit_scale": 0.7, "num_hidden_layers": 5, "attention_bias": True},
    ),
    Published(
        name="cohere2 listed",
        model="Cohere2ForCausalLM",
        config=LAYER_NORM
        | {
            "logit_scale": 0.4,
            "sliding_window": 6,
            "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
        },
    ),
    Published(name="olmo", model="OlmoForCausalLM", config=NO_EPS | {"clip_qkv": 0.3, "attention_bias": True}),
    Published(name="olmo bare", model="OlmoForCausalLM", config=NO_EPS | {"clip_qkv": None, "head_dim": 10}),
    Published(name="olmo2", model="Olmo2ForCausalLM", config=WIDE | {"attention_bias": True}),
    Published(name="olmo3", model="Olmo3ForCausalLM", config=LLAMA | {"sliding_window": 5, "num_hidden_layers": 5}),
    Published(
        name="olmo3 yarn",
        model="Olmo3ForCausalLM",
        config=WIDE
        | {
            "sliding_window": 5,
            "num_hidden_layers": 5,
            "rope_parameters": {
                "full_attention": {
                    "rope_type": "yarn",
                    "rope_theta": 500.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 16,
                },
                "sliding_attention": {"rope_type": "default", "rope_theta": 300.0},
            },
        },
    ),
    Published(
        name="smollm3",
        model="SmolLM3ForCausalLM",
        config=WIDE | {"num_hidden_layers": 5, "attention_bias": True, "mlp_bias": True},
    ),
    Published(
        name="smollm3 listed",
        model="SmolLM3ForCausalLM",
        config=LLAMA
        | {"no_rope_layers": [0, 1, 0], "use_sliding_window": True, "sliding_window": 5, "tie_word_embeddings": False},
    ),
    Published(
        name="stablelm",
        model="StableLmForCausalLM",
        config=LAYER_NORM | {"qk_layernorm": True, "use_qkv_bias": True, "use_parallel_residual": True},
    ),
    Published(
        name="stablelm bare",
        model="StableLmForCausalLM",
        config=LAYER_NORM | {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    ),
    Published(
        name="granite",
        model="GraniteForCausalLM",
        config=WIDE
        | {
            "embedding_multiplier": 3.5,
            "attention_multiplier": 0.2,
            "residual_multiplier": 0.6,
            "logits_scaling": 0.3,
            "attention_bias": True,
            "mlp_bias": True,
        },
    ),
    Published(name="granite bare", model="GraniteForCausalLM", config=LLAMA | {"attention_multiplier": 0.4}),
    Published(
        name="starcoder2",
        model="Starcoder2ForCausalLM",
        config=NO_EPS | {"norm_epsilon": EPS, "sliding_window": 6, "head_dim": 10},
    ),
    Published(
        name="starcoder2 bare",
        model="Starcoder2ForCausalLM",
        config=NO_EPS | {"norm_epsilon": EPS, "use_bias": False, "tie_word_embeddings": False, "hidden_act": "gelu"},
    ),
    Published(name="glm", model="GlmForCausalLM", config=LLAMA | {"head_dim": 12}),
    Published(
        name="glm bare",
        model="GlmForCausalLM",
        config=LLAMA
        | {
            "head_dim": 8,
            "attention_bias": False,
            "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.75},
        },
    ),
    Published(name="glm4", model="Glm4ForCausalLM", config=LLAMA | {"head_dim": 12}),
    Published(
        name="nemotron",
        model="NemotronForCausalLM",
        config=NO_EPS | {"norm_eps": EPS, "head_dim": 12, "attention_bias": True, "mlp_bias": True},
    ),
    Published(
        name="nemotron bare",
        model="NemotronForCausalLM",
        config=NO_EPS | {"norm_eps": EPS, "rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.75}},
    ),
]

CASES = [*MISTRALS, *PHIS, *OTHERS]
