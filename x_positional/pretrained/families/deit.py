"""DeiT: ViT with a distillation token after the cls token, which has a row of the position table too, and a head of its own in
distilled models.
"""

from dataclasses import replace

from x_positional.pretrained.config_json.codecs import Fixed
from x_positional.pretrained.families.vit import BLOCK, VIT, attention, embeddings, tokens

PLAIN = VIT.like(
    "deit",
    "DeiTForImageClassification",
    codecs=(Fixed("num_register_tokens", 1), Fixed("register_position", True)),
    names={
        **{ours: theirs.replace("vit.", "deit.", 1) for ours, theirs in VIT.names.items() if isinstance(theirs, str)},
        **embeddings("deit."),
        **attention(BLOCK.replace("vit.", "deit.", 1)),
        "register_tokens": tokens("deit.embeddings.distillation_token"),
    },
    body_architecture="DeiTModel",
    prefix="deit.",
)
DISTILLED = PLAIN.like(
    "deit",
    "DeiTForImageClassificationWithTeacher",
    codecs=(Fixed("register_heads", True),),
    names={"to_logits": "cls_classifier", "register_logits.0": "distillation_classifier"},
)
DEIT = replace(PLAIN, variants={"distillation_classifier.weight": DISTILLED})
