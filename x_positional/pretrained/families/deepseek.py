"""DeepSeek-V3: latent attention, and experts in groups with a correction of the choice, after a few layers without."""

import math
from dataclasses import dataclass
from typing import Any

from x_positional.config.layers import MLAConfig
from x_positional.pretrained.config_json.codecs import NULL, Fields, Fixed, Hf, Only
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.config_json.layer_types import NEIGHBOURS, Turns
from x_positional.pretrained.config_json.moe_codec import Mixture, Named, Shared, Sparse
from x_positional.pretrained.families.llama import LLAMA, sizes
from x_positional.pretrained.families.mixtral import EXPERTS, LAYER, TRAINING, shared_names
from x_positional.pretrained.tensors.layouts_latent import LatentQueries
from x_positional.schemes import Rope

TURNS = Turns(honours=(NEIGHBOURS,))
LATENT_EPS = 1e-6
"""Of the norms of latents, whatever rms_norm_eps says."""


@dataclass(frozen=True)
class Latent:
    """Latent attention, the rotation of its shared channels, and the scale of its scores, which YaRN changes."""

    @property
    def said(self) -> tuple[str, ...]:
        return (*TURNS.said, "layers.attn.mla", "layers.attn.scale", "layers.head_dim", "layers.kv_heads")

    @property
    def keys(self) -> tuple[str, ...]:
        own = key_names("kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim num_key_value_heads")
        return (*TURNS.keys, *own)

    def read(self, hf: Hf) -> Fields:
        (rope,) = TURNS.read(hf)["layers.position"]
        mla = MLAConfig(
            kv_rank=hf["kv_lora_rank"],
            q_rank=hf["q_lora_rank"],
            rope_dim=hf["qk_rope_head_dim"],
            value_dim=hf["v_head_dim"],
            eps=LATENT_EPS,
        )
        width = mla.rope_dim + hf["qk_nope_head_dim"]
        scale = width**-0.5 * _sharper(hf.get("rope_parameters") or hf.get("rope_scaling") or {}) ** 2
        return {
            "layers.position": [rope.model_copy(update={"dim": mla.rope_dim})],
            "layers.attn.mla": mla,
            "layers.head_dim": width,
            "layers.attn.scale": scale,
        }

    def write(self, config: Fields) -> dict[str, Any]:
        mla = config.get("layers.attn.mla")
        if not isinstance(mla, MLAConfig):
            return {}
        rope = next((part for part in config["each.position"][0] if isinstance(part, Rope)), None)
        return {
            **TURNS.write({**config, "layers.head_dim": mla.rope_dim}),
            NEIGHBOURS: rope is not None and rope.interleaved,
            "kv_lora_rank": mla.kv_rank,
            "q_lora_rank": NULL if mla.q_rank is None else mla.q_rank,
            "v_head_dim": mla.value_dim,
            "qk_rope_head_dim": mla.rope_dim,
            "qk_nope_head_dim": config["layers.head_dim"] - mla.rope_dim,
            "num_key_value_heads": config["layers.heads"],
        }


def _sharper(parameters: Hf) -> float:
    """What YaRN multiplies queries and keys by, those channels too that do not turn."""
    share, kind = parameters.get("mscale_all_dim"), parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default" or not share or parameters["factor"] <= 1:
        return 1.0
    return 0.1 * share * math.log(parameters["factor"]) + 1


def _sparse(hf: Hf) -> Sparse:
    return [i >= hf["first_k_dense_replace"] for i in range(hf["num_hidden_layers"])]


def _first_dense(sparse: Sparse) -> dict[str, int]:
    return {"first_k_dense_replace": sparse.index(True) if any(sparse) else len(sparse)}


MIXTURE = Mixture(
    numbers={
        "experts": Named("n_routed_experts", 256, also="num_local_experts"),
        "top_k": Named("num_experts_per_tok", 8),
        "scale": Named("routed_scaling_factor", 2.5),
        "renorm": Named("norm_topk_prob", True),
        "groups": Named("n_group", 8),
        "top_groups": Named("topk_group", 4),
    },
    fixed={"score": "sigmoid", "correction": True},
    width="moe_intermediate_size",
    dense="intermediate_size",
    sparse=_sparse,
    said_by=_first_dense,
    sparse_keys=("first_k_dense_replace",),
    shared=Shared(
        read=lambda hf: hf["moe_intermediate_size"] * hf["n_shared_experts"],
        write=lambda shared, width: {} if shared is None else {"n_shared_experts": shared // width},
        keys=("n_shared_experts",),
    ),
)

DEEPSEEK_V3 = LLAMA.like(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    fields=(
        Latent(),
        MIXTURE,
        Fixed("layers.ff.bias", False),
        Only("scoring_func", ("sigmoid",), "another score of experts is not known here."),
        Only("topk_method", ("noaux_tc",), "another choice of experts is not known here."),
        Only("moe_layer_freq", (1,), "every layer after the first ones has experts here."),
    ),
    names={
        **EXPERTS,
        **shared_names("mlp.shared_experts"),
        "blocks.{i}.ff.router.correction": LAYER + "mlp.gate.e_score_correction_bias",
        "blocks.{i}.attn.to_qkv": None,
        "blocks.{i}.attn.to_q_latent": LAYER + "self_attn.q_a_proj",
        "blocks.{i}.attn.q_latent_norm": LAYER + "self_attn.q_a_layernorm",
        "blocks.{i}.attn.to_q": LatentQueries(LAYER + "self_attn.q_b_proj", LAYER + "self_attn.q_proj"),
        "blocks.{i}.attn.to_kv_latent": LAYER + "self_attn.kv_a_proj_with_mqa",
        "blocks.{i}.attn.kv_latent_norm": LAYER + "self_attn.kv_a_layernorm",
        "blocks.{i}.attn.to_kv": LAYER + "self_attn.kv_b_proj",
    },
    ignored=(
        *LLAMA.ignored,
        r"^model\.layers\.61\.",
    ),  # predicts the token after the next, and is no part of the text model
    harmless=TRAINING
    | key_names("aux_loss_alpha ep_size head_dim num_mtp_layers num_nextn_predict_layers qk_head_dim seq_aux"),
    defaults=sizes(
        129280,
        7168,
        18432,
        61,
        128,
        4096,
        kv_lora_rank=512,
        q_lora_rank=1536,
        qk_rope_head_dim=64,
        qk_nope_head_dim=128,
        v_head_dim=128,
        moe_intermediate_size=2048,
        n_shared_experts=1,
        first_k_dense_replace=3,
    ),
)
