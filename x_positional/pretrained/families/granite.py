"""Granite: Llama with scaled embeddings, scores, branches and logits."""

from x_positional.pretrained.config_json.codecs import Custom, Fields, Hf, Key, decimal, multiplier
from x_positional.pretrained.families.llama import LLAMA, sizes


def _scale(hf: Hf) -> Fields:
    return {"logits_scale": 1 / hf["logits_scaling"]}


def _scaling(fields: Fields) -> Fields:
    scale = fields.get("logits_scale")
    return {"logits_scaling": 1.0 if scale is None else decimal(1 / scale)}


GRANITE = LLAMA.like(
    "granite",
    "GraniteForCausalLM",
    codecs=(
        multiplier("emb_scale", "embedding_multiplier"),
        multiplier("layers.residual_scale", "residual_multiplier"),
        Key("layers.attn.scale", "attention_multiplier", 1.0),
        Custom(("logits_scale",), ("logits_scaling",), _scale, _scaling),
    ),
    defaults=sizes(
        32000, 4096, 11008, 32, 32, 2048, embedding_multiplier=1.0, residual_multiplier=1.0, logits_scaling=1.0
    ),
)
