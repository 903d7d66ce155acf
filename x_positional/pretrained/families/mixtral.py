"""Mixtral and OLMoE: Llama with experts, weighted by a softmax; MiniMax M2: with a bias correction of sigmoid scores."""

from x_positional.pretrained.config_json.codecs import Fixed, Nullable, Only
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.config_json.layer_types import PARTIAL_FACTOR, ROTARY_DIM, RopeCodec
from x_positional.pretrained.config_json.moe_codec import AliasedKey, MoECodec
from x_positional.pretrained.families.llama import LLAMA, qk_norms, rms_norms, sizes
from x_positional.pretrained.families.olmo import OLMO2
from x_positional.pretrained.tensors.layouts import Joined, Layout, PerExpert

LAYER = "model.layers.{i}."
TRAINING = key_names("output_router_logits router_aux_loss_coef router_jitter_noise")
"""Keys of losses and noise, which are used in training only."""


def expert_names(place: str, up: str, gate: str, down: str) -> dict[str, str | Layout]:
    """Names of experts that are stored separately, and of their router."""
    parts = tuple(f"{LAYER}{place}.experts.{{e}}.{name}.weight" for name in (up, gate))
    return {
        "blocks.{i}.ff.experts.up": PerExpert(parts),
        "blocks.{i}.ff.experts.down": PerExpert((f"{LAYER}{place}.experts.{{e}}.{down}.weight",)),
        "blocks.{i}.ff.router": f"{LAYER}{place}.gate",
    }


def shared_names(place: str) -> dict[str, str | Layout]:
    """Names of a shared expert."""
    return {
        "blocks.{i}.ff.shared.up": Joined((f"{LAYER}{place}.up_proj", f"{LAYER}{place}.gate_proj")),
        "blocks.{i}.ff.shared.down": f"{LAYER}{place}.down_proj",
    }


EXPERTS = expert_names("mlp", "up_proj", "gate_proj", "down_proj")

MIXTRAL = LLAMA.like(
    "mixtral",
    "MixtralForCausalLM",
    codecs=(
        MoECodec(
            numbers={
                "experts": AliasedKey("num_local_experts", 8, alias="num_experts"),
                "top_k": AliasedKey("num_experts_per_tok", 2),
            },
            width="intermediate_size",
        ),
        *rms_norms(eps=1e-5),
        Fixed("layers.attn.bias", False),
        Fixed("layers.ff.bias", False),
        Nullable("layers.window", "sliding_window"),
    ),
    names=expert_names("block_sparse_moe", "w3", "w1", "w2"),
    ignored_keys=TRAINING,
    defaults=sizes(32000, 4096, 14336, 32, 32, 131072, num_key_value_heads=8),
)

WHOLE_NORMS = {ours: layout for ours, layout in OLMO2.names.items() if "_norm" in ours and "attn." in ours}
"""Names of norms over all heads of queries and keys."""

OLMOE = LLAMA.like(
    "olmoe",
    "OlmoeForCausalLM",
    codecs=(
        MoECodec(
            numbers={
                "experts": AliasedKey("num_experts", 64, alias="num_local_experts"),
                "top_k": AliasedKey("num_experts_per_tok", 8),
                "renorm": AliasedKey("norm_topk_prob", False),
            },
            width="intermediate_size",
        ),
        *rms_norms(eps=1e-5),
        *qk_norms("rms_whole", "rms_norm_eps", 1e-5),
        Fixed("layers.ff.bias", False),
        Nullable("layers.attn.clip", "clip_qkv"),
        Only(
            "sliding_window",
            (None,),
            "transformers applies it with flash attention alone, so the result is not defined.",
        ),
    ),
    names={**EXPERTS, **WHOLE_NORMS},
    ignored_keys=TRAINING,
    defaults=sizes(50304, 2048, 2048, 16, 16, 4096),
)

MINIMAX_M2 = MIXTRAL.like(
    "minimax_m2",
    "MiniMaxM2ForCausalLM",
    codecs=(
        MoECodec(
            numbers={
                "experts": AliasedKey("num_local_experts", 256, alias="num_experts"),
                "top_k": AliasedKey("num_experts_per_tok", 8),
            },
            fixed={"score": "sigmoid", "correction": True},
            width="intermediate_size",
        ),
        *rms_norms(eps=1e-6),
        *qk_norms("rms_whole", "rms_norm_eps", 1e-6),
        RopeCodec(reads=(PARTIAL_FACTOR, ROTARY_DIM)),
        Fixed("layers.window", None),
    ),
    names={
        **WHOLE_NORMS,
        "blocks.{i}.ff.router.correction": LAYER + "block_sparse_moe.e_score_correction_bias",
    },
    defaults=sizes(200064, 3072, 1536, 62, 48, 196608, num_key_value_heads=8, head_dim=128),
)
