"""SmolLM 3: every fourth layer does not turn queries and keys."""

from x_positional.pretrained.config_json.codecs import Hf
from x_positional.pretrained.config_json.layer_types import FULL, SLIDING, Reaches, Turns, turning_unless_listed
from x_positional.pretrained.families.llama import LLAMA, sizes, tied

SOME_TURN = turning_unless_listed()


def _types(hf: Hf) -> list[str]:
    """Windows, where there are any, are for the layers that do not turn."""
    windows = hf.get("use_sliding_window") and hf.get("sliding_window") is not None
    return [SLIDING if windows and not turns else FULL for turns in SOME_TURN.which(hf)]


SMOLLM3 = LLAMA.like(
    "smollm3",
    "SmolLM3ForCausalLM",
    fields=(*tied(True), Turns(turning=SOME_TURN), Reaches(unlisted=_types, switch="use_sliding_window")),
    harmless=frozenset({"max_window_layers"}),
    defaults=sizes(128256, 2048, 11008, 36, 16, 32768, num_key_value_heads=4, no_rope_layer_interval=4),
)
