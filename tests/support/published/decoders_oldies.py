"""The decoders before Llama: GPT-BigCode, GPT-Neo, GPT-J, CodeGen, GPT-NeoX, OPT, BLOOM, MPT, Falcon."""

from tests.support.published.compare import EPS, VOCABULARY, Published

TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
OLD = {**TOKENS, "n_embd": 40, "n_layer": 3, "n_head": 4, "n_inner": 52, "n_positions": 64, "layer_norm_epsilon": EPS}
"""Sizes under the keys of GPT-2."""
SIZES = {
    **TOKENS,
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 52,
    "max_position_embeddings": 64,
}

BIGCODES = [
    Published(name="gpt_bigcode", model="GPTBigCodeForCausalLM", config=OLD),
    Published(
        name="gpt_bigcode, a key head each",
        model="GPTBigCodeForCausalLM",
        config={**OLD, "multi_query": False, "tie_word_embeddings": False, "activation_function": "relu"},
    ),
    Published(name="gpt_bigcode, unscaled", model="GPTBigCodeForCausalLM", config={**OLD, "scale_attn_weights": False}),
]

NEO = {
    **TOKENS,
    "hidden_size": 40,
    "num_layers": 3,
    "num_heads": 4,
    "intermediate_size": 52,
    "max_position_embeddings": 64,
    "layer_norm_epsilon": EPS,
    "attention_types": [[["global", "local", "local"], 1]],
    "window_size": 5,
}
NEOS = [
    Published(name="gpt_neo", model="GPTNeoForCausalLM", attention="eager", config=NEO),
    Published(
        name="gpt_neo, four times as wide",
        model="GPTNeoForCausalLM",
        attention="eager",
        config={
            **NEO,
            "num_layers": 4,
            "intermediate_size": None,
            "tie_word_embeddings": False,
            "attention_types": [[["global"], 1], [["local", "global"], 1], [["local"], 1]],
        },
    ),
    Published(
        name="gpt_neo, global alone",
        model="GPTNeoForCausalLM",
        attention="eager",
        config={**NEO, "attention_types": [[["global"], 3]]},
    ),
]

ROTATED = {**OLD, "rotary_dim": 6}
GPTJS = [
    Published(name="gptj", model="GPTJForCausalLM", attention="eager", config=ROTATED),
    Published(
        name="gptj, tied",
        model="GPTJForCausalLM",
        attention="eager",
        config={**ROTATED, "rotary_dim": 10, "n_inner": None, "tie_word_embeddings": True},
    ),
    Published(
        name="codegen",
        model="CodeGenForCausalLM",
        attention="eager",
        config={**ROTATED, "n_embd": 48, "n_head": 8, "rotary_dim": 4},
    ),
    Published(
        name="codegen, tied",
        model="CodeGenForCausalLM",
        attention="eager",
        config={**ROTATED, "tie_word_embeddings": True},
    ),
]

NEOX = {**SIZES, "layer_norm_eps": EPS, "num_attention_heads": 4}
NEOXES = [
    Published(
        name="gpt_neox",
        model="GPTNeoXForCausalLM",
        config={
            **NEOX,
            "hidden_size": 48,
            "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        },
    ),
    Published(
        name="gpt_neox, a quarter turned",
        model="GPTNeoXForCausalLM",
        config={**NEOX, "hidden_size": 64, "tie_word_embeddings": True, "hidden_act": "gelu_new"},
    ),
    Published(
        name="gpt_neox, one after the other",
        model="GPTNeoXForCausalLM",
        config={
            **NEOX,
            "use_parallel_residual": False,
            "attention_bias": False,
            "rotary_pct": 1.0,
            "rotary_emb_base": 300,
        },
    ),
    Published(
        name="gpt_neox, linear",
        model="GPTNeoXForCausalLM",
        config={
            **NEOX,
            "rope_parameters": {
                "rope_type": "linear",
                "rope_theta": 500.0,
                "factor": 3.0,
                "partial_rotary_factor": 0.4,
            },
        },
    ),
    Published(
        name="gpt_neox, dynamic",
        model="GPTNeoXForCausalLM",
        padded=False,
        jumping=False,  # the length of one row changes the frequencies of the whole batch
        config={
            **NEOX,
            "max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "dynamic",
                "rope_theta": 500.0,
                "factor": 3.0,
                "partial_rotary_factor": 0.4,
            },
        },
    ),
]

