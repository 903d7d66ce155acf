"""BERT, RoBERTa and its relatives: encoders with learned positions and token types, post-norm, or pre-norm in XLM-RoBERTa XL."""

from dataclasses import replace
from typing import Any

from x_positional.pretrained.config_json.codecs import Codec, Custom, Fields, Fixed, Hf, Key, Only, head_dim
from x_positional.pretrained.families.llama import ACTIVATIONS
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import qkv
from x_positional.schemes import Absolute

GAMMA = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
"""Names of gains and biases in the oldest checkpoints."""
POOLER = (r"(^|\.)pooler\.", r"(^|\.)embeddings\.(position_ids|token_type_ids)$")
"""The pooler, which is unused because hidden states are returned as they are; and index buffers."""
IDLE_BIAS = r"^(cls\.predictions|lm_head)\.bias$"
"""Used by a tied head only; an untied one has `decoder.bias`."""
ENCODER: tuple[Codec, ...] = (
    Fixed("layers.kind", "encoder"),
    Only("is_decoder", (False,), "causal BERT is unsupported; this family is an encoder."),
    Only("add_cross_attention", (False,), "encoder-decoders made of BERTs are unsupported."),
)
"""An encoder: transformers' class could also be configured as a decoder."""


def sizes(dim: int, depth: int, heads: int, inner: int, vocabulary: int) -> tuple[Codec, ...]:
    """The sizes of an encoder, with the defaults of the family's class."""

    def quotient(hf: Hf) -> int:
        return (hf.get("hidden_size") or dim) // (hf.get("num_attention_heads") or heads)

    return (
        Key("num_tokens", "vocab_size", vocabulary),
        Key("layers.dim", "hidden_size", dim),
        Key("layers.depth", "num_hidden_layers", depth),
        Key("layers.heads", "num_attention_heads", heads),
        head_dim(quotient),
        Key("layers.ff.dim", "intermediate_size", inner),
    )


def norms(places: tuple[str, ...], key: str, eps: float) -> tuple[Codec, ...]:
    """LayerNorm with gain and bias at these places, with the same eps."""
    fixed = {"kind": "layer", "bias": True, "unit_offset": False}
    return tuple(
        codec
        for place in places
        for codec in (*(Fixed(f"{place}.{n}", v) for n, v in fixed.items()), Key(f"{place}.eps", key, eps))
    )


NORMED = ("layers.norm", "emb_norm", "head.norm")
TIED: tuple[Codec, ...] = (Key("tie_embedding", "tie_word_embeddings", True), Fixed("tie_embedding_scale", 1.0))

BERT = Family(
    model_type="bert",
    architecture="BertForMaskedLM",
    body_architecture="BertModel",
    kind="encoder",
    prefix="bert.",
    codecs=(
        *sizes(768, 12, 12, 3072, 30522),
        *norms(NORMED, "layer_norm_eps", 1e-12),
        *TIED,
        *ENCODER,
        Key("max_seq_len", "max_position_embeddings", 512),
        Fixed("layers.position", [Absolute(scale=1.0)]),
        Only(
            "position_embedding_type",
            ("absolute",),
            "relative positions are unsupported, and no longer in transformers either.",
        ),
        Key("token_types", "type_vocab_size", 2),
        Fixed("layers.norm_place", "post"),
        Fixed("layers.attn.bias", True),
        Key("layers.ff.activation", "hidden_act", "gelu", ACTIVATIONS),
        Key("head.activation", "hidden_act", "gelu", ACTIVATIONS),
        Fixed("logits_bias", True),
    ),
    names={
        "token_emb": "bert.embeddings.word_embeddings",
        "token_type_emb": "bert.embeddings.token_type_embeddings",
        "schemes.0": "bert.embeddings.position_embeddings",
        "emb_norm": "bert.embeddings.LayerNorm",
        "blocks.{i}.attn.to_qkv": qkv(
            *(f"bert.encoder.layer.{{i}}.attention.self.{p}" for p in ("query", "key", "value"))
        ),
        "blocks.{i}.attn.to_out": "bert.encoder.layer.{i}.attention.output.dense",
        "blocks.{i}.attn_residual.outer": "bert.encoder.layer.{i}.attention.output.LayerNorm",
        "blocks.{i}.ff.up": "bert.encoder.layer.{i}.intermediate.dense",
        "blocks.{i}.ff.down": "bert.encoder.layer.{i}.output.dense",
        "blocks.{i}.ff_residual.outer": "bert.encoder.layer.{i}.output.LayerNorm",
        "head.linear": "cls.predictions.transform.dense",
        "head.norm": "cls.predictions.transform.LayerNorm",
        "to_logits": "cls.predictions.decoder",
        "to_logits.bias": "cls.predictions.decoder.bias",
        "tied_bias": "cls.predictions.bias",
    },
    ignored_tensors=(*POOLER, IDLE_BIAS, r"^cls\.seq_relationship\."),
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    legacy_names=GAMMA,
)


