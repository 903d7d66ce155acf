"""Llama 1 to 3, and what every family around it shares."""

from x_positional.pretrained.family import Family
from x_positional.pretrained.fields import Codec, Fixed, Key, Only, of, share
from x_positional.pretrained.layer_types import Turns
from x_positional.pretrained.layouts import Joined, qkv

ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu": "relu", "relu2": "relu2", "quick_gelu": "quick_gelu",
}  # fmt: skip
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


LLAMA = Family(
    model_type="llama", architecture="LlamaForCausalLM",
    fields=(
        *SIZES, *tied(False), *rms_norms(), ROPE,
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
)  # fmt: skip