WIDE = {
    **TOKENS,
    "hidden_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "ffn_dim": 52,
    "max_position_embeddings": 64,
    "word_embed_proj_dim": 40,
}
OPTS = [
    Published(name="opt", model="OPTForCausalLM", config=WIDE),
    Published(
        name="opt, as 350m",
        model="OPTForCausalLM",
        config={**WIDE, "do_layer_norm_before": False, "word_embed_proj_dim": 24},
    ),
    Published(
        name="opt, as 350m, untied",
        model="OPTForCausalLM",
        config={**WIDE, "word_embed_proj_dim": 56, "tie_word_embeddings": False, "activation_function": "gelu"},
    ),
    Published(
        name="opt, bare",
        model="OPTForCausalLM",
        config={**WIDE, "enable_bias": False, "layer_norm_elementwise_affine": False},
    ),
    Published(name="opt, no last norm", model="OPTForCausalLM", config={**WIDE, "_remove_final_layer_norm": True}),
]

BLOOM = {**TOKENS, "hidden_size": 40, "n_layer": 3, "n_head": 4, "layer_norm_epsilon": EPS}
BLOOMS = [
    Published(name="bloom", model="BloomForCausalLM", attention="eager", config=BLOOM),
    Published(
        name="bloom, 5 heads, norms carried on",
        model="BloomForCausalLM",
        attention="eager",
        config={**BLOOM, "n_head": 5, "apply_residual_connection_post_layernorm": True},
    ),
    Published(
        name="bloom, 12 heads, untied",
        model="BloomForCausalLM",
        attention="eager",
        config={**BLOOM, "hidden_size": 60, "n_head": 12, "tie_word_embeddings": False},
    ),
]

MPT = {**TOKENS, "d_model": 40, "n_layers": 3, "n_heads": 4, "max_seq_len": 64, "layer_norm_epsilon": EPS}
MPTS = [
    Published(name="mpt", model="MptForCausalLM", attention="eager", config=MPT),
    Published(
        name="mpt, 5 heads, clipped",
        model="MptForCausalLM",
        attention="eager",
        config={**MPT, "n_heads": 5, "attn_config": {"clip_qkv": 0.3, "softmax_scale": 0.6}},
    ),
    Published(
        name="mpt, 12 heads, untied",
        model="MptForCausalLM",
        attention="eager",
        config={**MPT, "d_model": 60, "n_heads": 12, "tie_word_embeddings": False},
    ),
]

FALCON = {
    **TOKENS,
    "hidden_size": 60,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
    "ffn_hidden_size": 52,
    "layer_norm_epsilon": EPS,
}
NEW = {**FALCON, "new_decoder_architecture": True, "num_kv_heads": 2}
RW = {**FALCON, "alibi": True, "multi_query": False, "parallel_attn": False, "bias": True}
FALCONS = [  # with ALiBi, positions come from the mask and position_ids are ignored: jumping=False
    Published(name="falcon, as 7b", model="FalconForCausalLM", config=FALCON),
    Published(name="falcon, as 40b", model="FalconForCausalLM", config={**NEW, "bias": True}),
    Published(
        name="falcon, as 11b",
        model="FalconForCausalLM",
        config={
            **NEW,
            "num_ln_in_parallel_attn": 1,
            "tie_word_embeddings": False,
            "activation": "relu",
            "rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0},
        },
    ),
    Published(name="falcon, a key head each", model="FalconForCausalLM", config={**FALCON, "multi_query": False}),
    Published(
        name="falcon, one key head, one after the other",
        model="FalconForCausalLM",
        config={**FALCON, "parallel_attn": False, "ffn_hidden_size": None},
    ),
    Published(name="falcon, as rw", model="FalconForCausalLM", jumping=False, config=RW),
    Published(
        name="falcon, as rw, 12 heads",
        model="FalconForCausalLM",
        length=61,
        jumping=False,
        config={**RW, "hidden_size": 72, "num_attention_heads": 12},
    ),
    Published(
        name="falcon, one key head, ALiBi",
        model="FalconForCausalLM",
        jumping=False,
        config={**FALCON, "alibi": True, "num_attention_heads": 5},
    ),
    Published(name="falcon, groups, ALiBi", model="FalconForCausalLM", jumping=False, config={**NEW, "alibi": True}),
]

XGLM = {
    **TOKENS,
    "d_model": 40,
    "num_layers": 3,
    "attention_heads": 4,
    "ffn_dim": 52,
    "max_position_embeddings": 64,
}
XGLMS = [
    Published(name="xglm", model="XGLMForCausalLM", attention="eager", config=XGLM),
    Published(
        name="xglm, plain",
        attention="eager",
        model="XGLMForCausalLM",
        config={**XGLM, "scale_embedding": False, "tie_word_embeddings": False, "activation_function": "relu"},
    ),
]

CASES = [*BIGCODES, *NEOS, *GPTJS, *NEOXES, *OPTS, *BLOOMS, *MPTS, *FALCONS, *XGLMS]
