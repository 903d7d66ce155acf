"""A tiny language model from a config, as it is initialised, for tests of what is refused."""

import torch

from x_positional import ModelConfig, TransformerWrapper, build_model

V, L, B, T = 11, 9, 2, 5
"""Vocabulary, max_seq_len, batch, tokens."""
SIZES = {"dim": 16, "depth": 2, "heads": 2, "head_dim": 8}


def model_of(position="rope", **layers) -> TransformerWrapper:
    torch.manual_seed(0)
    fields = {"num_tokens": V, "max_seq_len": L, "layers": {**SIZES, "position": position, **layers}}
    return build_model(ModelConfig.model_validate(fields)).eval()


def ids(batch: int = B, length: int = T) -> torch.Tensor:
    return torch.randint(V, (batch, length), generator=torch.Generator().manual_seed(length))
