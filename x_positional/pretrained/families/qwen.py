"""Mistral: Llama with windows. Qwen 2 and 3: with biases, or norms, of queries and keys. MiMo: Qwen 2 under its own name."""

from x_positional.pretrained.config_json.codecs import Fixed, Key, Nullable, Only
from x_positional.pretrained.config_json.layer_types import LayerTypesCodec, sliding_from
from x_positional.pretrained.families.llama import LLAMA, qk_norms, sizes

MISTRAL = LLAMA.like(
    "mistral",
    "MistralForCausalLM",
    codecs=(
        Nullable("layers.window", "sliding_window"),
        Fixed("layers.attn.bias", False),
        Fixed("layers.ff.bias", False),
    ),
    defaults=sizes(32000, 4096, 14336, 32, 32, 131072, num_key_value_heads=8, sliding_window=4096),
)

WINDOWS = LayerTypesCodec(
    default_types=sliding_from("max_window_layers"), switch="use_sliding_window", legacy_keys=("max_window_layers",)
)

QWEN2 = LLAMA.like(
    "qwen2",
    "Qwen2ForCausalLM",
    codecs=(
        Fixed("layers.attn.bias", True),
        Fixed("layers.attn.out_bias", False),
        Fixed("layers.ff.bias", False),
        WINDOWS,
        Only("use_mrope", (False,), "positions with three axes need Qwen2-VL."),
    ),
    defaults=sizes(
        151936, 4096, 22016, 32, 32, 32768, num_key_value_heads=32, sliding_window=4096, max_window_layers=28
    ),
)

QWEN3 = QWEN2.like(
    "qwen3",
    "Qwen3ForCausalLM",
    codecs=(
        Key("layers.attn.bias", "attention_bias", False),
        Key("layers.attn.out_bias", "attention_bias", False),
        *qk_norms("rms", "rms_norm_eps", 1e-6),
    ),
    names={f"blocks.{{i}}.attn.{x}_norm": f"model.layers.{{i}}.self_attn.{x}_norm" for x in "qk"},
    defaults={"head_dim": 128},
)

MIMO = QWEN2.like(
    "mimo",
    QWEN2.architecture,
    ignored_tensors=(*QWEN2.ignored_tensors, r"^model\.mtp_layers\."),  # multi-token prediction, unused here
    ignored_keys=frozenset({"attention_bias", "num_nextn_predict_layers"}),
    written_as=QWEN2,
)
