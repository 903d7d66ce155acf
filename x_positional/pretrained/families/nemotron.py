"""Nemotron: LayerNorm with gains stored as gain - 1, squared ReLU, RoPE on half of each head."""

from x_positional.pretrained.config_json.causal import CAUSAL_WITHOUT_PADDING, causal_only
from x_positional.pretrained.config_json.codecs import Fixed, Key
from x_positional.pretrained.config_json.layer_types import PARTIAL_FACTOR, RopeCodec
from x_positional.pretrained.families.gpt2 import layer_norms
from x_positional.pretrained.families.llama import LLAMA, activations, sizes

NEMOTRON = LLAMA.like(
    "nemotron",
    "NemotronForCausalLM",
    codecs=(
        causal_only(CAUSAL_WITHOUT_PADDING),
        *layer_norms("norm_eps"),
        Fixed("layers.norm.unit_offset", True),
        RopeCodec(reads=(PARTIAL_FACTOR,)),
        Fixed("layers.ff.glu", False),
        Key("layers.ff.activation", "hidden_act", "relu2", activations("relu2")),
    ),
    names={"blocks.{i}.ff.up": "model.layers.{i}.mlp.up_proj"},
    defaults=sizes(256000, 6144, 24576, 32, 48, 4096),
)
