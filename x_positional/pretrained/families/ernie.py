"""ERNIE 4.5: Llama with interleaved RoPE and one key for all biases; also with experts in some of its layers."""

from typing import Any

from x_positional.pretrained.config_json.codecs import Fixed, Hf, Key, Only
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.config_json.moe_codec import AliasedKey, ExpertLayers, MoECodec, SharedExpert
from x_positional.pretrained.families.llama import LLAMA, rms_norms, sizes, tied
from x_positional.pretrained.families.mixtral import EXPERTS, LAYER, TRAINING, shared_names
from x_positional.pretrained.tensors.layouts import Reshaped

ERNIE4_5 = LLAMA.like(
    "ernie4_5",
    "Ernie4_5ForCausalLM",
    codecs=(
        *tied(True),
        *rms_norms(eps=1e-5),
        Key("layers.attn.bias", "use_bias", False),
        Key("layers.ff.bias", "use_bias", False),
    ),
    defaults=sizes(103424, 1024, 3072, 18, 16, 131072, num_key_value_heads=2, head_dim=128),
)

START, END, INTERVAL, SHARED = (
    "moe_layer_start_index",
    "moe_layer_end_index",
    "moe_layer_interval",
    "moe_num_shared_experts",
)


def _expert_layers(hf: Hf) -> ExpertLayers:
    """Every n-th layer from the first to the last one listed; -1 is the last of all."""
    depth = hf["num_hidden_layers"]
    last = depth - 1 if hf[END] == -1 else hf[END]
    return [hf[START] <= i <= last and (i + 1) % hf[INTERVAL] == 0 for i in range(depth)]


def _expert_layers_to_hf(layers: ExpertLayers) -> dict[str, int]:
    found = [i for i, has_experts in enumerate(layers) if has_experts] or [len(layers)]
    return {START: found[0], END: found[-1], INTERVAL: found[1] - found[0] if len(found) > 1 else 1}


def _shared_width(hf: Hf) -> int | None:
    return hf["moe_intermediate_size"] * hf[SHARED] or None


def _shared_keys(shared: int | None, width: int) -> dict[str, Any]:
    return {SHARED: 0 if shared is None else shared // width}


ERNIE4_5_MOE = ERNIE4_5.like(
    "ernie4_5_moe",
    "Ernie4_5_MoeForCausalLM",
    codecs=(
        Fixed("layers.attn.bias", False),
        Fixed("layers.ff.bias", False),
        Only("use_bias", (False, None), "the experts have no biases in transformers."),
        Only("moe_norm_min", (1e-12, None), "weights are divided by their sum, without a lower bound."),
        MoECodec(
            numbers={"experts": AliasedKey("moe_num_experts", 64), "top_k": AliasedKey("moe_k", 6)},
            fixed={"correction": True},
            width="moe_intermediate_size",
            dense_width="intermediate_size",
            expert_layers=_expert_layers,
            expert_layers_to_hf=_expert_layers_to_hf,
            expert_layers_keys=(START, END, INTERVAL),
            shared=SharedExpert(width=_shared_width, to_hf=_shared_keys, keys=(SHARED,)),
        ),
    ),
    names={
        **EXPERTS,
        **shared_names("mlp.shared_experts"),
        "blocks.{i}.ff.router.correction": Reshaped(
            LAYER + "mlp.moe_statics.e_score_correction_bias", ours=lambda s: (-1,), theirs=lambda s: (1, -1)
        ),
    },
    ignored_tensors=(*LLAMA.ignored_tensors, r"^model\.mtp_"),  # multi-token prediction, unused here
    aliases={"num_experts": "moe_num_experts", "num_experts_per_tok": "moe_k"},
    ignored_keys=TRAINING | key_names("moe_capacity moe_gate moe_use_aux_free num_nextn_predict_layers"),
    defaults={
        **sizes(103424, 2560, 12288, 28, 20, 131072, num_key_value_heads=4, moe_intermediate_size=1536),
        "head_dim": None,
        START: 1,
        END: -1,
        INTERVAL: 1,
        SHARED: 2,
    },
)
