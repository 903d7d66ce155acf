"""DeepSeek-V2 and V3: latent attention, and grouped experts after a few dense layers, in V3 with a bias correction; and
Kimi K2, which is published under a name of its own.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from x_positional.config.layers import MLAConfig
from x_positional.errors import ConfigError
from x_positional.pretrained.config_json.codecs import NULL, Custom, Fields, Fixed, Hf, Only, agrees
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.config_json.layer_types import INTERLEAVE, RopeCodec
from x_positional.pretrained.config_json.moe_codec import AliasedKey, ExpertLayers, MoECodec, SharedExpert
from x_positional.pretrained.families.llama import LLAMA, sizes
from x_positional.pretrained.families.mixtral import EXPERTS, LAYER, TRAINING, shared_names
from x_positional.pretrained.tensors.layouts import LatentQueries, Layout
from x_positional.schemes import Rope

LATENT_EPS = 1e-6
"""eps of the latents' norms; rms_norm_eps does not apply to them."""


@dataclass(frozen=True)
class LatentAttentionCodec:
    """Latent attention, the RoPE of its shared channels, and the scale of its scores, which YaRN changes."""

    rope: RopeCodec

    @property
    def sets(self) -> tuple[str, ...]:
        return (*self.rope.sets, "layers.attn.mla", "layers.attn.scale", "layers.head_dim", "layers.kv_heads")

    @property
    def keys(self) -> tuple[str, ...]:
        own = key_names("kv_lora_rank q_lora_rank qk_rope_head_dim qk_nope_head_dim v_head_dim num_key_value_heads")
        return (*self.rope.keys, *own)

    def to_fields(self, hf: Hf) -> Fields:
        (rope,) = self.rope.to_fields(hf)["layers.position"]
        mla = MLAConfig(
            kv_rank=hf["kv_lora_rank"],
            q_rank=hf["q_lora_rank"],
            rope_dim=hf["qk_rope_head_dim"],
            value_dim=hf["v_head_dim"],
            eps=LATENT_EPS,
        )
        width = mla.rope_dim + hf["qk_nope_head_dim"]
        scale = width**-0.5 * _yarn_factor(hf.get("rope_parameters") or hf.get("rope_scaling") or {}) ** 2
        return {
            "layers.position": [rope.model_copy(update={"dim": mla.rope_dim})],
            "layers.attn.mla": mla,
            "layers.head_dim": width,
            "layers.attn.scale": scale,
        }

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        mla = fields.get("layers.attn.mla")
        if not isinstance(mla, MLAConfig):
            return {}
        rope = next((part for part in fields["each.position"][0] if isinstance(part, Rope)), None)
        order = {INTERLEAVE: rope is not None and rope.interleaved} if INTERLEAVE in self.rope.reads else {}
        return {
            **self.rope.to_hf({**fields, "layers.head_dim": mla.rope_dim}),
            **order,
            "kv_lora_rank": mla.kv_rank,
            "q_lora_rank": NULL if mla.q_rank is None else mla.q_rank,
            "v_head_dim": mla.value_dim,
            "qk_rope_head_dim": mla.rope_dim,
            "qk_nope_head_dim": fields["layers.head_dim"] - mla.rope_dim,
            "num_key_value_heads": fields["layers.heads"],
        }


def _yarn_factor(parameters: Hf) -> float:
    """YaRN's factor of queries and keys, which also applies to channels without RoPE."""
    all_dim, kind = parameters.get("mscale_all_dim"), parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default" or not all_dim or parameters["factor"] <= 1:
        return 1.0
    return 0.1 * all_dim * math.log(parameters["factor"]) + 1


def _expert_layers(hf: Hf) -> ExpertLayers:
    return [i >= hf["first_k_dense_replace"] for i in range(hf["num_hidden_layers"])]


def _expert_layers_to_hf(layers: ExpertLayers) -> dict[str, int]:
    return {"first_k_dense_replace": layers.index(True) if any(layers) else len(layers)}


