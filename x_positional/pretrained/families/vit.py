"""ViT and DINOv2: encoders of images. The cls token has a row of the table, patches are projected by one convolution.

M model dim, T patches of the trained grid.
"""

from typing import Any

from x_positional.pretrained.config_json.codecs import Both, Codec, Fields, Fixed, Hf, Key
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.families.gpt2 import layer_norms
from x_positional.pretrained.families.llama import ACTIVATIONS
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import Layout, Reshaped, qkv
from x_positional.schemes import Absolute


def _square(size: Any) -> Any:
    """One number where height and width are one: some code divides by it."""
    return size[0] if size is not None and size[0] == size[1] else size


def _size(name: str, default: int) -> Both:
    return Both(
        (name,), (name,), lambda hf: {name: hf.get(name) or default}, lambda config: {name: _square(config.get(name))}
    )


def _head_dim_fields(hf: Hf) -> Fields:
    share = (hf.get("hidden_size") or 768) // (hf.get("num_attention_heads") or 12)
    return {"layers.head_dim": hf.get("head_dim") or share}


def _head_dim_keys(config: Fields) -> dict[str, int]:
    """Nothing where it follows from the others: it is no key of its own, and read all the same."""
    head_dim = config["layers.head_dim"]
    return {} if head_dim == config["layers.dim"] // config["layers.heads"] else {"head_dim": head_dim}


def _classes(hf: Hf) -> Fields:
    """Two where nothing is said, as for every classifier of transformers; none is no head."""
    labels, count = hf.get("id2label"), hf.get("num_labels", 2)
    return {"num_classes": (count if labels is None else len(labels)) or None}


def images(image_size: int, patch_size: int) -> tuple[Codec, ...]:
    """What all of them share, with the defaults of a class."""
    return (
        _size("image_size", image_size),
        _size("patch_size", patch_size),
        Key("channels", "num_channels", 3),
        Key("layers.dim", "hidden_size", 768),
        Key("layers.depth", "num_hidden_layers", 12),
        Key("layers.heads", "num_attention_heads", 12),
        Both(("layers.head_dim",), ("head_dim",), _head_dim_fields, _head_dim_keys),
        Both(("num_classes",), ("num_labels",), _classes, lambda config: {"num_labels": config.get("num_classes")}),
        Key("layers.attn.bias", "qkv_bias", True),
        Fixed("layers.attn.out_bias", True),
        Fixed("layers.kind", "encoder"),
        Fixed("layers.position", [Absolute(scale=1.0)]),
        Fixed("cls_position", True),
        Fixed("patch_norms", False),
    )


def tokens(name: str) -> Reshaped:
    """[1 N M] there, [N M] here."""
    return Reshaped(name, ours=lambda s: (-1, s.layers.dim), theirs=lambda s: (1, -1, s.layers.dim))


def embeddings(base: str) -> dict[str, str | Layout]:
    """What comes before the layers."""
    return {
        "patch_embedding.project": f"{base}embeddings.patch_embeddings.projection",
        "patch_table.table": tokens(f"{base}embeddings.position_embeddings"),
        "cls_token": tokens(f"{base}embeddings.cls_token"),
    }


def attention(block: str) -> dict[str, str | Layout]:
    """Self-attention of a layer, which begins with `block`."""
    return {
        "blocks.{i}.attn.to_qkv": qkv(*(f"{block}.attention.attention.{part}" for part in ("query", "key", "value"))),
        "blocks.{i}.attn.to_out": f"{block}.attention.output.dense",
    }


MASK_TOKEN = r"(^|\.)embeddings\.mask_token$"
"""Stands for hidden patches in training; a whole image has none."""
BLOCK = "vit.encoder.layer.{i}"

VIT = Family(
    model_type="vit",
    architecture="ViTForImageClassification",
    body="ViTModel",
    kind="vision",
    base="vit.",
    fields=(
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
    ignored=(MASK_TOKEN, r"(^|\.)pooler\.dense\."),  # hidden states are given as they are
    harmless=key_names("encoder_stride pooler_output_size pooler_act"),
)
