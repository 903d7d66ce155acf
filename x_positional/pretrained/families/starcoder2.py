"""StarCoder 2: LayerNorm, an ungated feedforward, biases everywhere, windows."""

from x_positional.pretrained.config_json.codecs import Fixed, Key, Nullable
from x_positional.pretrained.config_json.ignored_keys import key_names
from x_positional.pretrained.families.gpt2 import layer_norms
from x_positional.pretrained.families.llama import LLAMA, activations, sizes, tied

STARCODER2 = LLAMA.like(
    "starcoder2",
    "Starcoder2ForCausalLM",
    codecs=(
        *tied(True),
        *layer_norms("norm_epsilon"),
        Nullable("layers.window", "sliding_window"),
        Key("layers.attn.bias", "use_bias", True),
        Key("layers.ff.bias", "use_bias", True),
        Fixed("layers.ff.glu", False),
        Key("layers.ff.activation", "hidden_act", "gelu_pytorch_tanh", activations("gelu_pytorch_tanh")),
    ),
    names={
        "blocks.{i}.ff.up": "model.layers.{i}.mlp.c_fc",
        "blocks.{i}.ff.down": "model.layers.{i}.mlp.c_proj",
    },
    ignored_keys=key_names("activation_function embedding_dropout mlp_type norm_type residual_dropout"),
    defaults=sizes(49152, 3072, 12288, 30, 24, 4096, num_key_value_heads=2),
)
