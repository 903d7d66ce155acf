"""Mixtral, Qwen's mixtures and OLMoE: the blocks of Llama with experts whose weights are a softmax."""

from collections.abc import Mapping
from typing import Any

from x_positional.pretrained.families.llama import LLAMA, rms_norms
from x_positional.pretrained.fields import Both, Codec, Fields, Fixed, Hf, Key
from x_positional.pretrained.layouts import Joined, Layout, Reshaped
from x_positional.pretrained.layouts_experts import PerExpert
from x_positional.pretrained.mixture import Mixture, Named, Shared, Sparse

LAYER = "model.layers.{i}."
TRAINING = frozenset({"output_router_logits", "router_aux_loss_coef", "router_jitter_noise"})
"""Keys of losses and noise that only training sees."""


def expert_names(place: str, up: str, gate: str, down: str) -> dict[str, str | Layout]:
    """Where experts lie that are stored one by one, and the router beside them."""
    return {
        "blocks.{i}.ff.experts.up": PerExpert(
            tuple(f"{LAYER}{place}.experts.{{e}}.{name}.weight" for name in (up, gate))
        ),
        "blocks.{i}.ff.experts.down": PerExpert((f"{LAYER}{place}.experts.{{e}}.{down}.weight",)),
        "blocks.{i}.ff.router": f"{LAYER}{place}.gate",
    }


NAMES = expert_names("mlp", "up_proj", "gate_proj", "down_proj")


def shared_names(place: str) -> dict[str, str | Layout]:
    """Where a shared expert lies."""
    return {
        "blocks.{i}.ff.shared.up": Joined((f"{LAYER}{place}.up_proj", f"{LAYER}{place}.gate_proj")),
        "blocks.{i}.ff.shared.down": f"{LAYER}{place}.down_proj",
    }


def windows_by_type(types: Any, window: int | None, used: bool = True) -> Codec:
    """A window in the layers whose type is sliding_attention. types(hf): of layers where the file has none."""

    def read(hf: Hf) -> Fields:
        size = hf.get("sliding_window", window)
        each = hf.get("layer_types") or types(hf)
        return {"each.window": [size if kind == "sliding_attention" else None for kind in each]}

    def write(config: Fields) -> dict[str, Any]:
        windows = config["each.window"]
        kinds = ["full_attention" if size is None else "sliding_attention" for size in windows]
        size = next((size for size in windows if size is not None), None)
        return {
            "layer_types": kinds,
            "sliding_window": size,
            **({"use_sliding_window": size is not None} if used else {}),
        }

    keys = ("layer_types", "sliding_window", *(("use_sliding_window", "max_window_layers") if used else ()))
    return Both(("layers.window", "each.window"), keys, read, write)


MIXTRAL = LLAMA.like(
    "mixtral", "MixtralForCausalLM",
    fields=(
        Mixture(
            numbers={"experts": Named("num_local_experts", 8, "num_experts"), "top_k": Named("num_experts_per_tok", 2)},
            width=Named("intermediate_size", 14336),
        ),
        *rms_norms(eps=1e-5), Fixed("layers.attn.bias", False), Fixed("layers.ff.bias", False),
        Key("layers.kv_heads", "num_key_value_heads", 8), Key("max_seq_len", "max_position_embeddings", 131072),
        Key("layers.window", "sliding_window", None),
    ),
    names=expert_names("block_sparse_moe", "w3", "w1", "w2"), harmless=TRAINING,
)  # fmt: skip


def _qwen_sparse(hf: Hf) -> Sparse:
    """Every n-th layer, unless it is named as one without."""
    only, step = hf.get("mlp_only_layers") or (), hf.get("decoder_sparse_step") or 1
    return [i not in only and (i + 1) % step == 0 for i in range(hf["num_hidden_layers"])]


def _qwen_dense(sparse: Sparse) -> Mapping[str, Any]:
    return {"mlp_only_layers": [i for i, has in enumerate(sparse) if not has], "decoder_sparse_step": 1}


