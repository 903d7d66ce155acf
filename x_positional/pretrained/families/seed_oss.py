"""Seed-OSS: Llama with biases of queries, keys and values."""

from x_positional.pretrained.config_json.codecs import Key
from x_positional.pretrained.families.llama import LLAMA, sizes

SEED_OSS = LLAMA.like(
    "seed_oss",
    "SeedOssForCausalLM",
    codecs=(
        Key("layers.attn.bias", "attention_bias", True),
        Key("layers.attn.out_bias", "attention_out_bias", False),
    ),
    ignored_keys=frozenset({"residual_dropout"}),
    defaults=sizes(155136, 4096, 27648, 64, 80, 524288, num_key_value_heads=8, head_dim=128),
)
