"""Llama 1 to 3, and the codecs that similar families share."""

from typing import Any

from x_positional.pretrained.config_json.causal import CAUSAL
from x_positional.pretrained.config_json.codecs import Codec, Custom, Fixed, Key, Only, quotient, same_as
from x_positional.pretrained.config_json.layer_types import RopeCodec
from x_positional.pretrained.family import Family
from x_positional.pretrained.tensors.layouts import Joined, qkv

ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
    "quick_gelu": "quick_gelu",
}
"""Name in config.json -> name in x_positional. The first of several is the one that is written."""


def activations(written: str) -> dict[str, str]:
    """The same, with `written` as the name that is written."""
    return {written: ACTIVATIONS[written], **ACTIVATIONS}


ROPE = RopeCodec()
"""The same RoPE in all layers, on whole heads."""

SIZES: tuple[Codec, ...] = (
    Key("num_tokens", "vocab_size"),
    Key("max_seq_len", "max_position_embeddings", 2048),
    Key("layers.dim", "hidden_size"),
    Key("layers.depth", "num_hidden_layers"),
    Key("layers.heads", "num_attention_heads"),
    Key("layers.kv_heads", "num_key_value_heads", same_as("num_attention_heads")),
    Key("layers.head_dim", "head_dim", quotient("hidden_size", "num_attention_heads")),
    Key("layers.ff.dim", "intermediate_size"),
)
"""The sizes of a decoder, under the keys that nearly all families use."""


def tied(default: bool) -> tuple[Codec, ...]:
    """Whether the head is tied to the embedding; the tensors override the key."""
    return (Key("tie_embedding", "tie_word_embeddings", default), Fixed("tie_embedding_scale", 1.0))


def rms_norms(key: str = "rms_norm_eps", eps: float = 1e-6) -> tuple[Codec, ...]:
    """RMS norms with gains stored as they are."""
    return (Fixed("layers.norm.kind", "rms"), Fixed("layers.norm.unit_offset", False), Key("layers.norm.eps", key, eps))


def qk_norms(kind: str, key: str, eps: float, *, unit_offset: bool = False) -> tuple[Codec, ...]:
    """Norms of queries and keys, with the eps of all norms."""
    return (
        Fixed("layers.attn.qk_norm", kind),
        Fixed("layers.attn.qk_norm_unit_offset", unit_offset),
        Key("layers.attn.qk_norm_eps", key, eps),
    )


def qk_norms_if(switch: str, kind: str, key: str, eps: float, *, bias: bool = False) -> Codec:
    """The same, if the key `switch` is true."""
    off = {"layers.attn.qk_norm": None}
    on = {"layers.attn.qk_norm": kind, "layers.attn.qk_norm_unit_offset": False, "layers.attn.qk_norm_bias": bias}
    return Custom(
        (*on, "layers.attn.qk_norm_eps"),
        (switch,),
        lambda hf: on | {"layers.attn.qk_norm_eps": hf.get(key) or eps} if hf.get(switch) else off,
        lambda fields: {switch: fields.get("layers.attn.qk_norm") is not None},
    )


def sizes(
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    num_hidden_layers: int,
    num_attention_heads: int,
    max_position_embeddings: int,
    **more: Any,
) -> dict[str, Any]:
    """Defaults of a family's class, for sizes that a file may omit."""
    return {
        "vocab_size": vocab_size,
        "hidden_size": hidden_size,
        "intermediate_size": intermediate_size,
        "num_hidden_layers": num_hidden_layers,
        "num_attention_heads": num_attention_heads,
        "max_position_embeddings": max_position_embeddings,
        **more,
    }


LLAMA = Family(
    model_type="llama",
    architecture="LlamaForCausalLM",
    codecs=(
        *SIZES,
        *tied(False),
        *rms_norms(),
        ROPE,
        CAUSAL,
        Key("layers.attn.bias", "attention_bias", False),
        Fixed("layers.ff.glu", True),
        Key("layers.ff.activation", "hidden_act", "silu", ACTIVATIONS),
        Key("layers.ff.bias", "mlp_bias", False),
        Only("pretraining_tp", (1, 2, 4, 8), "only 1, 2, 4 and 8 are supported."),
    ),
    names={
        "token_emb": "model.embed_tokens",
        "blocks.{i}.attn_residual.before": "model.layers.{i}.input_layernorm",
        "blocks.{i}.attn.to_qkv": qkv(*(f"model.layers.{{i}}.self_attn.{p}_proj" for p in "qkv")),
        "blocks.{i}.attn.to_out": "model.layers.{i}.self_attn.o_proj",
        "blocks.{i}.ff_residual.before": "model.layers.{i}.post_attention_layernorm",
        "blocks.{i}.ff.up": Joined(("model.layers.{i}.mlp.up_proj", "model.layers.{i}.mlp.gate_proj")),
        "blocks.{i}.ff.down": "model.layers.{i}.mlp.down_proj",
        "final_norm": "model.norm",
        "to_logits": "lm_head",
    },
    ignored_tensors=(r"rotary_emb\.inv_freq$",),
)
