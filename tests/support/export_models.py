"""A small llama-like model of x_positional's own, for tests of export."""

from typing import Any

import torch

from tests.support.published.compare import perturb
from x_positional import Decoder, TransformerWrapper

LLAMA_LIKE = {
    "dim": 32,
    "depth": 3,
    "heads": 4,
    "head_dim": 10,
    "position": "rope",
    "norm": "rms",
    "ff": {"glu": True, "activation": "silu", "bias": False},
}


def own(**changes: Any) -> TransformerWrapper:
    torch.manual_seed(2)
    wrapper = {name: changes.pop(name) for name in list(changes) if name.startswith(("tie", "emb", "post", "logits"))}
    layers = Decoder(**{**LLAMA_LIKE, **changes})
    model = TransformerWrapper(num_tokens=67, max_seq_len=64, attn_layers=layers, **wrapper).eval()
    perturb(model)
    return model
