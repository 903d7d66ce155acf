"""Architectures of GGUF files as data: their metadata keys and tensor names in the published models' own format."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """One `general.architecture`."""

    name: str
    """The value of `general.architecture`."""
    model_type: str
    """The family."""
    keys: Mapping[str, str]
    """Metadata key without the architecture's prefix -> key of config.json."""
    names: Mapping[str, str]
    """Tensor without `.weight` or `.bias` -> its published name; `{i}` is the layer."""
    interleaved: tuple[str, ...] = ()
    """Projections whose rows llama.cpp interleaves, so that rotated pairs are adjacent."""
    biases: Mapping[str, str] = field(default_factory=dict)
    """Tensor -> the key of config.json that is true if it exists."""


SIZES = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
DECODER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.{i}.attn_norm": "model.layers.{i}.input_layernorm",
    "blk.{i}.attn_q": "model.layers.{i}.self_attn.q_proj",
    "blk.{i}.attn_k": "model.layers.{i}.self_attn.k_proj",
    "blk.{i}.attn_v": "model.layers.{i}.self_attn.v_proj",
    "blk.{i}.attn_output": "model.layers.{i}.self_attn.o_proj",
    "blk.{i}.ffn_norm": "model.layers.{i}.post_attention_layernorm",
    "blk.{i}.ffn_gate": "model.layers.{i}.mlp.gate_proj",
    "blk.{i}.ffn_up": "model.layers.{i}.mlp.up_proj",
    "blk.{i}.ffn_down": "model.layers.{i}.mlp.down_proj",
}

# Mistral's files have architecture llama too. Only llama's rows are interleaved: llama.cpp rotates halves in the others.
LLAMA = Architecture(
    name="llama",
    model_type="llama",
    keys=SIZES,
    names=DECODER,
    interleaved=("blk.{i}.attn_q", "blk.{i}.attn_k"),
    biases={"blk.0.attn_q.bias": "attention_bias", "blk.0.ffn_up.bias": "mlp_bias"},
)

QWEN2 = Architecture(name="qwen2", model_type="qwen2", keys=SIZES, names=DECODER)
QWEN3 = Architecture(
    name="qwen3",
    model_type="qwen3",
    keys=SIZES,
    names={
        **DECODER,
        "blk.{i}.attn_q_norm": "model.layers.{i}.self_attn.q_norm",
        "blk.{i}.attn_k_norm": "model.layers.{i}.self_attn.k_norm",
    },
)

ALL: tuple[Architecture, ...] = (LLAMA, QWEN2, QWEN3)
ARCHITECTURES: dict[str, Architecture] = {architecture.name: architecture for architecture in ALL}
"""By `general.architecture`."""

KNOWN_KEYS = frozenset(
    (
        "vocab_size",
        "rope.dimension_count",
        "rope.freq_base",
        "rope.scaling.type",
        "rope.scaling.factor",
        "rope.scaling.original_context_length",
        "rope.scaling.attn_factor",
        "rope.scaling.finetuned",
        "attention.value_length",
        "expert_count",
        "expert_used_count",
    )
)
"""Keys that are read elsewhere, or that do not affect the logits, in every architecture."""
UNUSED_TENSORS = ("rope_freqs.weight",)
"""Tensors that are read into the config rather than into a parameter."""
