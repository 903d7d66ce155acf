"""Llama 4, its text: chunks and rotation in most layers, temperature in the others, experts that weigh what they are given."""

from typing import Any

from x_positional.pretrained.families.llama import LLAMA, ROPE, rms_norms
from x_positional.pretrained.families.mixtral import LAYER, TRAINING, shared_names
from x_positional.pretrained.fields import Both, Fields, Fixed, Hf, Key
from x_positional.pretrained.layouts import Joined
from x_positional.pretrained.layouts_experts import Fused, gates_first
from x_positional.pretrained.mixture import Mixture, Named, Shared, Sparse
from x_positional.schemes import NoPEConfig, Rope, Temperature

QK_NORM = ("each.attn.qk_norm", "each.attn.qk_norm_eps", "each.attn.qk_norm_after")
KEYS = (
    *ROPE.keys, "no_rope_layers", "no_rope_layer_interval", "attn_temperature_tuning", "floor_scale", "attn_scale",
    "use_qk_norm", "rms_norm_eps",
)  # fmt: skip


def _turning(hf: Hf) -> list[bool]:
    """Whether each layer rotates. The list is of layers that do, whatever its name says."""
    step, depth = hf.get("no_rope_layer_interval", 4), hf["num_hidden_layers"]
    return [bool(turns) for turns in hf.get("no_rope_layers") or [(i + 1) % step != 0 for i in range(depth)]]


def _position_fields(hf: Hf) -> Fields:
    turns, rope = _turning(hf), ROPE.read(hf)["layers.position"]
    still = [NoPEConfig()]
    if hf.get("attn_temperature_tuning", True):
        still = [Temperature(scale=hf.get("attn_scale", 0.1), floor_scale=hf.get("floor_scale", 8192), offset=1.0)]
    normed, eps = hf.get("use_qk_norm", True), hf.get("rms_norm_eps", 1e-5)
    return {
        "each.position": [rope if t else still for t in turns],
        "each.attn.qk_norm": ["rms_plain" if t and normed else None for t in turns],
        "each.attn.qk_norm_eps": [eps if t and normed else None for t in turns],
        "each.attn.qk_norm_after": [t and normed for t in turns],
    }


def _position_keys(config: Fields) -> dict[str, Any]:
    schemes = config["each.position"]
    rope = next((s for s in schemes if len(s) == 1 and isinstance(s[0], Rope)), None)
    still = next((s[0] for s in schemes if len(s) == 1 and isinstance(s[0], Temperature)), None)
    out: dict[str, Any] = {} if rope is None else ROPE.write({"layers.position": rope})
    out |= {"no_rope_layers": [int(s == rope) for s in schemes], "use_qk_norm": any(config["each.attn.qk_norm"])}
    out["attn_temperature_tuning"] = still is not None
    return out if still is None else {**out, "attn_scale": still.scale, "floor_scale": int(still.floor_scale)}


def _chunk_fields(hf: Hf) -> Fields:
    kinds = hf.get("layer_types") or ["chunked_attention" if t else "full_attention" for t in _turning(hf)]
    size = hf.get("attention_chunk_size", 8192)
    return {"each.chunk": [size if kind == "chunked_attention" else None for kind in kinds]}


def _chunk_keys(config: Fields) -> dict[str, Any]:
    chunks = config["each.chunk"]
    kinds = ["full_attention" if size is None else "chunked_attention" for size in chunks]
    return {"layer_types": kinds, "attention_chunk_size": next((size for size in chunks if size is not None), None)}


def _sparse(hf: Hf) -> Sparse:
    depth, step = hf["num_hidden_layers"], hf.get("interleave_moe_layer_step", 1)
    listed = hf.get("moe_layers")
    mixed = range(step - 1, depth, step) if listed is None else listed
    return [i in mixed for i in range(depth)]


def _mixed(sparse: Sparse) -> dict[str, list[int]]:
    return {"moe_layers": [i for i, has in enumerate(sparse) if has]}


PLACE = LAYER + "feed_forward"
LLAMA4_TEXT = LLAMA.like(
    "llama4_text", "Llama4ForCausalLM",
    fields=(
        Both(("layers.position", "each.position", *QK_NORM), KEYS, _position_fields, _position_keys),
        Both(("each.chunk",), ("layer_types", "attention_chunk_size"), _chunk_fields, _chunk_keys),
        Mixture(
            numbers={"experts": Named("num_local_experts", 16), "top_k": Named("num_experts_per_tok", 1)},
            fixed={"score": "sigmoid", "renorm": False, "weigh": "input"}, width=Named("intermediate_size", 8192),
            dense=Named("intermediate_size_mlp", 16384), sparse=_sparse, said_by=_mixed,
            sparse_keys=("moe_layers", "interleave_moe_layer_step"),
            shared=Shared(read=lambda hf: hf.get("intermediate_size", 8192), write=lambda shared, width: {}),
        ),
        *rms_norms(eps=1e-5), Fixed("layers.ff.bias", False), Key("layers.head_dim", "head_dim", 128),
        Key("layers.kv_heads", "num_key_value_heads", 8), Key("max_seq_len", "max_position_embeddings", 131072),
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
)  # fmt: skip