MIXTURE = MoECodec(
    numbers={
        "experts": AliasedKey("n_routed_experts", 256, alias="num_local_experts"),
        "top_k": AliasedKey("num_experts_per_tok", 8),
        "scale": AliasedKey("routed_scaling_factor", 2.5),
        "renorm": AliasedKey("norm_topk_prob", True),
        "groups": AliasedKey("n_group", 8),
        "top_groups": AliasedKey("topk_group", 4),
    },
    fixed={"score": "sigmoid", "correction": True},
    width="moe_intermediate_size",
    dense_width="intermediate_size",
    expert_layers=_expert_layers,
    expert_layers_to_hf=_expert_layers_to_hf,
    expert_layers_keys=("first_k_dense_replace",),
    shared=SharedExpert(
        width=lambda hf: hf["moe_intermediate_size"] * hf["n_shared_experts"],
        to_hf=lambda shared, width: {} if shared is None else {"n_shared_experts": shared // width},
        keys=("n_shared_experts",),
    ),
)

ROUTING: dict[str, str | Layout] = {
    **EXPERTS,
    **shared_names("mlp.shared_experts"),
    "blocks.{i}.ff.router.correction": LAYER + "mlp.gate.e_score_correction_bias",
}
"""Names of the experts, of the shared one, and of the router's correction."""
FURTHER = key_names("num_mtp_layers num_nextn_predict_layers")
"""Keys of the layers that predict tokens after the next one, which are not read."""

DEEPSEEK_V3 = LLAMA.like(
    "deepseek_v3",
    "DeepseekV3ForCausalLM",
    codecs=(
        LatentAttentionCodec(RopeCodec(reads=(INTERLEAVE,))),
        MIXTURE,
        Fixed("layers.ff.bias", False),
        Only("scoring_func", ("sigmoid",), "other routing scores are not implemented."),
        Only("topk_method", ("noaux_tc",), "other ways to choose experts are not implemented."),
        agrees("head_dim", lambda hf: hf["qk_rope_head_dim"]),
        Only("moe_layer_freq", (1,), "every layer after the dense ones must have experts."),
    ),
    names={
        **ROUTING,
        "blocks.{i}.attn.to_qkv": None,
        "blocks.{i}.attn.to_q_latent": LAYER + "self_attn.q_a_proj",
        "blocks.{i}.attn.q_latent_norm": LAYER + "self_attn.q_a_layernorm",
        "blocks.{i}.attn.to_q": LatentQueries(LAYER + "self_attn.q_b_proj", LAYER + "self_attn.q_proj"),
        "blocks.{i}.attn.to_kv_latent": LAYER + "self_attn.kv_a_proj_with_mqa",
        "blocks.{i}.attn.kv_latent_norm": LAYER + "self_attn.kv_a_layernorm",
        "blocks.{i}.attn.to_kv": LAYER + "self_attn.kv_b_proj",
    },
    ignored_tensors=(*LLAMA.ignored_tensors, r"^model\.layers\.61\."),  # multi-token prediction, unused here
    aliases={"num_local_experts": "n_routed_experts"},
    ignored_keys=TRAINING | FURTHER | key_names("aux_loss_alpha ep_size qk_head_dim seq_aux"),
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


KIMI_K2 = DEEPSEEK_V3.like("kimi_k2", DEEPSEEK_V3.architecture, written_as=DEEPSEEK_V3)

SOFTMAX = replace(
    MIXTURE,
    numbers={
        "experts": AliasedKey("n_routed_experts", 64, alias="num_experts"),
        "top_k": AliasedKey("num_experts_per_tok", None),
        "scale": AliasedKey("routed_scaling_factor", 1.0),
        "groups": AliasedKey("n_group", 1),
        "top_groups": AliasedKey("topk_group", 1),
    },
    fixed={"renorm": False},
)
METHOD, GREEDY, IN_GROUPS = "topk_method", "greedy", "group_limited_greedy"


def _softmax_fields(hf: Hf) -> Fields:
    """Groups count in one method only, where they are ranked by their best score."""
    match hf.get(METHOD, GREEDY):
        case "greedy":
            return SOFTMAX.to_fields({**hf, "n_group": 1, "topk_group": 1})
        case "group_limited_greedy":
            grouped = hf["n_group"] != hf["topk_group"]
            return replace(SOFTMAX, fixed={**SOFTMAX.fixed, "group_best": 1 if grouped else 2}).to_fields(hf)
        case method:
            raise ConfigError(f"unsupported {METHOD}={method!r}; supported: {GREEDY}, {IN_GROUPS}.")


def _softmax_keys(fields: Fields) -> dict[str, Any]:
    out = SOFTMAX.to_hf(fields)
    return {**out, METHOD: GREEDY if out.get("n_group", 1) == 1 else IN_GROUPS}


DEEPSEEK_V2 = DEEPSEEK_V3.like(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    codecs=(
        LatentAttentionCodec(RopeCodec()),
        Custom((*SOFTMAX.sets, f"only {METHOD}"), (*SOFTMAX.keys, METHOD), _softmax_fields, _softmax_keys),
        Only("scoring_func", ("softmax",), "other routing scores are not implemented."),
        Only("norm_topk_prob", (False, None), "transformers ignores it in this family; the published code does not."),
        Only("mlp_bias", (False, None), "the experts have no biases in transformers."),
    ),
    names={"blocks.{i}.ff.router.correction": None},
    ignored_tensors=LLAMA.ignored_tensors,
    aliases={"num_experts": "n_routed_experts"},
    defaults=sizes(
        102400,
        4096,
        11008,
        32,
        32,
        2048,
        q_lora_rank=1536,
        kv_lora_rank=512,
        qk_rope_head_dim=64,
        qk_nope_head_dim=128,
        v_head_dim=128,
        moe_intermediate_size=1407,
        n_shared_experts=2,
        first_k_dense_replace=0,
    ),
)
