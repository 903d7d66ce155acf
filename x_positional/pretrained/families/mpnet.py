"""MPNet: BERT with a bucketed bias of distances beside learned positions, without token types."""

from typing import Any

from x_positional.pretrained.config_json.codecs import Custom, Fields, Fixed, Hf, Only
from x_positional.pretrained.families.bert import BERT, IDLE_BIAS, LM_HEAD, LM_HEAD_COPIES, POOLER, relabelled, sizes
from x_positional.pretrained.tensors.layouts import qkv
from x_positional.schemes import T5, Absolute

PADDING = 1
"""The id of padding, which no key changes: positions begin after it."""


def _fields(hf: Hf) -> Fields:
    return {
        "max_seq_len": (hf.get("max_position_embeddings") or 512) - PADDING - 1,
        "layers.position": [T5(num_buckets=32, max_distance=128), Absolute(offset=PADDING + 1, scale=1.0)],
    }


def _keys(fields: Fields) -> dict[str, Any]:
    return {"max_position_embeddings": fields["max_seq_len"] + PADDING + 1}


LAYER = "mpnet.encoder.layer.{i}.attention"
MPNET = BERT.like(
    "mpnet",
    "MPNetForMaskedLM",
    codecs=(
        *sizes(768, 12, 12, 3072, 30527),
        Custom(("max_seq_len", "layers.position"), ("max_position_embeddings",), _fields, _keys),
        Only("relative_attention_num_buckets", (32,), "transformers computes 32 buckets for any value."),
        Fixed("token_types", None),
        Fixed("head.activation", "gelu"),
    ),
    names={
        **relabelled("mpnet."),
        "token_type_emb": None,
        "schemes.0": "mpnet.encoder.relative_attention_bias",
        "schemes.1": "mpnet.embeddings.position_embeddings",
        "blocks.{i}.attn.to_qkv": qkv(*(f"{LAYER}.attn.{p}" for p in "qkv")),
        "blocks.{i}.attn.to_out": f"{LAYER}.attn.o",
        "blocks.{i}.attn_residual.outer": f"{LAYER}.LayerNorm",
        **LM_HEAD,
    },
    body_architecture="MPNetModel",
    prefix="mpnet.",
    ignored_tensors=(*POOLER, IDLE_BIAS),
    copies=LM_HEAD_COPIES,
)
