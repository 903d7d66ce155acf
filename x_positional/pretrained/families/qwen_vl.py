"""The text models inside of Qwen 2 and 2.5 VL: Qwen 2 whose positions have three axes, time, height and width.

What sees images is not read: give `token_emb` rows to text alone, or embeddings of your own to the layers.
"""

from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.config_json.layer_types import Turns
from x_positional.pretrained.families.llama import sizes
from x_positional.pretrained.families.qwen import QWEN2
from x_positional.pretrained.nested import Inner

QWEN2_VL_TEXT = QWEN2.like(
    "qwen2_vl_text",
    "",
    fields=(Turns(axes=True),),
    body="Qwen2VLTextModel",
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
QWEN2_5_VL_TEXT = QWEN2_VL_TEXT.like("qwen2_5_vl_text", "", body="Qwen2_5_VLTextModel")

NAMES = {r"model\.language_model\.": "model.", r"language_model\.": "model."}
LEFT = (r"^(model\.)?visual\.",)
WHOLE = key_names(
    "vision_config vision_start_token_id vision_end_token_id vision_token_id image_token_id video_token_id processor_class"
)

QWEN2_VL = Inner(
    model_type="qwen2_vl",
    architecture="Qwen2VLForConditionalGeneration",
    family=QWEN2_VL_TEXT,
    names=NAMES,
    left=LEFT,
    harmless=WHOLE,
)
QWEN2_5_VL = Inner(
    model_type="qwen2_5_vl",
    architecture="Qwen2_5_VLForConditionalGeneration",
    family=QWEN2_5_VL_TEXT,
    names=NAMES,
    left=LEFT,
    harmless=WHOLE,
)