def _offset(hf: Hf) -> int:
    """Index of the first token's row in the position table; the row before it is the padding's."""
    return (1 if hf.get("pad_token_id") is None else hf["pad_token_id"]) + 1


def after_padding(default: int) -> Codec:
    """Positions count tokens without padding; the first rows of the table are unused. default: its rows."""

    def to_fields(hf: Hf) -> Fields:
        rows = hf.get("max_position_embeddings") or default
        return {
            "max_seq_len": rows - _offset(hf),
            "layers.position": [Absolute(offset=_offset(hf), scale=1.0)],
        }

    keys = ("max_position_embeddings", "pad_token_id")
    return Custom(("max_seq_len", "layers.position"), keys, to_fields, _table_keys)


def _table_keys(fields: Fields) -> dict[str, Any]:
    match fields.get("layers.position"):
        case (Absolute(offset=offset),):
            return {"max_position_embeddings": fields["max_seq_len"] + offset, "pad_token_id": offset - 1}
        case _:
            return {}


def relabelled(prefix: str) -> dict[str, Any]:
    """BERT's names with another prefix."""
    return {
        ours: qkv(*(name.replace("bert.", prefix, 1) for name in theirs.names(None)))  # type: ignore[arg-type]
        if not isinstance(theirs, str)
        else theirs.replace("bert.", prefix, 1)
        for ours, theirs in BERT.names.items()
    }


LM_HEAD = {
    "head.linear": "lm_head.dense",
    "head.norm": "lm_head.layer_norm",
    "to_logits": "lm_head.decoder",
    "to_logits.bias": "lm_head.decoder.bias",
    "tied_bias": "lm_head.bias",
}
"""Names of RoBERTa's head."""
LM_HEAD_COPIES = {"lm_head.decoder.bias": "lm_head.bias"}


ROBERTA = BERT.like(
    "roberta",
    "RobertaForMaskedLM",
    codecs=(
        *sizes(768, 12, 12, 3072, 50265),
        after_padding(512),
        Fixed("head.activation", "gelu"),
    ),
    names={**relabelled("roberta."), **LM_HEAD},
    body_architecture="RobertaModel",
    prefix="roberta.",
    ignored_tensors=(*POOLER, IDLE_BIAS),
    ignored_keys=frozenset({"output_past"}),
    copies=LM_HEAD_COPIES,
)
XLM_ROBERTA = ROBERTA.like(
    "xlm-roberta",
    "XLMRobertaForMaskedLM",
    codecs=(Key("num_tokens", "vocab_size", 30522),),
    body_architecture="XLMRobertaModel",
)
CAMEMBERT = ROBERTA.like(
    "camembert",
    "CamembertForMaskedLM",
    codecs=(Key("num_tokens", "vocab_size", 30522),),
    body_architecture="CamembertModel",
)
XL_LAYER = "roberta.encoder.layer.{i}"
XLM_ROBERTA_XL = replace(
    ROBERTA,
    model_type="xlm-roberta-xl",
    architecture="XLMRobertaXLForMaskedLM",
    body_architecture="XLMRobertaXLModel",
    codecs=(
        *(codec for codec in ROBERTA.codecs if not codec.sets[0].startswith(("emb_norm.", "layers.norm"))),
        *norms(("layers.norm", "head.norm"), "layer_norm_eps", 1e-5),
        *sizes(2560, 36, 32, 10240, 250880),
        after_padding(514),
        Key("token_types", "type_vocab_size", 1),
    ),
    names={
        **{ours: theirs for ours, theirs in ROBERTA.names.items() if ours != "emb_norm" and "outer" not in ours},
        "blocks.{i}.attn_residual.before": f"{XL_LAYER}.attention.self_attn_layer_norm",
        "blocks.{i}.ff_residual.before": f"{XL_LAYER}.LayerNorm",
        "final_norm": "roberta.encoder.LayerNorm",
    },
)
