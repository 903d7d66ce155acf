"""Small models of Gemma 1 to 3."""

from tests.support.published.compare import Published
from tests.support.published.decoders_llama import LLAMA

GEMMA = LLAMA | {"head_dim": 10, "attention_bias": True}
FULL, SLIDING = "full_attention", "sliding_attention"
BY_TYPE = {
    FULL: {"rope_type": "linear", "rope_theta": 500.0, "factor": 3.0},
    SLIDING: {"rope_type": "default", "rope_theta": 60.0},
}


def second(name: str, **config: object) -> Published:
    """Eager attention, because sdpa does not support softcaps."""
    caps = {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.5, "query_pre_attn_scalar": 3}
    return Published(
        name=name, model="Gemma2ForCausalLM", attention="eager", config={**GEMMA, **caps, "sliding_window": 5, **config}
    )


def third(name: str, **config: object) -> Published:
    return Published(
        name=name,
        model="Gemma3ForCausalLM",
        config={**GEMMA, "sliding_window": 5, "query_pre_attn_scalar": 3, **config},
    )


CASES = [
    Published(name="gemma", model="GemmaForCausalLM", config=GEMMA),
    Published(
        name="gemma untied",
        model="GemmaForCausalLM",
        config=GEMMA | {"tie_word_embeddings": False, "hidden_act": "gelu", "attention_bias": False},
    ),  # gelu means the tanh approximation in this family
    second("gemma2"),
    second(
        "gemma2 bare",
        attn_logit_softcapping=None,
        final_logit_softcapping=None,
        attention_bias=False,
        layer_types=[FULL, SLIDING, FULL],
    ),
    second("gemma2 exact gelu", hidden_activation="gelu"),
    third("gemma3", rope_parameters=BY_TYPE, sliding_window_pattern=3, num_hidden_layers=5),
    third("gemma3 bare", layer_types=[SLIDING, FULL, SLIDING], final_logit_softcapping=2.5, attn_logit_softcapping=1.5),
]
