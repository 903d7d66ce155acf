"""ViT, and the codecs it shares with DINOv2. The cls token has a row of the position table; patches are projected by a convolution.

M model dim, T patches of the trained grid.
"""

from typing import Any

from x_positional.pretrained.config_json.codecs import Codec, Custom, Fields, Fixed, Hf, Key
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.families.gpt2 import layer_norms
from x_positional.pretrained.families.llama import ACTIVATIONS
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import Layout, Reshaped, qkv
from x_positional.schemes import Absolute


def _square(size: Any) -> Any:
    """A single number where height and width are equal, because some code divides by it."""
    return size[0] if size is not None and size[0] == size[1] else size


def size(name: str, default: int) -> Custom:
    """A size in pixels: a number, or height and width."""
    return Custom(
        (name,), (name,), lambda hf: {name: hf.get(name) or default}, lambda fields: {name: _square(fields.get(name))}
    )


def _head_dim_fields(hf: Hf) -> Fields:
    default = (hf.get("hidden_size") or 768) // (hf.get("num_attention_heads") or 12)
    return {"layers.head_dim": hf.get("head_dim") or default}


def _head_dim_keys(fields: Fields) -> dict[str, int]:
    """Written only where it differs from width / heads: transformers reads the key, but its class does not define it."""
    head_dim = fields["layers.head_dim"]
    return {} if head_dim == fields["layers.dim"] // fields["layers.heads"] else {"head_dim": head_dim}


def _classes(hf: Hf) -> Fields:
    """Number of classes; 2 by default, as for every classifier of transformers; None without a head."""
    labels, count = hf.get("id2label"), hf.get("num_labels", 2)
    return {"num_classes": (count if labels is None else len(labels)) or None}


TABLE: tuple[Codec, ...] = (
    Fixed("layers.kind", "encoder"),
    Fixed("layers.position", [Absolute(scale=1.0)]),
    Fixed("patch_norms", False),
)
"""An encoder of patches that are projected alone, with a learned table."""


def images(image_size: int, patch_size: int) -> tuple[Codec, ...]:
    """Codecs of all vision families, with the defaults of a class."""
    return (
        size("image_size", image_size),
        size("patch_size", patch_size),
        Key("channels", "num_channels", 3),
        Key("layers.dim", "hidden_size", 768),
        Key("layers.depth", "num_hidden_layers", 12),
        Key("layers.heads", "num_attention_heads", 12),
        Custom(("layers.head_dim",), ("head_dim",), _head_dim_fields, _head_dim_keys),
        Custom(("num_classes",), ("num_labels",), _classes, lambda fields: {"num_labels": fields.get("num_classes")}),
        Key("layers.attn.bias", "qkv_bias", True),
        Fixed("layers.attn.out_bias", True),
        Fixed("cls_position", True),
        *TABLE,
    )


def tokens(name: str) -> Reshaped:
    """Published as [1 N M]; [N M] here."""
    return Reshaped(name, ours=lambda s: (-1, s.layers.dim), theirs=lambda s: (1, -1, s.layers.dim))


def embeddings(base: str) -> dict[str, str | Layout]:
    """Names of the embeddings."""
    return {
        "patch_embedding.project": f"{base}embeddings.patch_embeddings.projection",
        "patch_table.table": tokens(f"{base}embeddings.position_embeddings"),
        "cls_token": tokens(f"{base}embeddings.cls_token"),
    }


def attention(block: str) -> dict[str, str | Layout]:
    """Names of a layer's self-attention, which start with `block`."""
    return {
        "blocks.{i}.attn.to_qkv": qkv(*(f"{block}.attention.attention.{part}" for part in ("query", "key", "value"))),
        "blocks.{i}.attn.to_out": f"{block}.attention.output.dense",
    }


MASK_TOKEN = r"(^|\.)embeddings\.mask_token$"
"""Replaces masked patches in training; unused otherwise."""
BLOCK = "vit.encoder.layer.{i}"

VIT = Family(
    model_type="vit",
    architecture="ViTForImageClassification",
    body_architecture="ViTModel",
    kind="vision",
    prefix="vit.",
    codecs=(
        *images(224, 16),
        *layer_norms("layer_norm_eps", 1e-12),
        Key("layers.ff.dim", "intermediate_size", 3072),
        Key("layers.ff.activation", "hidden_act", "gelu", ACTIVATIONS),
        Fixed("pool", "cls"),
    ),
    names={
        **embeddings("vit."),
        **attention(BLOCK),
        "blocks.{i}.attn_residual.before": f"{BLOCK}.layernorm_before",
        "blocks.{i}.ff_residual.before": f"{BLOCK}.layernorm_after",
        "blocks.{i}.ff.up": f"{BLOCK}.intermediate.dense",
        "blocks.{i}.ff.down": f"{BLOCK}.output.dense",
        "final_norm": "vit.layernorm",
        "to_logits": "classifier",
    },
    ignored_tensors=(MASK_TOKEN, r"(^|\.)pooler\.dense\."),  # unused: hidden states are returned as they are
    ignored_keys=key_names("encoder_stride pooler_output_size pooler_act tie_word_embeddings"),
)