def qwen_mixture(experts: Named, top_k: int, width: int, dense: int, **changes: Any) -> Mixture:
    """The keys of Qwen 2 and 3."""
    return Mixture(
        numbers={"experts": experts, "top_k": Named("num_experts_per_tok", top_k), "renorm": Named("norm_topk_prob", False)},
        width=Named("moe_intermediate_size", width), dense=Named("intermediate_size", dense), sparse=_qwen_sparse,
        said_by=_qwen_dense, sparse_keys=("mlp_only_layers", "decoder_sparse_step"), **changes,
    )  # fmt: skip


def _qwen2_types(hf: Hf) -> list[str]:
    count = hf.get("max_window_layers", 28) if hf.get("use_sliding_window") else 0
    return [
        "sliding_attention" if i < count and i % 2 == 0 else "full_attention" for i in range(hf["num_hidden_layers"])
    ]


QWEN2_MOE = LLAMA.like(
    "qwen2_moe", "Qwen2MoeForCausalLM",
    fields=(
        qwen_mixture(
            Named("num_experts", 60), 4, 1408, 5632, fixed={"shared_gate": True},
            shared=Shared(
                read=lambda hf: hf.get("shared_expert_intermediate_size", 5632), keys=("shared_expert_intermediate_size",),
                write=lambda shared, width: {"shared_expert_intermediate_size": shared},
            ),
        ),
        Key("layers.attn.bias", "qkv_bias", True), Fixed("layers.attn.out_bias", False), Fixed("layers.ff.bias", False),
        Key("max_seq_len", "max_position_embeddings", 32768), windows_by_type(_qwen2_types, 4096),
    ),
    names={
        **NAMES, **shared_names("mlp.shared_expert"), "blocks.{i}.ff.shared_gate": LAYER + "mlp.shared_expert_gate",
    },
    harmless=TRAINING,
)  # fmt: skip

QWEN3_MOE = LLAMA.like(
    "qwen3_moe", "Qwen3MoeForCausalLM",
    fields=(
        qwen_mixture(Named("num_experts", 128, "num_local_experts"), 8, 768, 6144),
        Fixed("layers.attn.qk_norm", "rms"), Key("layers.attn.qk_norm_eps", "rms_norm_eps", 1e-6),
        Fixed("layers.attn.qk_norm_unit_offset", False), Fixed("layers.ff.bias", False),
        Key("max_seq_len", "max_position_embeddings", 32768), Key("layers.kv_heads", "num_key_value_heads", 4),
        Both(
            ("layers.window",), ("sliding_window", "use_sliding_window", "max_window_layers"),
            lambda hf: {"layers.window": hf.get("sliding_window", 4096) if hf.get("use_sliding_window") else None},
            lambda config: {"sliding_window": config.get("layers.window"), "use_sliding_window": "layers.window" in config
                            and config["layers.window"] is not None},
        ),
    ),
    names={
        **NAMES, "blocks.{i}.attn.q_norm": LAYER + "self_attn.q_norm", "blocks.{i}.attn.k_norm": LAYER + "self_attn.k_norm",
    },
    harmless=TRAINING,
)  # fmt: skip

OLMOE = LLAMA.like(
    "olmoe", "OlmoeForCausalLM",
    fields=(
        Mixture(
            numbers={"experts": Named("num_experts", 64, "num_local_experts"), "top_k": Named("num_experts_per_tok", 8),
                     "renorm": Named("norm_topk_prob", False)},
            width=Named("intermediate_size", 2048),
        ),
        *rms_norms(eps=1e-5), Fixed("layers.attn.qk_norm", "rms_whole"), Key("layers.attn.qk_norm_eps", "rms_norm_eps", 1e-5),
        Fixed("layers.attn.qk_norm_unit_offset", False), Fixed("layers.ff.bias", False),
        Key("layers.attn.clip", "clip_qkv", None), Key("max_seq_len", "max_position_embeddings", 4096),
    ),
    names={
        **NAMES,
        "blocks.{i}.attn.q_norm": Reshaped(
            LAYER + "self_attn.q_norm", lambda s: (s.heads, 1, s.head_dim), lambda s: (s.heads * s.head_dim,)
        ),
        "blocks.{i}.attn.k_norm": Reshaped(
            LAYER + "self_attn.k_norm", lambda s: (s.kv_heads, 1, s.head_dim), lambda s: (s.kv_heads * s.head_dim,)
        ),
    },
    harmless=TRAINING,
)  # fmt: skip
