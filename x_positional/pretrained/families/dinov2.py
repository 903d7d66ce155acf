"""DINOv2: ViT with LayerScale, SwiGLU in the largest model, a head on the cls token and the mean of the patches; and its
later version with registers.
"""

from typing import Any

from x_positional.errors import ConfigError
from x_positional.pretrained.config_json.codecs import Codec, Custom, Fields, Fixed, Hf, Key, Only
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.families.gpt2 import layer_norms
from x_positional.pretrained.families.llama import ACTIVATIONS
from x_positional.pretrained.families.vit import MASK_TOKEN, attention, embeddings, images, tokens
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import ByGate, Layout, Same, Swapped

RATIOS = range(1, 65)
"""Candidate `mlp_ratio`s, which must be integers."""


def _width(dim: int, ratio: float, gated: bool) -> int:
    """Inner width; a gated one is two thirds of it, rounded up to a multiple of 8."""
    inner = int(dim * ratio)
    return (int(inner * 2 / 3) + 7) // 8 * 8 if gated else inner


def _feedforward_fields(hf: Hf) -> Fields:
    gated = bool(hf.get("use_swiglu_ffn", False))
    name = hf.get("hidden_act") or "gelu"
    if not gated and name not in ACTIVATIONS:
        raise ConfigError(f"unsupported hidden_act={name!r}; supported: {', '.join(ACTIVATIONS)}.")
    return {
        "layers.ff.glu": gated,
        "layers.ff.activation": "silu" if gated else ACTIVATIONS[name],
        "layers.ff.dim": _width(hf.get("hidden_size") or 768, hf.get("mlp_ratio") or 4, gated),
    }


def _feedforward_keys(fields: Fields) -> dict[str, Any]:
    gated, dim = fields.get("layers.ff.glu"), fields["layers.dim"]
    ratio = next((r for r in RATIOS if _width(dim, r, bool(gated)) == fields.get("layers.ff.dim")), None)
    word = None if gated else next((w for w, a in ACTIVATIONS.items() if a == fields.get("layers.ff.activation")), None)
    return {"use_swiglu_ffn": gated, "mlp_ratio": ratio, "hidden_act": word}


FEEDFORWARD = Custom(
    ("layers.ff.glu", "layers.ff.activation", "layers.ff.dim"),
    ("use_swiglu_ffn", "hidden_act", "mlp_ratio"),
    _feedforward_fields,
    _feedforward_keys,
)


def _names(base: str) -> dict[str, str | Layout]:
    block = f"{base}encoder.layer.{{i}}"
    return {
        **embeddings(base),
        **attention(block),
        "blocks.{i}.attn_residual.before": f"{block}.norm1",
        "blocks.{i}.attn_residual.gain": f"{block}.layer_scale1.lambda1",
        "blocks.{i}.ff_residual.before": f"{block}.norm2",
        "blocks.{i}.ff_residual.gain": f"{block}.layer_scale2.lambda1",
        "blocks.{i}.ff.up": ByGate(Same(f"{block}.mlp.fc1"), Swapped(f"{block}.mlp.weights_in")),
        "blocks.{i}.ff.down": ByGate(Same(f"{block}.mlp.fc2"), Same(f"{block}.mlp.weights_out")),
        "final_norm": f"{base}layernorm",
        "to_logits": "classifier",
    }


OWN: tuple[Codec, ...] = (
    *layer_norms("layer_norm_eps", 1e-6),
    FEEDFORWARD,
    Key("layers.layer_scale", "layerscale_value", 1.0),
    Fixed("pool", "cls_mean"),
)

DINOV2 = Family(
    model_type="dinov2",
    architecture="Dinov2ForImageClassification",
    body_architecture="Dinov2Model",
    kind="vision",
    prefix="dinov2.",
    codecs=(*images(224, 14), *OWN, Only("use_mask_token", (False, True), "it must be a bool.")),
    names=_names("dinov2."),
    ignored_tensors=(MASK_TOKEN,),
    ignored_keys=key_names(
        "drop_path_rate out_features out_indices stage_names apply_layernorm reshape_hidden_states tie_word_embeddings"
    ),
)
DINOV2_WITH_REGISTERS = DINOV2.like(
    "dinov2_with_registers",
    "Dinov2WithRegistersForImageClassification",
    codecs=(*images(224, 16), *OWN, Key("num_register_tokens", "num_register_tokens", 4), Fixed("antialias", True)),
    names={
        **_names("dinov2_with_registers."),
        "register_tokens": tokens("dinov2_with_registers.embeddings.register_tokens"),
    },
    body_architecture="Dinov2WithRegistersModel",
    prefix="dinov2_with_registers.",
    ignored_keys=DINOV2.ignored_keys | {"use_mask_token"},
)
