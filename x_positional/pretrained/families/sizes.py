"""Sizes under the names of the older decoders, where heads share the width evenly."""

from collections.abc import Mapping

from x_positional.pretrained.config_json.codecs import Both, Codec, Fields, Hf, Key
from x_positional.pretrained.families.llama import ACTIVATIONS

OLD_ALIASES = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "max_position_embeddings": "n_positions",
}
"""Names that transformers takes for those of GPT-2 and its like."""


def even_heads(width: str, heads: str, usual: tuple[int, int]) -> Both:
    """head_dim where no key says it: the width by the number of heads. usual: the defaults of the two keys."""

    def reader(hf: Hf) -> Fields:
        return {"layers.head_dim": hf.get(width, usual[0]) // hf.get(heads, usual[1])}

    return Both(("layers.head_dim",), (), reader, lambda config: {})


def inner_width(key: str, width: str, usual: int) -> Key:
    """The feedforward's width: four times the model's where it is not said. usual: the default of the model's width."""
    return Key("layers.ff.dim", key, lambda hf: 4 * hf.get(width, usual))


def old_sizes(usual: Mapping[str, int]) -> tuple[Codec, ...]:
    """vocab_size, n_positions, n_embd, n_layer, n_head, n_inner, whose defaults are `usual`."""
    return (
        Key("num_tokens", "vocab_size", usual["vocab_size"]),
        Key("max_seq_len", "n_positions", usual["n_positions"]),
        Key("layers.dim", "n_embd", usual["n_embd"]),
        Key("layers.depth", "n_layer", usual["n_layer"]),
        Key("layers.heads", "n_head", usual["n_head"]),
        even_heads("n_embd", "n_head", (usual["n_embd"], usual["n_head"])),
        inner_width("n_inner", "n_embd", usual["n_embd"]),
        Key("layers.ff.activation", "activation_function", "gelu_new", ACTIVATIONS),
    )
