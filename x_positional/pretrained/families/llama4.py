"""Llama 4's text model: chunked attention with RoPE in most layers, temperature in the others, experts with weighted inputs.

It is published alone and inside a multimodal model.
"""

from dataclasses import dataclass
from typing import Any

from x_positional.pretrained.config_json.causal import causal_only
from x_positional.pretrained.config_json.codecs import Fields, Fixed, Hf
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.config_json.layer_types import CHUNKED, FULL, LayerTypesCodec, RopeCodec, no_rope_layers
from x_positional.pretrained.config_json.moe_codec import AliasedKey, ExpertLayers, MoECodec, SharedExpert
from x_positional.pretrained.families.llama import LLAMA, rms_norms, sizes
from x_positional.pretrained.families.mixtral import LAYER, TRAINING, shared_names
from x_positional.pretrained.nested import NestedModel
from x_positional.pretrained.tensors.layouts import FusedExperts, Joined, gates_first
from x_positional.schemes import NoPE, Temperature
from x_positional.schemes.registry import SchemeConfig

ROPE_LAYERS = no_rope_layers()
ROPE = RopeCodec(layers=ROPE_LAYERS)
NO_ROPE = (NoPE(),)


@dataclass(frozen=True)
class PositionsCodec:
    """Layers with RoPE, which norm rotated queries and keys; and layers without, which may scale queries by their position.

    For the scale, transformers counts cache slots including padding; x_positional uses positions. Without padding they agree.
    """

    @property
    def sets(self) -> tuple[str, ...]:
        return (*ROPE.sets, "each.attn.qk_norm", "each.attn.qk_norm_eps", "each.attn.qk_norm_after")

    @property
    def keys(self) -> tuple[str, ...]:
        return (*ROPE.keys, "attn_temperature_tuning", "floor_scale", "attn_scale", "use_qk_norm", "rms_norm_eps")

    def to_fields(self, hf: Hf) -> Fields:
        fields, rotated = ROPE.to_fields(hf), ROPE_LAYERS.which(hf)
        others: tuple[SchemeConfig, ...] = NO_ROPE
        if hf["attn_temperature_tuning"]:
            others = (Temperature(scale=hf["attn_scale"], floor_scale=hf["floor_scale"], offset=1.0),)
        positions = fields.get("each.position") or [fields["layers.position"]] * len(rotated)
        normed = [layer and hf["use_qk_norm"] for layer in rotated]
        return {
            "each.position": [own if layer else others for own, layer in zip(positions, rotated, strict=True)],
            "each.attn.qk_norm": ["rms_plain" if n else None for n in normed],
            "each.attn.qk_norm_after": normed,
            "each.attn.qk_norm_eps": [hf.get("rms_norm_eps", 1e-5) if n else None for n in normed],
        }

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        positions = [tuple(schemes) for schemes in fields["each.position"]]
        scaled = [s[0] for s in positions if len(s) == 1 and isinstance(s[0], Temperature)]
        unscaled = [NO_ROPE if scaled and s == (scaled[0],) else s for s in positions]
        out = ROPE.to_hf({**fields, "each.position": unscaled})
        out |= {"use_qk_norm": any(fields["each.attn.qk_norm"]), "attn_temperature_tuning": bool(scaled)}
        return {**out, "attn_scale": scaled[0].scale, "floor_scale": int(scaled[0].floor_scale)} if scaled else out


def _types(hf: Hf) -> list[str]:
    return [CHUNKED if rotated else FULL for rotated in ROPE_LAYERS.which(hf)]


def _expert_layers(hf: Hf) -> ExpertLayers:
    """The listed layers, or every n-th."""
    depth, step, listed = hf["num_hidden_layers"], hf["interleave_moe_layer_step"], hf.get("moe_layers")
    chosen = range(step - 1, depth, step) if listed is None else listed
    return [i in chosen for i in range(depth)]


def _expert_layers_to_hf(layers: ExpertLayers) -> dict[str, list[int]]:
    return {"moe_layers": [i for i, has_experts in enumerate(layers) if has_experts]}


PLACE = LAYER + "feed_forward"

LLAMA4_TEXT = LLAMA.like(
    "llama4_text",
    "Llama4ForCausalLM",
    codecs=(
        causal_only("chunked layers stay causal in transformers, so the layers would differ."),
        PositionsCodec(),
        LayerTypesCodec(default_types=_types, window=None, chunk="attention_chunk_size"),
        MoECodec(
            numbers={"experts": AliasedKey("num_local_experts", 16), "top_k": AliasedKey("num_experts_per_tok", 1)},
            fixed={"score": "sigmoid", "renorm": False, "weigh": "input"},
            width="intermediate_size",
            dense_width="intermediate_size_mlp",
            expert_layers=_expert_layers,
            expert_layers_to_hf=_expert_layers_to_hf,
            expert_layers_keys=("moe_layers", "interleave_moe_layer_step"),
            shared=SharedExpert(width=lambda hf: hf["intermediate_size"], to_hf=lambda shared, width: {}),
        ),
        *rms_norms(eps=1e-5),
        Fixed("layers.ff.bias", False),
    ),
    names={
        "blocks.{i}.ff.up": Joined((PLACE + ".up_proj", PLACE + ".gate_proj")),
        "blocks.{i}.ff.down": PLACE + ".down_proj",
        "blocks.{i}.ff.experts.up": FusedExperts(PLACE + ".experts.gate_up_proj", gates_first),
        "blocks.{i}.ff.experts.down": FusedExperts(PLACE + ".experts.down_proj"),
        "blocks.{i}.ff.router": PLACE + ".router",
        **shared_names("feed_forward.shared_expert"),
    },
    ignored_keys=TRAINING,
    defaults=sizes(
        202048,
        5120,
        8192,
        48,
        40,
        131072,
        num_key_value_heads=8,
        head_dim=128,
        intermediate_size_mlp=16384,
        interleave_moe_layer_step=1,
        no_rope_layer_interval=4,
        attention_chunk_size=8192,
        attn_temperature_tuning=True,
        floor_scale=8192,
        attn_scale=0.1,
        use_qk_norm=True,
    ),
)

LLAMA4 = NestedModel(
    model_type="llama4",
    architecture="Llama4ForConditionalGeneration",
    family=LLAMA4_TEXT,
    prefixes={r"language_model\.": ""},
    dropped=(r"^(vision_model|multi_modal_projector)\.",),
    ignored_keys=key_names(
        "vision_config boi_token_index eoi_token_index image_token_index boi_token_id eoi_token_id image_token_id "
        "processor_class"
    ),
)
