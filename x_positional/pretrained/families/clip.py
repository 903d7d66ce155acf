"""CLIP: a causal text tower and an image tower, whose projections are their heads.

An image is the cls token after a norm of its own. A text is its last token (end of text); logits are given for every token.
"""

from typing import Any

from x_positional.pretrained.config_json.causal import causal_only
from x_positional.pretrained.config_json.codecs import Codec, Fixed, Key, head_dim
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.families.bert import norms
from x_positional.pretrained.families.llama import ACTIVATIONS
from x_positional.pretrained.families.vit import TABLE, size
from x_positional.pretrained.family import Family
from x_positional.pretrained.nested import NestedModel
from x_positional.pretrained.tensors.layouts import Layout, Reshaped, qkv
from x_positional.schemes import Absolute


def tower_sizes(dim: int, depth: int, heads: int, inner: int) -> tuple[Codec, ...]:
    """Sizes, biases and no tying: what text and image towers share, with the defaults of a class."""
    return (
        Key("layers.dim", "hidden_size", dim),
        Key("layers.depth", "num_hidden_layers", depth),
        Key("layers.heads", "num_attention_heads", heads),
        head_dim(lambda hf: (hf.get("hidden_size") or dim) // (hf.get("num_attention_heads") or heads)),
        Key("layers.ff.dim", "intermediate_size", inner),
        Fixed("layers.attn.bias", True),
    )


def text(vocabulary: int, length: int) -> tuple[Codec, ...]:
    """Embeddings of a text tower, with the defaults of a class."""
    return (
        Key("num_tokens", "vocab_size", vocabulary),
        Key("max_seq_len", "max_position_embeddings", length),
        Fixed("layers.position", [Absolute(scale=1.0)]),
        Fixed("tie_embedding", False),
    )


def image(image_size: int, patch_size: int) -> tuple[Codec, ...]:
    """Embeddings of an image tower, with the defaults of a class."""
    return (
        size("image_size", image_size),
        size("patch_size", patch_size),
        Key("channels", "num_channels", 3),
        *TABLE,
    )


def activation(default: str) -> Codec:
    """The nonlinearity."""
    return Key("layers.ff.activation", "hidden_act", default, ACTIVATIONS)


def layer_names(base: str) -> dict[str, str | Layout]:
    """Names of the layers of a tower."""
    layer = f"{base}encoder.layers.{{i}}"
    return {
        "blocks.{i}.attn_residual.before": f"{layer}.layer_norm1",
        "blocks.{i}.attn.to_qkv": qkv(*(f"{layer}.self_attn.{p}_proj" for p in "qkv")),
        "blocks.{i}.attn.to_out": f"{layer}.self_attn.out_proj",
        "blocks.{i}.ff_residual.before": f"{layer}.layer_norm2",
        "blocks.{i}.ff.up": f"{layer}.mlp.fc1",
        "blocks.{i}.ff.down": f"{layer}.mlp.fc2",
    }


IDS = (r"(^|\.)embeddings\.position_ids$",)
"""Index buffers of older files."""
UNUSED = key_names("tie_word_embeddings add_cross_attention")
"""Keys of every config that no tower reads."""

CLIP_TEXT = Family(
    model_type="clip_text_model",
    architecture="CLIPTextModelWithProjection",
    body_architecture="CLIPTextModel",
    prefix="text_model.",
    codecs=(
        *text(49408, 77),
        *tower_sizes(512, 12, 8, 2048),
        *norms(("layers.norm",), "layer_norm_eps", 1e-5),
        activation("quick_gelu"),
        causal_only("the text tower of CLIP is causal."),
        Key("logits_dim", "projection_dim", 512),
    ),
    names={
        "token_emb": "text_model.embeddings.token_embedding",
        "schemes.0": "text_model.embeddings.position_embedding",
        **layer_names("text_model."),
        "final_norm": "text_model.final_layer_norm",
        "to_logits": "text_projection",
    },
    ignored_tensors=IDS,
    ignored_keys=UNUSED,
)
CLIP_VISION = Family(
    model_type="clip_vision_model",
    architecture="CLIPVisionModelWithProjection",
    body_architecture="CLIPVisionModel",
    kind="vision",
    prefix="vision_model.",
    codecs=(
        *image(224, 32),
        *tower_sizes(768, 12, 12, 3072),
        *norms(("layers.norm", "tokens_norm"), "layer_norm_eps", 1e-5),
        activation("quick_gelu"),
        Fixed("patch_bias", False),
        Fixed("cls_position", True),
        Fixed("pool", "cls"),
        Fixed("layers.final_norm", False),
        Fixed("norm_pooled", True),
        Fixed("logits_bias", False),
        Key("num_classes", "projection_dim", 512),
    ),
    names={
        "patch_embedding.project": "vision_model.embeddings.patch_embedding",
        "patch_table.table": "vision_model.embeddings.position_embedding.weight",
        "cls_token": Reshaped(
            "vision_model.embeddings.class_embedding",
            ours=lambda s: (1, s.layers.dim),
            theirs=lambda s: (s.layers.dim,),
        ),
        "tokens_norm": "vision_model.pre_layrnorm",
        **layer_names("vision_model."),
        "pooled_norm": "vision_model.post_layernorm",
        "to_logits": "visual_projection",
    },
    ignored_tensors=IDS,
    ignored_keys=UNUSED,
)


def tower(
    model_type: str, architecture: str, family: Family, key: str, dropped: tuple[str, ...], **more: Any
) -> NestedModel:
    """A tower of a model of two."""
    return NestedModel(
        model_type=model_type,
        architecture=architecture,
        family=family,
        key=key,
        replacing_key=f"{key}_dict",
        prefixes={},
        dropped=(r"^logit_(scale|bias)$", *dropped),
        ignored_keys=key_names(
            "text_config vision_config text_config_dict vision_config_dict logit_scale_init_value tie_word_embeddings"
        ),
        **more,
    )


PROJECTED: Any = {"outer_keys": ("architectures", "dtype", "torch_dtype", "projection_dim")}
"""The size of the projections is a key of the whole model."""
CLIP = (
    tower("clip", "CLIPModel", CLIP_TEXT, "text_config", (r"^vision_model\.", r"^visual_projection\."), **PROJECTED),
    tower("clip", "CLIPModel", CLIP_VISION, "vision_config", (r"^text_model\.", r"^text_projection\."), **PROJECTED),
)
