"""EXAONE 4: norms after each branch and of queries and keys; RoPE in sliding-window layers only, where there are any."""

from x_positional.errors import ConfigError
from x_positional.pretrained.config_json.codecs import Fixed, Hf
from x_positional.pretrained.config_json.layer_types import (
    FULL,
    SLIDING,
    LayerTypesCodec,
    RopeCodec,
    RopeLayers,
    full_every,
    layer_types,
)
from x_positional.pretrained.families.llama import qk_norms, sizes
from x_positional.pretrained.families.olmo import OLMO2

WINDOW, PATTERN = "sliding_window", "sliding_window_pattern"


def _types(hf: Hf) -> list[str]:
    """Full attention in every `PATTERN`-th layer, or in all of them without a window."""
    if hf.get(WINDOW) is None:
        return [FULL] * hf["num_hidden_layers"]
    if not isinstance(hf[PATTERN], int):
        raise ConfigError(
            f"{PATTERN}={hf[PATTERN]!r}: transformers reads only a number without layer_types. Add layer_types."
        )
    return full_every(PATTERN)(hf)


def _rotated(hf: Hf) -> list[bool]:
    return [hf.get(WINDOW) is None or kind == SLIDING for kind in layer_types(hf, _types)]


EXAONE4 = OLMO2.like(
    "exaone4",
    "Exaone4ForCausalLM",
    codecs=(
        *qk_norms("rms", "rms_norm_eps", 1e-5),
        Fixed("layers.attn.bias", False),
        LayerTypesCodec(default_types=_types, legacy_keys=(PATTERN,)),
        RopeCodec(layers=RopeLayers(which=_rotated, keys=(WINDOW, PATTERN))),
    ),
    names={f"blocks.{{i}}.attn.{x}_norm": f"model.layers.{{i}}.self_attn.{x}_norm" for x in "qk"},
    defaults={**sizes(102400, 4096, 16384, 32, 32, 2048, num_key_value_heads=32), WINDOW: 4096, PATTERN: 4},
)
