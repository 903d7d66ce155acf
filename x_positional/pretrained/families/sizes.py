"""Sizes under the keys of the older decoders, with head_dim = width / heads."""

from collections.abc import Mapping

from x_positional.pretrained.config_json.codecs import Codec, Key, head_dim
from x_positional.pretrained.families.llama import ACTIVATIONS

OLD_ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
"""Aliases that transformers accepts for the keys of GPT-2 and similar models."""


def even_heads(width: str, heads: str, defaults: tuple[int, int]) -> Codec:
    """head_dim without a key: the width divided by the number of heads. defaults: of the two keys."""
    return head_dim(lambda hf: hf.get(width, defaults[0]) // hf.get(heads, defaults[1]))


def inner_width(key: str, width: str, default: int) -> Key:
    """The feedforward's width, by default four times the model's. default: of the model's width."""
    return Key("layers.ff.dim", key, lambda hf: 4 * hf.get(width, default))


def old_sizes(defaults: Mapping[str, int]) -> tuple[Codec, ...]:
    """vocab_size, n_positions, n_embd, n_layer, n_head, n_inner, with these defaults."""
    return (
        Key("num_tokens", "vocab_size", defaults["vocab_size"]),
        Key("max_seq_len", "n_positions", defaults["n_positions"]),
        Key("layers.dim", "n_embd", defaults["n_embd"]),
        Key("layers.depth", "n_layer", defaults["n_layer"]),
        Key("layers.heads", "n_head", defaults["n_head"]),
        even_heads("n_embd", "n_head", (defaults["n_embd"], defaults["n_head"])),
        inner_width("n_inner", "n_embd", defaults["n_embd"]),
        Key("layers.ff.activation", "activation_function", "gelu_new", ACTIVATIONS),
    )
