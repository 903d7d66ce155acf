"""The text models of Qwen 2, 2.5 and 3 VL: Qwen 2 and 3 with positions of three axes (time, height, width).

The vision tower is not read: pass text tokens, or pass your own embeddings to the layers.
"""

from dataclasses import replace
from functools import partial

from x_positional.pretrained.config_json.codecs import Fixed
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.config_json.layer_types import RopeCodec
from x_positional.pretrained.config_json.moe_codec import AliasedKey
from x_positional.pretrained.families.llama import LLAMA, qk_norms, sizes, tied
from x_positional.pretrained.families.mixtral import LAYER, TRAINING
from x_positional.pretrained.families.qwen import QWEN2, QWEN3
from x_positional.pretrained.families.qwen_moe import mixture
from x_positional.pretrained.nested import NestedModel
from x_positional.pretrained.tensors.layouts import EitherFusedExperts, gates_first

QWEN2_VL_TEXT = QWEN2.like(
    "qwen2_vl_text",
    "",
    codecs=(RopeCodec(axes=True),),
    body_architecture="Qwen2VLTextModel",
    defaults=sizes(
        152064,
        8192,
        29568,
        80,
        64,
        32768,
        num_key_value_heads=8,
        sliding_window=4096,
        max_window_layers=80,
        rms_norm_eps=1e-5,
    ),
)
QWEN2_5_VL_TEXT = QWEN2_VL_TEXT.like("qwen2_5_vl_text", "", body_architecture="Qwen2_5_VLTextModel")

NORMS = {ours: layout for ours, layout in QWEN3.names.items() if "attn." in ours and "_norm" in ours}
QWEN3_VL_TEXT = LLAMA.like(
    "qwen3_vl_text",
    "",
    codecs=(RopeCodec(axes=True), *qk_norms("rms", "rms_norm_eps", 1e-6), Fixed("layers.ff.bias", False)),
    names=NORMS,
    body_architecture="Qwen3VLTextModel",
    defaults=sizes(151936, 4096, 22016, 32, 32, 128000, num_key_value_heads=32, head_dim=128),
)
"""Its positions interleave the three axes; it has no windows."""

MIXTURE = mixture(AliasedKey("num_experts", 60, alias="num_local_experts"), 4)
QWEN3_VL_MOE_TEXT = QWEN3_VL_TEXT.like(
    "qwen3_vl_moe_text",
    "",
    codecs=(
        *tied(True),
        replace(
            MIXTURE,
            numbers={name: number for name, number in MIXTURE.numbers.items() if name != "renorm"},
            fixed={"renorm": True},
        ),
    ),
    names={
        "blocks.{i}.ff.experts.up": EitherFusedExperts(LAYER + "mlp.experts.gate_up_proj", 2, gates_first),
        "blocks.{i}.ff.experts.down": EitherFusedExperts(LAYER + "mlp.experts.down_proj", 1),
        "blocks.{i}.ff.router": LAYER + "mlp.gate",
    },
    body_architecture="Qwen3VLMoeTextModel",
    ignored_keys=TRAINING | {"norm_topk_prob"},  # always true
    defaults=sizes(
        151936,
        2048,
        5632,
        24,
        16,
        128000,
        num_key_value_heads=16,
        head_dim=None,
        moe_intermediate_size=1408,
        decoder_sparse_step=1,
    ),
)

PREFIXES = {r"model\.language_model\.": "model.", r"language_model\.": "model."}
DROPPED = (r"^(model\.)?visual\.",)
IGNORED = key_names(
    "vision_config vision_start_token_id vision_end_token_id vision_token_id image_token_id video_token_id processor_class"
)

_vision_language = partial(NestedModel, prefixes=PREFIXES, dropped=DROPPED, ignored_keys=IGNORED)

QWEN2_VL = _vision_language(
    model_type="qwen2_vl",
    architecture="Qwen2VLForConditionalGeneration",
    family=QWEN2_VL_TEXT,
)
QWEN2_5_VL = _vision_language(
    model_type="qwen2_5_vl",
    architecture="Qwen2_5_VLForConditionalGeneration",
    family=QWEN2_5_VL_TEXT,
)
QWEN3_VL = _vision_language(
    model_type="qwen3_vl",
    architecture="Qwen3VLForConditionalGeneration",
    family=QWEN3_VL_TEXT,
)
QWEN3_VL_MOE = _vision_language(
    model_type="qwen3_vl_moe",
    architecture="Qwen3VLMoeForConditionalGeneration",
    family=QWEN3_VL_MOE_TEXT,
    outer_defaults={"tie_word_embeddings": False},
)
