"""Llama and GPT-2."""

from tests.support.published.compare import EPS, VOCABULARY, Published

LLAMA = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 44,
    "rms_norm_eps": EPS,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""Keys that most families share."""
GPT2 = {
    "vocab_size": VOCABULARY,
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "n_inner": 44,
    "n_positions": 64,
    "layer_norm_epsilon": EPS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def scaled(**parameters: object) -> dict[str, object]:
    return {**LLAMA, "rope_parameters": {"rope_theta": 500.0, **parameters}}


CASES = [
    Published(
        name="llama",
        model="LlamaForCausalLM",
        config={**LLAMA, "head_dim": 10, "attention_bias": True, "mlp_bias": True},
    ),
    Published(name="llama tied", model="LlamaForCausalLM", config={**LLAMA, "tie_word_embeddings": True}),
    Published(name="llama linear", model="LlamaForCausalLM", config=scaled(rope_type="linear", factor=3.0)),
    Published(
        name="llama dynamic",
        model="LlamaForCausalLM",
        jumping=False,  # the length of one row changes the frequencies of the whole batch
        padded=False,
        config={**scaled(rope_type="dynamic", factor=3.0), "max_position_embeddings": 16},
    ),
    Published(
        name="llama yarn",
        model="LlamaForCausalLM",
        config=scaled(rope_type="yarn", factor=4.0, original_max_position_embeddings=16),
    ),
    Published(
        name="llama longrope",
        model="LlamaForCausalLM",
        padded=False,
        jumping=False,  # as dynamic
        config=scaled(
            rope_type="longrope",
            original_max_position_embeddings=16,
            factor=4.0,
            short_factor=[1.0, 1.1, 1.2, 1.3],
            long_factor=[2.0, 3.0, 4.0, 5.0],
        ),
    ),
    Published(
        name="llama llama3",
        model="LlamaForCausalLM",
        config=scaled(
            rope_type="llama3",
            factor=4.0,
            low_freq_factor=1.0,
            high_freq_factor=4.0,
            original_max_position_embeddings=16,
        ),
    ),
    Published(name="gpt2", model="GPT2LMHeadModel", config=GPT2),
    Published(name="gpt2 by layer", model="GPT2LMHeadModel", config={**GPT2, "scale_attn_by_inverse_layer_idx": True}),
    Published(
        name="gpt2 bare",
        model="GPT2LMHeadModel",
        config={**GPT2, "scale_attn_weights": False, "tie_word_embeddings": False},
    ),
]
