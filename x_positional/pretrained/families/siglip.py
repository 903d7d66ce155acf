"""SigLIP: a bidirectional text tower, whose head reads the last token, and an image tower with attention pooling."""

from x_positional.pretrained.config_json.codecs import Custom, Fields, Fixed, Hf, Key
from x_positional.pretrained.families.bert import norms
from x_positional.pretrained.families.clip import IDS, UNUSED, activation, image, layer_names, text, tower, tower_sizes
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import Reshaped, SquareGrid

SIZES = (
    *tower_sizes(768, 12, 12, 3072),
    *norms(("layers.norm",), "layer_norm_eps", 1e-6),
    activation("gelu_pytorch_tanh"),
)


def _pool(hf: Hf) -> Fields:
    used = hf.get("vision_use_head")
    return {"pool": "attention" if used or used is None else "mean"}


SIGLIP_TEXT = Family(
    model_type="siglip_text_model",
    architecture="SiglipTextModel",
    kind="encoder",
    prefix="text_model.",
    codecs=(
        *text(32000, 64),
        *SIZES,
        Fixed("layers.kind", "encoder"),
        Fixed("logits_bias", True),
        Key("logits_dim", "projection_size", lambda hf: hf.get("hidden_size") or 768),
    ),
    names={
        "token_emb": "text_model.embeddings.token_embedding",
        "schemes.0": "text_model.embeddings.position_embedding",
        **layer_names("text_model."),
        "final_norm": "text_model.final_layer_norm",
        "to_logits": "text_model.head",
    },
    ignored_tensors=IDS,
    ignored_keys=UNUSED,
)
HEAD = "vision_model.head"
SIGLIP_VISION = Family(
    model_type="siglip_vision_model",
    architecture="",
    body_architecture="SiglipVisionModel",
    kind="vision",
    prefix="vision_model.",
    codecs=(
        *image(224, 16),
        *SIZES,
        Custom(
            ("pool",),
            ("vision_use_head",),
            _pool,
            lambda fields: {"vision_use_head": bool(fields.get("attention_pooling"))},
        ),
    ),
    names={
        "patch_embedding.project": "vision_model.embeddings.patch_embedding",
        "patch_table.table": SquareGrid("vision_model.embeddings.position_embedding.weight"),
        **layer_names("vision_model."),
        "final_norm": "vision_model.post_layernorm",
        "pooling.probe": Reshaped(
            f"{HEAD}.probe", ours=lambda s: (1, s.layers.dim), theirs=lambda s: (1, 1, s.layers.dim)
        ),
        "pooling.to_qkv.weight": f"{HEAD}.attention.in_proj_weight",
        "pooling.to_qkv.bias": f"{HEAD}.attention.in_proj_bias",
        "pooling.to_out": f"{HEAD}.attention.out_proj",
        "pooling.norm": f"{HEAD}.layernorm",
        "pooling.ff.up": f"{HEAD}.mlp.fc1",
        "pooling.ff.down": f"{HEAD}.mlp.fc2",
    },
    ignored_tensors=IDS,
    ignored_keys=UNUSED,
)
SIGLIP = (
    tower("siglip", "SiglipModel", SIGLIP_TEXT, "text_config", (r"^vision_model\.",)),
    tower("siglip", "SiglipModel", SIGLIP_VISION, "vision_config", (r"^text_model\.",)),
)
