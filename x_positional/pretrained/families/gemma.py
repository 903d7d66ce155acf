"""Gemma 1 to 3: gains stored as gain - 1, embeddings scaled by sqrt(width), windows and softcaps.

Gemma 3 is published alone and as the text model of a multimodal one.
"""

from x_positional.pretrained.config_json.codecs import Custom, Fields, Fixed, Hf, Key, Nullable, Only, decimal, derived
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.config_json.layer_types import LayerTypesCodec, RopeCodec, full_every
from x_positional.pretrained.families.llama import ACTIVATIONS, LLAMA, activations, qk_norms, sizes, tied
from x_positional.pretrained.nested import NestedModel

TANH = activations("gelu_pytorch_tanh")
CAUSAL = Only("use_bidirectional_attention", (None, False), "decoders are always causal here.")

GEMMA = LLAMA.like(
    "gemma",
    "GemmaForCausalLM",
    codecs=(
        *tied(True),
        Fixed("layers.norm.unit_offset", True),
        CAUSAL,
        derived("emb_scale", lambda hf: hf["hidden_size"] ** 0.5),
        Fixed("layers.ff.bias", False),
        Key("layers.ff.activation", "hidden_act", "gelu_pytorch_tanh", {**TANH, "gelu": ACTIVATIONS["gelu_new"]}),
    ),
    ignored_keys=frozenset({"hidden_activation"}),
    defaults=sizes(256000, 3072, 24576, 28, 16, 8192, num_key_value_heads=16, head_dim=256),
)


def _scale(hf: Hf) -> Fields:
    return {"layers.attn.scale": hf["query_pre_attn_scalar"] ** -0.5}


def _scalar(fields: Fields) -> Fields:
    return {"query_pre_attn_scalar": decimal(fields["layers.attn.scale"] ** -2)}


GEMMA2 = GEMMA.like(
    "gemma2",
    "Gemma2ForCausalLM",
    codecs=(
        Key("layers.ff.activation", "hidden_activation", "gelu_pytorch_tanh", TANH),
        Custom(("layers.attn.scale",), ("query_pre_attn_scalar",), _scale, _scalar),
        Nullable("layers.attn.softcap", "attn_logit_softcapping"),
        Nullable("logits_softcap", "final_logit_softcapping"),
        Fixed("layers.norm_place", "sandwich"),
        LayerTypesCodec(default_types=full_every(2), window_needed=True),
    ),
    names={
        "blocks.{i}.attn_residual.after": "model.layers.{i}.post_attention_layernorm",
        "blocks.{i}.ff_residual.before": "model.layers.{i}.pre_feedforward_layernorm",
        "blocks.{i}.ff_residual.after": "model.layers.{i}.post_feedforward_layernorm",
    },
    ignored_keys=frozenset({"hidden_act", "sliding_window_size", "cache_implementation"}),
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
    codecs=(
        *qk_norms("rms", "rms_norm_eps", 1e-6, unit_offset=True),
        Fixed("layers.attn.softcap", None),
        LayerTypesCodec(default_types=LOCAL, legacy_keys=("sliding_window_pattern",), window_needed=True),
        RopeCodec(default_types=LOCAL),
    ),
    names={f"blocks.{{i}}.attn.{x}_norm": f"model.layers.{{i}}.self_attn.{x}_norm" for x in "qk"},
    ignored_keys=GEMMA2.ignored_keys
    | {"attn_logit_softcapping", "_sliding_window_pattern"},  # stored but never applied
    defaults=sizes(262208, 2304, 9216, 26, 8, 131072, final_logit_softcapping=None, sliding_window_pattern=6),
)

GEMMA3 = NestedModel(
    model_type="gemma3",
    architecture="Gemma3ForConditionalGeneration",
    family=GEMMA3_TEXT,
    prefixes={
        r"language_model\.model\.": "model.",
        r"language_model\.lm_head": "lm_head",
        r"model\.language_model\.": "model.",
    },
    dropped=(r"(^|\.)(vision_tower|multi_modal_projector)\.",),
    ignored_keys=key_names(
        "vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index boi_token_id eoi_token_id "
        "image_token_id processor_class"
    ),
)
