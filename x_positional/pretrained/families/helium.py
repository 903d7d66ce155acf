"""Helium: Llama with interleaved RoPE, and heads that together are as wide as the model."""

from x_positional.errors import ConfigError
from x_positional.pretrained.config_json.codecs import Custom, Fields, Fixed, Hf
from x_positional.pretrained.families.llama import LLAMA, rms_norms, sizes


def _check_width(hf: Hf) -> Fields:
    heads, width = hf["num_attention_heads"], hf["hidden_size"]
    if heads * hf["head_dim"] != width:
        raise ConfigError(
            f"head_dim={hf['head_dim']}: {heads} heads must be as wide as hidden_size={width} in this family."
        )
    return {}


HELIUM = LLAMA.like(
    "helium",
    "HeliumForCausalLM",
    codecs=(
        *rms_norms(eps=1e-8),
        Fixed("layers.attn.out_bias", False),
        Custom(("only head_dim",), ("head_dim",), _check_width, lambda fields: {}),
    ),
    defaults=sizes(48000, 2560, 7040, 24, 20, 4096, num_key_value_heads=20, head_dim=128),
)
