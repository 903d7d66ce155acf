"""Granite: Llama with scaled embeddings, scores, branches and logits; also with experts."""

from x_positional.pretrained.config_json.codecs import Custom, Fields, Fixed, Hf, Key, decimal, multiplier
from x_positional.pretrained.config_json.moe_codec import AliasedKey, MoECodec
from x_positional.pretrained.families.llama import LLAMA, sizes
from x_positional.pretrained.families.mixtral import LAYER, TRAINING
from x_positional.pretrained.tensors.layouts import EitherFusedExperts, gates_first


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

GRANITEMOE = GRANITE.like(
    "granitemoe",
    "GraniteMoeForCausalLM",
    codecs=(
        Fixed("layers.ff.bias", False),
        MoECodec(
            numbers={
                "experts": AliasedKey("num_local_experts", 8),
                "top_k": AliasedKey("num_experts_per_tok", 2),
            },
            width="intermediate_size",
        ),
    ),
    names={
        "blocks.{i}.ff.experts.up": EitherFusedExperts(LAYER + "block_sparse_moe.input_linear.weight", 2, gates_first),
        "blocks.{i}.ff.experts.down": EitherFusedExperts(LAYER + "block_sparse_moe.output_linear.weight", 1),
        "blocks.{i}.ff.router": LAYER + "block_sparse_moe.router.layer",
    },
    ignored_keys=TRAINING,
)
