"""How the projections of multi-head latent attention lie in the tensors of a published model, and back."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from x_positional.config.layers import MLAConfig
from x_positional.pretrained.tensors.layouts import Sizes


def latent_of(sizes: Sizes) -> MLAConfig:
    """The latent attention of a layer. Raises ValueError where it has none."""
    attn = None if sizes.layer is None else sizes.layer.attn
    if attn is None or attn.mla is None:
        raise ValueError("a layer without latent attention has no latents")
    return attn.mla


@dataclass(frozen=True)
class LatentQueries:
    """The projection to queries, from a latent or from the stream. In theirs the rotary channels of a head come last."""

    from_latent: str
    from_stream: str

    def names(self, sizes: Sizes) -> Sequence[str]:
        return (self.from_stream if latent_of(sizes).q_rank is None else self.from_latent,)

    def load(self, parts: list[Tensor], sizes: Sizes) -> Tensor:
        return _rolled(parts[0], sizes, latent_of(sizes).rope_dim)

    def store(self, tensor: Tensor, sizes: Sizes) -> list[Tensor]:
        return [_rolled(tensor, sizes, -latent_of(sizes).rope_dim)]


def _rolled(rows: Tensor, sizes: Sizes, shift: int) -> Tensor:
    """The rows of each head, moved round."""
    return torch.roll(rows.unflatten(0, (sizes.heads, -1)), shift, 1).flatten(0, 1)
