"""InternLM 3: Llama under a name of its own, with one key for the biases of queries, keys and values and one for the others."""

from x_positional.pretrained.config_json.codecs import Key
from x_positional.pretrained.families.llama import LLAMA, rms_norms, sizes

INTERNLM3 = LLAMA.like(
    "internlm3",
    LLAMA.architecture,
    codecs=(
        *rms_norms(eps=1e-5),
        Key("layers.attn.bias", "attention_bias", False),
        Key("layers.attn.out_bias", "mlp_bias", False),
    ),
    aliases={"qkv_bias": "attention_bias", "bias": "mlp_bias"},
    defaults=sizes(128512, 4096, 10240, 48, 32, 32768, num_key_value_heads=2, head_dim=128),
    written_as=LLAMA,
)
