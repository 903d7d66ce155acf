"""Small GGUF files of models of transformers, written as llama.cpp's converter writes them.

H heads, D head dim.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from tokenizers.pre_tokenizers import ByteLevel
from torch import Tensor, nn

from tests.support.published.compare import EPS, perturb, quietly
from x_positional.pretrained.rope import inverse_frequencies

LETTERS = sorted(ByteLevel.alphabet())
SPECIAL = ["<|start|>", "<|end|>", "<think>"]
MERGES = ["h e", "l l", "he ll", "hell o", "Ġ w", "Ġw o", "1 2", "Ġ Ġ"]
VOCABULARY = [*SPECIAL, *LETTERS, *(merge.replace(" ", "") for merge in MERGES)]
"""Special tokens, every byte as its letter, and the results of the merges."""
CHAT = "{% for m in messages %}<|start|>{{ m['role'] }}\n{{ m['content'] }}<|end|>\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
CONFIG = {
    "vocab_size": len(VOCABULARY),
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "rms_norm_eps": EPS,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def llama(**config: Any) -> nn.Module:
    """A perturbed random Llama."""
    return small("LlamaForCausalLM", **config)


def small(model: str, **config: Any) -> nn.Module:
    """A perturbed random model of a class of transformers."""
    cls = getattr(transformers, model)
    torch.manual_seed(2)
    made = quietly(cls, cls.config_class(**{**CONFIG, **config})).eval()
    perturb(made)
    return made


def neighbours(rows: Tensor, heads: int) -> Tensor:
    """Rows of a projection in llama.cpp's order: row i of the first half of a head, then row i of its second half."""
    depth = rows.shape[0] // heads
    order = [
        head * depth + half * (depth // 2) + i for head in range(heads) for i in range(depth // 2) for half in (0, 1)
    ]
    return rows[order]


def write_gguf(
    path: Path,
    model: nn.Module,
    *,
    kind: str = "F32",
    tokenizer: bool = True,
    architecture: str = "llama",
    more: dict[str, Any] | None = None,
    tensors: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write a model as GGUF. kind: storage format of its matrices. more: metadata overrides; None removes a key."""
    config: Any = model.config
    writer = gguf.GGUFWriter(path, architecture)
    rope = config.rope_parameters
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    metadata: dict[str, Any] = {
        f"{architecture}.context_length": config.max_position_embeddings,
        f"{architecture}.embedding_length": config.hidden_size,
        f"{architecture}.block_count": config.num_hidden_layers,
        f"{architecture}.feed_forward_length": config.intermediate_size,
        f"{architecture}.attention.head_count": config.num_attention_heads,
        f"{architecture}.attention.head_count_kv": config.num_key_value_heads,
        f"{architecture}.attention.key_length": head_dim,
        f"{architecture}.attention.value_length": head_dim,
        f"{architecture}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{architecture}.rope.dimension_count": head_dim,
        f"{architecture}.rope.freq_base": rope["rope_theta"],
        f"{architecture}.vocab_size": config.vocab_size,
        **(words() if tokenizer else {}),
        **(more or {}),
    }
    for key, value in metadata.items():
        _put(writer, key, value)
    tied = config.tie_word_embeddings
    for name, tensor in model.state_dict().items():
        if not (tied and name.startswith("lm_head")):
            rows = _interleaved(name, tensor, config) if architecture == "llama" else tensor
            _write(writer, _renamed(name), rows, kind)
    if rope["rope_type"] == "llama3":
        plain, _ = inverse_frequencies({"rope_theta": rope["rope_theta"]}, head_dim)
        scaled, _ = inverse_frequencies(rope, head_dim)
        writer.add_tensor("rope_freqs.weight", (plain / scaled).numpy())
    for name, array in (tensors or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def words() -> dict[str, Any]:
    """The metadata of the tokenizer."""
    kinds = [3, 3, 4] + [1] * (len(VOCABULARY) - 3)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "smollm",
        "tokenizer.ggml.tokens": VOCABULARY,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": MERGES,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 1,
        "tokenizer.chat_template": CHAT,
    }


def _put(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if value is None:
        return
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32, str: writer.add_string}
    add.get(type(value), writer.add_array)(key, value)


def _write(writer: gguf.GGUFWriter, name: str, tensor: Tensor, kind: str) -> None:
    array = tensor.float().contiguous().numpy()
    if kind == "F32" or tensor.ndim == 1:
        return writer.add_tensor(name, array)
    stored = gguf.GGMLQuantizationType[kind]
    return writer.add_tensor(name, gguf.quantize(array, stored), raw_dtype=stored)


def _renamed(name: str) -> str:
    module, _, leaf = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, layer, rest = module.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.{leaf}"
    return f"{NAMES[module]}.{leaf}"


def _interleaved(name: str, tensor: Tensor, config: Any) -> Tensor:
    if ".q_proj." in name:
        return neighbours(tensor, config.num_attention_heads)
    return neighbours(tensor, config.num_key_value_heads) if ".k_proj." in name else tensor
