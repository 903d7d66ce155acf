"""A small published chat model: a random Llama with a byte tokenizer and a chat template, and conversations for it."""

import json
from pathlib import Path
from typing import Any

import torch

from x_positional import Decoder, TransformerWrapper
from x_positional.pretrained.tokenizers.chat import ChatTemplate
from x_positional.pretrained.tokenizers.text import TextTokenizer, byte_tokenizer
from x_positional.pretrained.tokenizers.write import write_tokenizer

START, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
VOCABULARY = 258


def chat_tokenizer(template: str | None = TEMPLATE) -> TextTokenizer:
    """Bytes, and two special tokens: 256 begins a message, 257 ends it."""
    backend = byte_tokenizer().backend
    backend.add_special_tokens([START, END])
    special = {"bos_token": START, "eos_token": END}
    chat = None if template is None else ChatTemplate(template, special, "test")
    return TextTokenizer(backend, special, (257,), chat, "test")


def llama(position: str = "rope", **flags: Any) -> TransformerWrapper:
    """A Llama with grouped queries, or one with another scheme, every parameter moved off its start."""
    torch.manual_seed(0)
    layers = Decoder(
        dim=24,
        depth=2,
        heads=4,
        head_dim=8,
        kv_heads=2,
        position=position,
        norm="rms",
        ff={"glu": True, "activation": "silu", "mult": 2},
    )
    net = TransformerWrapper(
        num_tokens=VOCABULARY, max_seq_len=160, attn_layers=layers, tie_embedding=True, tie_embedding_scale=1.0, **flags
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return net.eval()


def published(folder: Path, template: str | None = TEMPLATE) -> Path:
    """The folder of the model, as transformers reads it."""
    llama().save_pretrained(folder, format="hf", model_type="llama")
    write_tokenizer(chat_tokenizer(template), folder, None)
    return folder


def turn(question: str, answer: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]


def conversations(count: int = 24) -> list[dict[str, Any]]:
    """Sums: one or two turns."""
    sums = [turn(f"{n}+{n % 3}?", str(n + n % 3)) for n in range(count)]
    return [{"messages": sums[n] if n % 4 else sums[n] + sums[n - 1]} for n in range(count)]


def jsonl(file: Path, records: list[Any]) -> Path:
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file
