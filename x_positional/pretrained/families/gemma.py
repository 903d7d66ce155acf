"""Gemma 1 to 3: gains stored as gain - 1, embeddings scaled by the root of their width, windows and caps.

Gemma 3 is published alone and inside of a model that sees images.
"""

from x_positional.pretrained.config_json.codecs import Both, Fields, Fixed, Hf, Key, Maybe, Only, decimal, follows
from x_positional.pretrained.config_json.layer_types import Reaches, Turns, full_every
from x_positional.pretrained.families.llama import ACTIVATIONS, LLAMA, activations, qk_norms, sizes, tied
from x_positional.pretrained.nested import Inner

TANH = activations("gelu_pytorch_tanh")
CAUSAL = Only("use_bidirectional_attention", (None, False), "decoders see the past alone here.")

GEMMA = LLAMA.like(
    "gemma",
    "GemmaForCausalLM",
    fields=(
        *tied(True),
        Fixed("layers.norm.unit_offset", True),
        CAUSAL,
        follows("emb_scale", lambda hf: hf["hidden_size"] ** 0.5),
        Fixed("layers.ff.bias", False),
        Key("layers.ff.activation", "hidden_act", "gelu_pytorch_tanh", {**TANH, "gelu": ACTIVATIONS["gelu_new"]}),
    ),
    harmless=frozenset({"hidden_activation"}),
    defaults=sizes(256000, 3072, 24576, 28, 16, 8192, num_key_value_heads=16, head_dim=256),
)


def _scale(hf: Hf) -> Fields:
    return {"layers.attn.scale": hf["query_pre_attn_scalar"] ** -0.5}


def _scalar(config: Fields) -> Fields:
    return {"query_pre_attn_scalar": decimal(config["layers.attn.scale"] ** -2)}


GEMMA2 = GEMMA.like(
    "gemma2",
    "Gemma2ForCausalLM",
    fields=(
        Key("layers.ff.activation", "hidden_activation", "gelu_pytorch_tanh", TANH),
        Both(("layers.attn.scale",), ("query_pre_attn_scalar",), _scale, _scalar),
        Maybe("layers.attn.softcap", "attn_logit_softcapping"),
        Maybe("logits_softcap", "final_logit_softcapping"),
        Fixed("layers.norm_place", "sandwich"),
        Reaches(unlisted=full_every(2)),
    ),
    names={
        "blocks.{i}.attn_residual.after": "model.layers.{i}.post_attention_layernorm",
        "blocks.{i}.ff_residual.before": "model.layers.{i}.pre_feedforward_layernorm",
        "blocks.{i}.ff_residual.after": "model.layers.{i}.post_feedforward_layernorm",
    },
    harmless=frozenset({"hidden_act", "sliding_window_size", "cache_implementation"}),
    defaults=sizes(
        256000,
        2304,
        9216,
        26,
        8,
        8192,
        num_key_value_heads=4,
        sliding_window=4096,
        query_pre_attn_scalar=256,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
)

LOCAL = full_every("sliding_window_pattern")

GEMMA3_TEXT = GEMMA2.like(
    "gemma3_text",
    "Gemma3ForCausalLM",
    fields=(
        *qk_norms("rms", "rms_norm_eps", 1e-6, unit_offset=True),
        Fixed("layers.attn.softcap", None),
        Reaches(unlisted=LOCAL, older=("sliding_window_pattern",)),
        Turns(unlisted=LOCAL),
    ),
    names={f"blocks.{{i}}.attn.{x}_norm": f"model.layers.{{i}}.self_attn.{x}_norm" for x in "qk"},
    harmless=GEMMA2.harmless | {"attn_logit_softcapping", "_sliding_window_pattern"},  # stored, and never applied
    defaults=sizes(262208, 2304, 9216, 26, 8, 131072, final_logit_softcapping=None, sliding_window_pattern=6),
)

GEMMA3 = Inner(
    model_type="gemma3",
    architecture="Gemma3ForConditionalGeneration",
    family=GEMMA3_TEXT,
    names={
        r"language_model\.model\.": "model.",
        r"language_model\.lm_head": "lm_head",
        r"model\.language_model\.": "model.",
    },
    left=(r"(^|\.)(vision_tower|multi_modal_projector)\.",),
)
