"""EuroBERT: Llama that attends in both directions."""

from x_positional.pretrained.config_json.codecs import Fixed, Key
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.families.llama import LLAMA, rms_norms, sizes

EUROBERT = LLAMA.like(
    "eurobert",
    "EuroBertForMaskedLM",
    kind="encoder",
    body_architecture="EuroBertModel",
    codecs=(
        Fixed("layers.kind", "encoder"),
        *rms_norms(eps=1e-5),
        Key("logits_bias", "mlp_bias", False),
    ),
    names={"to_logits.bias": "lm_head.bias", "tied_bias": "lm_head.bias"},
    defaults=sizes(128256, 768, 3072, 12, 12, 8192),
    ignored_keys=key_names("mask_token_id mask_token bos_token eos_token pad_token classifier_pooling clf_pooling"),
)
