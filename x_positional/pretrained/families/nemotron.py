"""Nemotron: LayerNorm with gains stored as gain - 1, squared ReLU, half of each head turns."""

from x_positional.pretrained.config_json.codecs import Fixed, Key
from x_positional.pretrained.config_json.layer_types import SHARE, Turns
from x_positional.pretrained.families.gpt2 import layer_norms
from x_positional.pretrained.families.llama import LLAMA, activations, sizes

NEMOTRON = LLAMA.like(
    "nemotron",
    "NemotronForCausalLM",
    fields=(
        *layer_norms("norm_eps"),
        Fixed("layers.norm.unit_offset", True),
        Turns(honours=(SHARE,)),
        Fixed("layers.ff.glu", False),
        Key("layers.ff.activation", "hidden_act", "relu2", activations("relu2")),
    ),
    names={"blocks.{i}.ff.up": "model.layers.{i}.mlp.up_proj"},
    defaults=sizes(256000, 6144, 24576, 32, 48, 4096),
)
