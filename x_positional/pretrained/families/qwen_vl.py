"""The text models of Qwen 2 and 2.5 VL: Qwen 2 with positions of three axes (time, height, width).

The vision tower is not read: pass text tokens, or pass your own embeddings to the layers.
"""

from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.config_json.layer_types import RopeCodec
from x_positional.pretrained.families.llama import sizes
from x_positional.pretrained.families.qwen import QWEN2
from x_positional.pretrained.nested import NestedModel

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

PREFIXES = {r"model\.language_model\.": "model.", r"language_model\.": "model."}
DROPPED = (r"^(model\.)?visual\.",)
IGNORED = key_names(
    "vision_config vision_start_token_id vision_end_token_id vision_token_id image_token_id video_token_id processor_class"
)

QWEN2_VL = NestedModel(
    model_type="qwen2_vl",
    architecture="Qwen2VLForConditionalGeneration",
    family=QWEN2_VL_TEXT,
    prefixes=PREFIXES,
    dropped=DROPPED,
    ignored_keys=IGNORED,
)
QWEN2_5_VL = NestedModel(
    model_type="qwen2_5_vl",
    architecture="Qwen2_5_VLForConditionalGeneration",
    family=QWEN2_5_VL_TEXT,
    prefixes=PREFIXES,
    dropped=DROPPED,
    ignored_keys=IGNORED,
)
