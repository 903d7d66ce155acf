"""DeepSeek-V3: latent attention, and experts in groups with a correction of the choice, after a few layers without."""

import math
from typing import Any

from x_positional.latent_config import MLAConfig
from x_positional.pretrained.families.llama import LLAMA, ROPE
from x_positional.pretrained.families.mixtral import LAYER, NAMES, TRAINING, shared_names
from x_positional.pretrained.fields import Both, Fields, Fixed, Hf, Key, Only
from x_positional.pretrained.layouts_latent import LatentQueries
from x_positional.pretrained.mixture import Mixture, Named, Shared, Sparse
from x_positional.schemes import Rope

LATENT_EPS = 1e-6
"""Of the norms of latents, whatever rms_norm_eps says."""


def _rope_fields(hf: Hf) -> Fields:
    (rope,) = ROPE.read(hf)["layers.position"]
    return {"layers.position": [rope.model_copy(update={"dim": hf.get("qk_rope_head_dim", 64)})]}


def _rope_keys(config: Fields) -> dict[str, Any]:
    match config.get("layers.position"):
        case (Rope() as rope,):
            bare = rope.model_copy(update={"dim": None})
            return {**ROPE.write({"layers.position": (bare,)}), "rope_interleave": rope.interleaved}
        case _:
            return {}


def _latent_fields(hf: Hf) -> Fields:
    rope, plain = hf.get("qk_rope_head_dim", 64), hf.get("qk_nope_head_dim", 128)
    mla = MLAConfig(
        kv_rank=hf.get("kv_lora_rank", 512), q_rank=hf.get("q_lora_rank", 1536), rope_dim=rope,
        value_dim=hf.get("v_head_dim") or 128, eps=LATENT_EPS,
    )  # fmt: skip
    parameters = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    return {
        "layers.attn.mla": mla,
        "layers.head_dim": rope + plain,
        "layers.attn.scale": _scale(rope + plain, parameters),
    }


def _scale(width: int, parameters: Hf) -> float:
    """Of the scores: YaRN's factor for all channels is in it twice, once for queries and once for keys."""
    share = parameters.get("mscale_all_dim") or 0.0
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default" or not share or parameters["factor"] <= 1:
        return width**-0.5
    return width**-0.5 * (0.1 * share * math.log(parameters["factor"]) + 1) ** 2


def _latent_keys(config: Fields) -> dict[str, Any]:
    match config.get("layers.attn.mla"):
        case MLAConfig() as mla:
            return {
                "kv_lora_rank": mla.kv_rank, "q_lora_rank": mla.q_rank, "qk_rope_head_dim": mla.rope_dim,
                "v_head_dim": mla.value_dim, "qk_nope_head_dim": config["layers.head_dim"] - mla.rope_dim,
                "num_key_value_heads": config["layers.heads"],
            }  # fmt: skip
        case _:
            return {}


def _sparse(hf: Hf) -> Sparse:
    first = hf.get("first_k_dense_replace", 3)
    return [i >= first for i in range(hf["num_hidden_layers"])]


def _first_dense(sparse: Sparse) -> dict[str, int]:
    return {"first_k_dense_replace": sparse.index(True) if any(sparse) else len(sparse)}


DEEPSEEK_V3 = LLAMA.like(
    "deepseek_v3", "DeepseekV3ForCausalLM",
    fields=(
        Both(("layers.position",), ROPE.keys, _rope_fields, _rope_keys),
        Both(
            ("layers.attn.mla", "layers.head_dim", "layers.attn.scale", "layers.kv_heads"),
            ("kv_lora_rank", "q_lora_rank", "qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "num_key_value_heads"),
            _latent_fields, _latent_keys,
        ),
        Mixture(
            numbers={
                "experts": Named("n_routed_experts", 256, "num_local_experts"), "top_k": Named("num_experts_per_tok", 8),
                "scale": Named("routed_scaling_factor", 2.5), "renorm": Named("norm_topk_prob", True),
                "groups": Named("n_group", 8), "top_groups": Named("topk_group", 4),
            },
            fixed={"score": "sigmoid", "correction": True}, width=Named("moe_intermediate_size", 2048),
            dense=Named("intermediate_size", 18432), sparse=_sparse, said_by=_first_dense,
            sparse_keys=("first_k_dense_replace",),
            shared=Shared(
                read=lambda hf: hf.get("moe_intermediate_size", 2048) * hf.get("n_shared_experts", 1),
                write=lambda shared, width: {"n_shared_experts": 0 if shared is None else shared // width},
                keys=("n_shared_experts",),
            ),
        ),
        Key("max_seq_len", "max_position_embeddings", 4096), Fixed("layers.ff.bias", False),
        Only("scoring_func", ("sigmoid",), "another score of experts is not known here."),
        Only("topk_method", ("noaux_tc",), "another choice of experts is not known here."),
        Only("moe_layer_freq", (1,), "every layer after the first ones has experts here."),
    ),
    names={
        **NAMES, **shared_names("mlp.shared_experts"),
        "blocks.{i}.ff.router.correction": LAYER + "mlp.gate.e_score_correction_bias",
        "blocks.{i}.attn.to_qkv": None,
        "blocks.{i}.attn.to_q_latent": LAYER + "self_attn.q_a_proj",
        "blocks.{i}.attn.q_latent_norm": LAYER + "self_attn.q_a_layernorm",
        "blocks.{i}.attn.to_q": LatentQueries(LAYER + "self_attn.q_b_proj", LAYER + "self_attn.q_proj"),
        "blocks.{i}.attn.to_kv_latent": LAYER + "self_attn.kv_a_proj_with_mqa",
        "blocks.{i}.attn.kv_latent_norm": LAYER + "self_attn.kv_a_layernorm",
        "blocks.{i}.attn.to_kv": LAYER + "self_attn.kv_b_proj",
    },
    ignored=(*LLAMA.ignored, r"^model\.layers\.61\."),
    harmless=TRAINING | {"num_nextn_predict_layers", "num_mtp_layers", "ep_size", "head_dim", "qk_head_dim", "aux_loss_alpha",
                         "seq_aux"},
)  # fmt: skip
