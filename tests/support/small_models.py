"""A small decoder with every parameter moved off its start, for tests of what a model is given."""

from typing import Any

import torch

from tests.support.rounding import assert_same
from x_positional import Decoder, TransformerWrapper

NUM_TOKENS = 13
SIDE = {"num_tokens": NUM_TOKENS, "depth": 1, "heads": 3, "attn_dim_head": 8, "max_seq_len": 32, "position": "rope"}
"""Flags of either side of a small XTransformer, without their prefix."""


def decoder(
    position: Any = "rope", *, kind=Decoder, depth: int = 2, max_seq_len: int = 300, noise: float = 0.3, **flags
):
    """A model in eval mode: three heads of 8 channels, no width a power of two."""
    torch.manual_seed(0)
    layers = kind(dim=24, depth=depth, heads=3, head_dim=8, position=position, **flags)
    net = TransformerWrapper(num_tokens=NUM_TOKENS, max_seq_len=max_seq_len, attn_layers=layers).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * noise)
    return net


def ids(*shape: int) -> torch.Tensor:
    """Token ids, the same for each shape."""
    return torch.randint(0, NUM_TOKENS, shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(got: torch.Tensor, want: torch.Tensor) -> None:
    """Equal but for the rounding of float32."""
    assert_same(got, want)
