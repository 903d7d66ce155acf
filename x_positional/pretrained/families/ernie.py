"""ERNIE 4.5: Llama with interleaved RoPE and one key for all biases."""

from x_positional.pretrained.config_json.codecs import Key
from x_positional.pretrained.families.llama import LLAMA, rms_norms, sizes, tied

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
