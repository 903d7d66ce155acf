"""Architectures of GGUF files as data: what their metadata and tensors are called in a published model's folder."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """name: `general.architecture`. model_type: the family. keys: of the metadata, without the name before them -> keys of
    config.json. names: tensors without `.weight` or `.bias`, `{i}` is the layer -> theirs in the family's files.
    interleaved: of those names, the projections whose rows llama.cpp stores by pairs of a rotation.
    biases: a tensor -> the key of config.json that its being there makes true. fixed: more of config.json."""

    name: str
    model_type: str
    keys: Mapping[str, str]
    names: Mapping[str, str]
    interleaved: tuple[str, ...] = ()
    biases: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


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

# Mistral's files say llama too. Llama's rows alone are stored by pairs: the others turn halves in llama.cpp as well.
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

ELSEWHERE = frozenset(
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
"""Keys that are read, or that change nothing, in every architecture."""
UNUSED = ("rope_freqs.weight",)
"""Tensors that are read into the config, or that hold nothing to learn."""
