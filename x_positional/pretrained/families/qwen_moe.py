"""Qwen 2 and 3 with experts: beside one that every token goes through, behind a gate of its own; or without."""

from collections.abc import Mapping
from typing import Any

from x_positional.pretrained.config_json.codecs import NULL, Both, Fields, Hf, Key
from x_positional.pretrained.config_json.layer_types import FULL, SLIDING, Reaches
from x_positional.pretrained.config_json.moe_codec import Mixture, Named, Shared, Sparse
from x_positional.pretrained.families.llama import sizes
from x_positional.pretrained.families.mixtral import EXPERTS, LAYER, TRAINING, shared_names
from x_positional.pretrained.families.qwen import QWEN2, QWEN3


def _sparse(hf: Hf) -> Sparse:
    """Every n-th layer, unless it is named as one without."""
    only, step = hf.get("mlp_only_layers") or (), hf["decoder_sparse_step"]
    return [i not in only and (i + 1) % step == 0 for i in range(hf["num_hidden_layers"])]


def _dense(sparse: Sparse) -> Mapping[str, Any]:
    return {"mlp_only_layers": [i for i, has in enumerate(sparse) if not has], "decoder_sparse_step": 1}


def mixture(experts: Named, top_k: int, **changes: Any) -> Mixture:
    """The keys of Qwen 2 and 3."""
    return Mixture(
        numbers={
            "experts": experts,
            "top_k": Named("num_experts_per_tok", top_k),
            "renorm": Named("norm_topk_prob", False),
        },
        width="moe_intermediate_size",
        dense="intermediate_size",
        sparse=_sparse,
        said_by=_dense,
        sparse_keys=("mlp_only_layers", "decoder_sparse_step"),
        **changes,
    )


def _types(hf: Hf) -> list[str]:
    """Windows in every other of the first layers."""
    return [SLIDING if i < hf["max_window_layers"] and i % 2 == 0 else FULL for i in range(hf["num_hidden_layers"])]


WIDTH = "shared_expert_intermediate_size"

QWEN2_MOE = QWEN2.like(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    fields=(
        mixture(
            Named("num_experts", 60),
            4,
            fixed={"shared_gate": True},
            shared=Shared(read=lambda hf: hf[WIDTH], write=lambda shared, width: {WIDTH: shared}, keys=(WIDTH,)),
        ),
        Key("layers.attn.bias", "qkv_bias", True),
        Reaches(unlisted=_types, switch="use_sliding_window", older=("max_window_layers",)),
    ),
    names={
        **EXPERTS,
        **shared_names("mlp.shared_expert"),
        "blocks.{i}.ff.shared_gate": LAYER + "mlp.shared_expert_gate",
    },
    harmless=TRAINING,
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
    """In all layers or in none: these files list no types."""
    return {"layers.window": hf["sliding_window"] if hf.get("use_sliding_window") else None}


def _window_keys(config: Fields) -> dict[str, Any]:
    window = config.get("layers.window")
    return {"sliding_window": NULL if window is None else window, "use_sliding_window": window is not None}


QWEN3_MOE = QWEN3.like(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    fields=(
        mixture(Named("num_experts", 128, also="num_local_experts"), 8),
        Both(("layers.window", "each.window"), ("sliding_window", "use_sliding_window"), _window, _window_keys),
    ),
    names=EXPERTS,
    harmless=TRAINING | {"max_window_layers"},
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
