"""AFM (Arcee): Llama with a plain feedforward of squared ReLU."""

from x_positional.pretrained.config_json.codecs import Fixed, Key
from x_positional.pretrained.families.llama import LLAMA, activations, rms_norms, sizes

ARCEE = LLAMA.like(
    "arcee",
    "ArceeForCausalLM",
    codecs=(
        *rms_norms(eps=1e-5),
        Fixed("layers.ff.glu", False),
        Key("layers.ff.activation", "hidden_act", "relu2", activations("relu2")),
    ),
    names={"blocks.{i}.ff.up": "model.layers.{i}.mlp.up_proj"},
    ignored_keys=frozenset({"layer_types"}),
    defaults=sizes(32000, 2560, 18432, 32, 32, 4096),
)
