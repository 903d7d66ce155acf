"""Llama 1 to 3, and what every family around it shares."""

from typing import Any

from x_positional.pretrained.config_json.codecs import Both, Codec, Fixed, Key, Only, of, share
from x_positional.pretrained.config_json.layer_types import Turns
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
"""Their names -> ours. The first of several is the one that is written."""


def activations(written: str) -> dict[str, str]:
    """The same, with a name that is written where several mean the same."""
    return {written: ACTIVATIONS[written], **ACTIVATIONS}


ROPE = Turns()
"""One rotary embedding for all layers, of whole heads."""

SIZES: tuple[Codec, ...] = (
    Key("num_tokens", "vocab_size"),
    Key("max_seq_len", "max_position_embeddings", 2048),
    Key("layers.dim", "hidden_size"),
    Key("layers.depth", "num_hidden_layers"),
    Key("layers.heads", "num_attention_heads"),
    Key("layers.kv_heads", "num_key_value_heads", of("num_attention_heads")),
    Key("layers.head_dim", "head_dim", share("hidden_size", "num_attention_heads")),
    Key("layers.ff.dim", "intermediate_size"),
)
"""The sizes of a decoder, as nearly all families call them."""


def tied(default: bool) -> tuple[Codec, ...]:
    """Whether the head is the embedding; a file that says otherwise by its tensors is believed."""
    return (Key("tie_embedding", "tie_word_embeddings", default), Fixed("tie_embedding_scale", 1.0))


def rms_norms(key: str = "rms_norm_eps", eps: float = 1e-6) -> tuple[Codec, ...]:
    """RMS norms whose gains are stored as they are."""
    return (Fixed("layers.norm.kind", "rms"), Fixed("layers.norm.unit_offset", False), Key("layers.norm.eps", key, eps))


def qk_norms(kind: str, key: str, eps: float, *, unit_offset: bool = False) -> tuple[Codec, ...]:
    """Norms of queries and keys with the eps of all norms."""
    return (
        Fixed("layers.attn.qk_norm", kind),
        Fixed("layers.attn.qk_norm_unit_offset", unit_offset),
        Key("layers.attn.qk_norm_eps", key, eps),
    )


def qk_norms_if(switch: str, kind: str, key: str, eps: float, *, bias: bool = False) -> Codec:
    """The same where a key says so."""
    off = {"layers.attn.qk_norm": None}
    on = {"layers.attn.qk_norm": kind, "layers.attn.qk_norm_unit_offset": False, "layers.attn.qk_norm_bias": bias}
    return Both(
        (*on, "layers.attn.qk_norm_eps"),
        (switch,),
        lambda hf: on | {"layers.attn.qk_norm_eps": hf.get(key) or eps} if hf.get(switch) else off,
        lambda config: {switch: config.get("layers.attn.qk_norm") is not None},
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
    """Sizes that a file need not say, because its class has them as defaults."""
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
    fields=(
        *SIZES,
        *tied(False),
        *rms_norms(),
        ROPE,
        Fixed("layers.kind", "decoder"),
        Key("layers.attn.bias", "attention_bias", False),
        Fixed("layers.ff.glu", True),
        Key("layers.ff.activation", "hidden_act", "silu", ACTIVATIONS),
        Key("layers.ff.bias", "mlp_bias", False),
        Only("pretraining_tp", (1, 2, 4, 8), "it splits sums over machines in a way that is not known here."),
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
    ignored=(r"rotary_emb\.inv_freq$",),
)
