"""DINOv3: DINOv2 with RoPE over the centers of patches in place of a table, and keys without a bias."""

from typing import Any

from x_positional.pretrained.config_json.codecs import Custom, Fields, Fixed, Hf, Key, Only, agrees, head_dim
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.families.bert import norms
from x_positional.pretrained.families.llama import ACTIVATIONS
from x_positional.pretrained.families.vit import MASK_TOKEN, size, tokens
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import ByGate, Joined, KeylessBias, Same, qkv
from x_positional.schemes import Axial


def _rope_fields(hf: Hf) -> Fields:
    theta = hf.get("rope_theta")
    return {"layers.position": [Axial(freqs="period", theta=100.0 if theta is None else theta)]}


def _rope_keys(fields: Fields) -> dict[str, Any]:
    match fields.get("layers.position"):
        case (Axial(theta=theta),):
            return {"rope_theta": theta}
        case _:
            return {}


LAYER = "layer.{i}"
DINOV3_VIT = Family(
    model_type="dinov3_vit",
    architecture="",
    body_architecture="DINOv3ViTModel",
    kind="vision",
    prefix="",
    codecs=(
        size("image_size", 224),
        size("patch_size", 16),
        Key("channels", "num_channels", 3),
        Key("layers.dim", "hidden_size", 384),
        Key("layers.depth", "num_hidden_layers", 12),
        Key("layers.heads", "num_attention_heads", 6),
        head_dim(lambda hf: (hf.get("hidden_size") or 384) // (hf.get("num_attention_heads") or 6)),
        Key("layers.ff.dim", "intermediate_size", 1536),
        Key("layers.ff.activation", "hidden_act", "gelu", ACTIVATIONS),
        Key("layers.ff.glu", "use_gated_mlp", False),
        Key("layers.ff.bias", "mlp_bias", True),
        Key("layers.attn.bias", "query_bias", True),
        agrees("value_bias", lambda hf: hf.get("query_bias", True)),
        Only("key_bias", (False,), "keys with a bias are unsupported in this family."),
        Key("layers.attn.out_bias", "proj_bias", True),
        Key("layers.layer_scale", "layerscale_value", 1.0),
        *norms(("layers.norm",), "layer_norm_eps", 1e-5),
        Custom(("layers.position",), ("rope_theta",), _rope_fields, _rope_keys),
        Fixed("layers.kind", "encoder"),
        Fixed("coordinates", "centered"),
        Fixed("patch_norms", False),
        Fixed("pool", "cls"),
        Key("num_register_tokens", "num_register_tokens", 0),
    ),
    names={
        "patch_embedding.project": "embeddings.patch_embeddings",
        "cls_token": tokens("embeddings.cls_token"),
        "register_tokens": tokens("embeddings.register_tokens"),
        "blocks.{i}.attn_residual.before": f"{LAYER}.norm1",
        "blocks.{i}.attn.to_qkv": qkv(*(f"{LAYER}.attention.{p}_proj" for p in "qkv")),
        "blocks.{i}.attn.to_qkv.bias": KeylessBias(f"{LAYER}.attention.q_proj.bias", f"{LAYER}.attention.v_proj.bias"),
        "blocks.{i}.attn.to_out": f"{LAYER}.attention.o_proj",
        "blocks.{i}.attn_residual.gain": f"{LAYER}.layer_scale1.lambda1",
        "blocks.{i}.ff_residual.before": f"{LAYER}.norm2",
        "blocks.{i}.ff.up": ByGate(
            Same(f"{LAYER}.mlp.up_proj"), Joined((f"{LAYER}.mlp.up_proj", f"{LAYER}.mlp.gate_proj"))
        ),
        "blocks.{i}.ff.down": f"{LAYER}.mlp.down_proj",
        "blocks.{i}.ff_residual.gain": f"{LAYER}.layer_scale2.lambda1",
        "final_norm": "norm",
    },
    ignored_tensors=(MASK_TOKEN,),
    legacy_names=((r"^model\.layer\.", "layer."),),
    ignored_keys=key_names(
        "drop_path_rate pos_embed_shift pos_embed_jitter pos_embed_rescale out_features out_indices stage_names "
        "apply_layernorm reshape_hidden_states tie_word_embeddings return_class_token"
    ),
)
