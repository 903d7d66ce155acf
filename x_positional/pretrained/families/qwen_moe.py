"""Qwen 2 and 3 with experts; Qwen 2 also has a gated shared expert."""

from collections.abc import Mapping
from typing import Any

from x_positional.pretrained.config_json.codecs import NULL, Custom, Fields, Hf, Key
from x_positional.pretrained.config_json.layer_types import FULL, SLIDING, LayerTypesCodec
from x_positional.pretrained.config_json.moe_codec import AliasedKey, ExpertLayers, MoECodec, SharedExpert
from x_positional.pretrained.families.llama import sizes
from x_positional.pretrained.families.mixtral import EXPERTS, LAYER, TRAINING, shared_names
from x_positional.pretrained.families.qwen import QWEN2, QWEN3


def _expert_layers(hf: Hf) -> ExpertLayers:
    """Every n-th layer, except those listed as dense."""
    only, step = hf.get("mlp_only_layers") or (), hf["decoder_sparse_step"]
    return [i not in only and (i + 1) % step == 0 for i in range(hf["num_hidden_layers"])]


def _expert_layers_to_hf(layers: ExpertLayers) -> Mapping[str, Any]:
    dense = [i for i, has_experts in enumerate(layers) if not has_experts]
    return {"mlp_only_layers": dense, "decoder_sparse_step": 1}


def mixture(experts: AliasedKey, top_k: int, **changes: Any) -> MoECodec:
    """The codec of Qwen 2 and 3."""
    return MoECodec(
        numbers={
            "experts": experts,
            "top_k": AliasedKey("num_experts_per_tok", top_k),
            "renorm": AliasedKey("norm_topk_prob", False),
        },
        width="moe_intermediate_size",
        dense_width="intermediate_size",
        expert_layers=_expert_layers,
        expert_layers_to_hf=_expert_layers_to_hf,
        expert_layers_keys=("mlp_only_layers", "decoder_sparse_step"),
        **changes,
    )


def _types(hf: Hf) -> list[str]:
    """Windows in every other one of the first layers."""
    return [SLIDING if i < hf["max_window_layers"] and i % 2 == 0 else FULL for i in range(hf["num_hidden_layers"])]


WIDTH = "shared_expert_intermediate_size"

QWEN2_MOE = QWEN2.like(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    codecs=(
        mixture(
            AliasedKey("num_experts", 60),
            4,
            fixed={"shared_gate": True},
            shared=SharedExpert(width=lambda hf: hf[WIDTH], to_hf=lambda shared, width: {WIDTH: shared}, keys=(WIDTH,)),
        ),
        Key("layers.attn.bias", "qkv_bias", True),
        LayerTypesCodec(default_types=_types, switch="use_sliding_window", legacy_keys=("max_window_layers",)),
    ),
    names={
        **EXPERTS,
        **shared_names("mlp.shared_expert"),
        "blocks.{i}.ff.shared_gate": LAYER + "mlp.shared_expert_gate",
    },
    ignored_keys=TRAINING,
    defaults=sizes(
        151936,
        2048,
        5632,
        24,
        16,
        32768,
        num_key_value_heads=16,
        moe_intermediate_size=1408,
        decoder_sparse_step=1,
        **{WIDTH: 5632},
    ),
)


def _window(hf: Hf) -> Fields:
    """Windows in all layers or in none: this family has no layer_types."""
    return {"layers.window": hf["sliding_window"] if hf.get("use_sliding_window") else None}


def _window_keys(fields: Fields) -> dict[str, Any]:
    window = fields.get("layers.window")
    return {"sliding_window": NULL if window is None else window, "use_sliding_window": window is not None}


QWEN3_MOE = QWEN3.like(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    codecs=(
        mixture(AliasedKey("num_experts", 128, alias="num_local_experts"), 8),
        Custom(("layers.window", "each.window"), ("sliding_window", "use_sliding_window"), _window, _window_keys),
    ),
    names=EXPERTS,
    ignored_keys=TRAINING | {"max_window_layers"},
    defaults=sizes(
        151936,
        2048,
        6144,
        24,
        32,
        32768,
        num_key_value_heads=4,
        head_dim=None,
        moe_intermediate_size=768,
        decoder_sparse_step=1,
    ),
)
