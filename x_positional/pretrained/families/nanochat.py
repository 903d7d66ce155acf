"""NanoChat: RMS norms without gains, also after the embedding and of rotated queries and keys; squared ReLU.

It rotates by the negative angle, which is the rotation of a pair whose two channels have changed places: so the rows of queries
and keys are reordered, and nothing else differs.
"""

from dataclasses import dataclass
from typing import Any

from x_positional.pretrained.config_json.codecs import Codec, Fields, Fixed, Hf, Key, Nullable
from x_positional.pretrained.config_json.layer_types import RopeCodec
from x_positional.pretrained.families.llama import LLAMA, activations, sizes
from x_positional.pretrained.tensors.layouts import MirroredQkv

ROPE = RopeCodec()


@dataclass(frozen=True)
class MirroredRopeCodec:
    """RoPE whose direction the order of rows has taken care of."""

    @property
    def sets(self) -> tuple[str, ...]:
        return ROPE.sets

    @property
    def keys(self) -> tuple[str, ...]:
        return ROPE.keys

    def to_fields(self, hf: Hf) -> Fields:
        return ROPE.to_fields({key: value for key, value in hf.items() if key != "model_type"})

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        return ROPE.to_hf(fields)


NORMS: tuple[Codec, ...] = (
    Fixed("layers.norm.kind", "rms"),
    Fixed("layers.norm.gain", False),
    Key("layers.norm.eps", "rms_norm_eps", 1e-6),
    Fixed("emb_norm.kind", "rms"),
    Fixed("emb_norm.gain", False),
    Key("emb_norm.eps", "rms_norm_eps", 1e-6),
    Fixed("layers.attn.qk_norm", "rms_plain"),
    Key("layers.attn.qk_norm_eps", "rms_norm_eps", 1e-6),
    Fixed("layers.attn.qk_norm_after", True),
)

NANOCHAT = LLAMA.like(
    "nanochat",
    "NanoChatForCausalLM",
    codecs=(
        Fixed("layers.norm.unit_offset", True),
        *NORMS,
        MirroredRopeCodec(),
        Fixed("layers.ff.glu", False),
        Fixed("layers.ff.bias", False),
        Key("layers.ff.activation", "hidden_act", "relu2", activations("relu2")),
        Nullable("logits_softcap", "final_logit_softcapping"),
    ),
    names={
        "blocks.{i}.attn_residual.before": None,
        "blocks.{i}.ff_residual.before": None,
        "final_norm": None,
        "blocks.{i}.attn.to_qkv": MirroredQkv(tuple(f"model.layers.{{i}}.self_attn.{p}_proj" for p in "qkv")),
        "blocks.{i}.ff.up": "model.layers.{i}.mlp.fc1",
        "blocks.{i}.ff.down": "model.layers.{i}.mlp.fc2",
    },
    defaults=sizes(50304, 768, 8192, 12, 6, 2048, final_logit_softcapping=15.0),
)
