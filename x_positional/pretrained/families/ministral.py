"""Ministral: Mistral with a window in each listed layer. Ministral 3: Mistral with queries scaled up in steps of their
position, also as the text model of Mistral 3.
"""

from dataclasses import dataclass
from typing import Any

from x_positional.pretrained.config_json.codecs import Fields, Hf
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.config_json.layer_types import FULL, SLIDING, LayerTypesCodec, RopeCodec
from x_positional.pretrained.families.llama import rms_norms, sizes
from x_positional.pretrained.families.qwen import MISTRAL
from x_positional.pretrained.nested import NestedModel
from x_positional.schemes import Rope, Temperature

BETA, TRAINED = "llama_4_scaling_beta", "original_max_position_embeddings"
"""Keys of the RoPE parameters: what a step adds, and its length."""
ROPE = RopeCodec(others=(BETA,))


@dataclass(frozen=True)
class TemperatureCodec:
    """RoPE, and a temperature after it."""

    @property
    def sets(self) -> tuple[str, ...]:
        return ROPE.sets

    @property
    def keys(self) -> tuple[str, ...]:
        return ROPE.keys

    def to_fields(self, hf: Hf) -> Fields:
        (rope,) = ROPE.to_fields(hf)["layers.position"]
        parameters = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
        if not parameters.get(BETA):
            return {"layers.position": [rope]}
        steps = hf.get(TRAINED) or parameters.get(TRAINED) or hf["max_position_embeddings"]
        return {"layers.position": [rope, Temperature(scale=parameters[BETA], floor_scale=steps, offset=0.0)]}

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        first = fields["each.position"][0]
        scaled = len(first) == 2 and isinstance(first[0], Rope) and isinstance(first[1], Temperature)
        positions = [position[:1] if scaled else position for position in fields["each.position"]]
        out = ROPE.to_hf({**fields, "each.position": positions})
        steps = int(first[1].floor_scale) if scaled else fields["max_seq_len"]
        temperature = {BETA: first[1].scale if scaled else 0.0}
        if "rope_parameters" in out:
            out["rope_parameters"] = {TRAINED: steps, **out["rope_parameters"], **temperature}
        return out


MINISTRAL3 = MISTRAL.like(
    "ministral3",
    "Ministral3ForCausalLM",
    codecs=(TemperatureCodec(), *rms_norms(eps=1e-5)),
    ignored_keys=frozenset({"layer_types"}),
    defaults={
        **sizes(131072, 4096, 14336, 34, 32, 262144, num_key_value_heads=8, head_dim=128),
        "sliding_window": None,
    },
)


def _types(hf: Hf) -> list[str]:
    return [FULL if hf.get("sliding_window") is None else SLIDING] * hf["num_hidden_layers"]


MINISTRAL = MISTRAL.like(
    "ministral",
    "MinistralForCausalLM",
    codecs=(LayerTypesCodec(default_types=_types, window_needed=True),),
)

MISTRAL3 = NestedModel(
    model_type="mistral3",
    architecture="Mistral3ForConditionalGeneration",
    family=MISTRAL,
    others=(MINISTRAL3,),
    outer_defaults={"tie_word_embeddings": True},
    prefixes={
        r"model\.language_model\.": "model.",
        r"language_model\.model\.": "model.",
        r"language_model\.lm_head\.": "lm_head.",
    },
    dropped=(r"^(model\.)?(vision_tower|multi_modal_projector)\.",),
    ignored_keys=key_names(
        "vision_config image_token_index image_token_id projector_hidden_act vision_feature_layer multimodal_projector_bias "
        "spatial_merge_size processor_class"
    ),
)
