"""SmolLM 3: Llama without RoPE in every fourth layer."""

from x_positional.pretrained.config_json.codecs import Hf
from x_positional.pretrained.config_json.layer_types import FULL, SLIDING, LayerTypesCodec, RopeCodec, no_rope_layers
from x_positional.pretrained.families.llama import LLAMA, sizes, tied

ROPE_LAYERS = no_rope_layers()


def _types(hf: Hf) -> list[str]:
    """Windows, if enabled, apply to the layers without RoPE."""
    windows = hf.get("use_sliding_window") and hf.get("sliding_window") is not None
    return [SLIDING if windows and not rotated else FULL for rotated in ROPE_LAYERS.which(hf)]


SMOLLM3 = LLAMA.like(
    "smollm3",
    "SmolLM3ForCausalLM",
    codecs=(
        *tied(True),
        RopeCodec(layers=ROPE_LAYERS),
        LayerTypesCodec(default_types=_types, switch="use_sliding_window"),
    ),
    ignored_keys=frozenset({"max_window_layers"}),
    defaults=sizes(128256, 2048, 11008, 36, 16, 32768, num_key_value_heads=4, no_rope_layer_interval=4),
)
