"""BERT and RoBERTa: encoders whose embeddings hold positions and token types, a norm after each sum."""

from typing import Any

from x_positional.pretrained.config_json.codecs import Both, Codec, Fields, Fixed, Hf, Key, Only
from x_positional.pretrained.families.llama import ACTIVATIONS
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import qkv
from x_positional.schemes import Absolute

GAMMA = ((r"LayerNorm\.gamma$", "LayerNorm.weight"), (r"LayerNorm\.beta$", "LayerNorm.bias"))
"""Names of gains and biases in files as old as BERT."""
POOLER = (r"(^|\.)pooler\.", r"(^|\.)embeddings\.(position_ids|token_type_ids)$")
"""What the first token is pooled with: hidden states are given as they are, so nothing reads it. And tables of integers."""
IDLE_BIAS = r"^(cls\.predictions|lm_head)\.bias$"
"""A head of its own reads `decoder.bias`; only one that is the embedding reads this."""
BOTH_WAYS: tuple[Codec, ...] = (
    Fixed("layers.kind", "encoder"),
    Only("is_decoder", (False,), "as a decoder it sees earlier tokens alone, and here it is an encoder."),
    Only(
        "add_cross_attention",
        (False,),
        "with cross-attention it belongs to an encoder-decoder, which is not read here.",
    ),
)
"""An encoder, whatever the class could be made to be."""


def sizes(dim: int, depth: int, heads: int, inner: int, vocabulary: int) -> tuple[Codec, ...]:
    """The sizes of an encoder, with the defaults of its class."""

    def share(hf: Hf) -> int:
        return (hf.get("hidden_size") or dim) // (hf.get("num_attention_heads") or heads)

    return (
        Key("num_tokens", "vocab_size", vocabulary),
        Key("layers.dim", "hidden_size", dim),
        Key("layers.depth", "num_hidden_layers", depth),
        Key("layers.heads", "num_attention_heads", heads),
        Both(("layers.head_dim",), (), lambda hf: {"layers.head_dim": share(hf)}, lambda config: {}),
        Key("layers.ff.dim", "intermediate_size", inner),
    )


def norms(places: tuple[str, ...], key: str, eps: float) -> tuple[Codec, ...]:
    """LayerNorm with gain and bias at these places, one eps for all."""
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
    body="BertModel",
    kind="encoder",
    base="bert.",
    fields=(
        *sizes(768, 12, 12, 3072, 30522),
        *norms(NORMED, "layer_norm_eps", 1e-12),
        *TIED,
        *BOTH_WAYS,
        Key("max_seq_len", "max_position_embeddings", 512),
        Fixed("layers.position", [Absolute(scale=1.0)]),
        Only(
            "position_embedding_type", ("absolute",), "relative keys are not read here, nor in transformers any more."
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
    ignored=(*POOLER, IDLE_BIAS, r"^cls\.seq_relationship\."),
    copies={"cls.predictions.decoder.bias": "cls.predictions.bias"},
    older=GAMMA,
)


def _offset(hf: Hf) -> int:
    """Rows of the table before that of the first token: padding has the last of them."""
    return (1 if hf.get("pad_token_id") is None else hf["pad_token_id"]) + 1


def _table_fields(hf: Hf) -> Fields:
    return {
        "max_seq_len": hf.get("max_position_embeddings", 512) - _offset(hf),
        "layers.position": [Absolute(offset=_offset(hf), scale=1.0)],
    }


def _table_keys(config: Fields) -> dict[str, Any]:
    match config.get("layers.position"):
        case (Absolute(offset=offset),):
            return {"max_position_embeddings": config["max_seq_len"] + offset, "pad_token_id": offset - 1}
        case _:
            return {}


AFTER_PADDING = Both(
    ("max_seq_len", "layers.position"), ("max_position_embeddings", "pad_token_id"), _table_fields, _table_keys
)
"""Positions count the tokens that are no padding, and their table begins with rows that no token uses."""


def _under(prefix: str) -> dict[str, Any]:
    """BERT's names under another prefix, with RoBERTa's head."""
    body = {
        ours: qkv(*(name.replace("bert.", prefix, 1) for name in theirs.names(None)))  # type: ignore[arg-type]
        if not isinstance(theirs, str)
        else theirs.replace("bert.", prefix, 1)
        for ours, theirs in BERT.names.items()
    }
    return {
        **body,
        "head.linear": "lm_head.dense",
        "head.norm": "lm_head.layer_norm",
        "to_logits": "lm_head.decoder",
        "to_logits.bias": "lm_head.decoder.bias",
        "tied_bias": "lm_head.bias",
    }


ROBERTA = BERT.like(
    "roberta",
    "RobertaForMaskedLM",
    fields=(
        *sizes(768, 12, 12, 3072, 50265),
        AFTER_PADDING,
        Fixed("head.activation", "gelu"),
    ),
    names=_under("roberta."),
    body="RobertaModel",
    base="roberta.",
    ignored=(*POOLER, IDLE_BIAS),
    copies={"lm_head.decoder.bias": "lm_head.bias"},
)
XLM_ROBERTA = ROBERTA.like(
    "xlm-roberta", "XLMRobertaForMaskedLM", fields=(Key("num_tokens", "vocab_size", 30522),), body="XLMRobertaModel"
)
