"""Llama 4, its text: chunks and rotation in most layers, temperature in the others, experts that weigh what they are given.

It is published alone and inside of a model that sees images.
"""

from dataclasses import dataclass
from typing import Any

from x_positional.pretrained.config_json.codecs import Fields, Fixed, Hf
from x_positional.pretrained.config_json.layer_types import CHUNKED, FULL, Reaches, Turns, turning_unless_listed
from x_positional.pretrained.config_json.moe_codec import Mixture, Named, Shared, Sparse
from x_positional.pretrained.families.llama import LLAMA, rms_norms, sizes
from x_positional.pretrained.families.mixtral import LAYER, TRAINING, shared_names
from x_positional.pretrained.nested import Inner
from x_positional.pretrained.tensors.layouts import Joined
from x_positional.pretrained.tensors.layouts_experts import Fused, gates_first
from x_positional.schemes import NoPE, Temperature
from x_positional.schemes.registry import SchemeConfig

SOME_TURN = turning_unless_listed()
TURNS = Turns(turning=SOME_TURN)
STILL = (NoPE(),)


@dataclass(frozen=True)
class Positions:
    """Layers that turn, and norm what they turned; and layers that do not, whose queries may grow with their position.
    transformers counts the slots of the cache there, padding included, and ours are positions: without padding the same."""

    @property
    def said(self) -> tuple[str, ...]:
        return (*TURNS.said, "each.attn.qk_norm", "each.attn.qk_norm_eps", "each.attn.qk_norm_after")

    @property
    def keys(self) -> tuple[str, ...]:
        return (*TURNS.keys, "attn_temperature_tuning", "floor_scale", "attn_scale", "use_qk_norm", "rms_norm_eps")

    def read(self, hf: Hf) -> Fields:
        fields, turning = TURNS.read(hf), SOME_TURN.which(hf)
        still: tuple[SchemeConfig, ...] = STILL
        if hf["attn_temperature_tuning"]:
            still = (Temperature(scale=hf["attn_scale"], floor_scale=hf["floor_scale"], offset=1.0),)
        positions = fields.get("each.position") or [fields["layers.position"]] * len(turning)
        normed = [turns and hf["use_qk_norm"] for turns in turning]
        return {
            "each.position": [turned if turns else still for turned, turns in zip(positions, turning, strict=True)],
            "each.attn.qk_norm": ["rms_plain" if n else None for n in normed],
            "each.attn.qk_norm_after": normed,
            "each.attn.qk_norm_eps": [hf.get("rms_norm_eps", 1e-5) if n else None for n in normed],
        }

    def write(self, config: Fields) -> dict[str, Any]:
        positions = [tuple(schemes) for schemes in config["each.position"]]
        hot = [s[0] for s in positions if len(s) == 1 and isinstance(s[0], Temperature)]
        turned = [STILL if hot and s == (hot[0],) else s for s in positions]
        out = TURNS.write({**config, "each.position": turned})
        out |= {"use_qk_norm": any(config["each.attn.qk_norm"]), "attn_temperature_tuning": bool(hot)}
        return {**out, "attn_scale": hot[0].scale, "floor_scale": int(hot[0].floor_scale)} if hot else out


def _types(hf: Hf) -> list[str]:
    return [CHUNKED if turns else FULL for turns in SOME_TURN.which(hf)]


def _sparse(hf: Hf) -> Sparse:
    """Those that are listed, or every n-th."""
    depth, step, listed = hf["num_hidden_layers"], hf["interleave_moe_layer_step"], hf.get("moe_layers")
    mixed = range(step - 1, depth, step) if listed is None else listed
    return [i in mixed for i in range(depth)]


def _mixed(sparse: Sparse) -> dict[str, list[int]]:
    return {"moe_layers": [i for i, has in enumerate(sparse) if has]}


PLACE = LAYER + "feed_forward"

LLAMA4_TEXT = LLAMA.like(
    "llama4_text",
    "Llama4ForCausalLM",
    fields=(
        Positions(),
        Reaches(unlisted=_types, window=None, chunk="attention_chunk_size"),
        Mixture(
            numbers={"experts": Named("num_local_experts", 16), "top_k": Named("num_experts_per_tok", 1)},
            fixed={"score": "sigmoid", "renorm": False, "weigh": "input"},
            width="intermediate_size",
            dense="intermediate_size_mlp",
            sparse=_sparse,
            said_by=_mixed,
            sparse_keys=("moe_layers", "interleave_moe_layer_step"),
            shared=Shared(read=lambda hf: hf["intermediate_size"], write=lambda shared, width: {}),
        ),
        *rms_norms(eps=1e-5),
        Fixed("layers.ff.bias", False),
    ),
    names={
        "blocks.{i}.ff.up": Joined((PLACE + ".up_proj", PLACE + ".gate_proj")),
        "blocks.{i}.ff.down": PLACE + ".down_proj",
        "blocks.{i}.ff.experts.up": Fused(PLACE + ".experts.gate_up_proj", gates_first),
        "blocks.{i}.ff.experts.down": Fused(PLACE + ".experts.down_proj"),
        "blocks.{i}.ff.router": PLACE + ".router",
        **shared_names("feed_forward.shared_expert"),
    },
    harmless=TRAINING,
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

LLAMA4 = Inner(
    model_type="llama4",
    architecture="Llama4ForConditionalGeneration",
    family=LLAMA4_TEXT,
    names={r"language_model\.": ""},
    left=(r"^(vision_model|multi_modal_projector)\.",),
)
