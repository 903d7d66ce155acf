"""Norms of queries and keys. B batch, T tokens, H heads, D head dim."""

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

QKNormKind = Literal["rms", "rms_plain", "rms_whole", "rms_per_head", "layer", "layer_per_head", "l2"]


class _Kind(NamedTuple):
    """What a kind of norm computes."""

    statistic: Literal["rms", "layer", "l2"]
    gains: Literal["shared", "per_head", "none"]
    """One gain per channel: the same in every head, of its own in each, or none."""
    eps: float
    whole: bool = False
    """The statistic is taken over all heads together."""


KINDS: dict[QKNormKind, _Kind] = {
    "rms": _Kind("rms", "shared", 1e-6),
    "rms_plain": _Kind("rms", "none", 1e-6),
    "rms_whole": _Kind("rms", "per_head", 1e-6, whole=True),
    "rms_per_head": _Kind("rms", "per_head", 1e-12),
    "layer": _Kind("layer", "shared", 1e-5),
    "layer_per_head": _Kind("layer", "per_head", 1e-5),
    "l2": _Kind("l2", "none", 1e-12),
}
"""rms (Qwen 3, Gemma 3); rms_plain (Llama 4); rms_whole, over all heads together (OLMo 2); rms_per_head (x-transformers; its
eps only keeps zero finite); layer (Phi, Persimmon); layer_per_head (StableLM, Cohere); l2 (x-transformers)."""


class HeadNorm(nn.Module):
    """Norm of queries or keys over the head dim, or over all heads. [B H T D] -> [B H T D].

    Args:
        kind: see `KINDS`.
        heads: H.
        head_dim: D.
        eps: None is the default of the kind.
        bias: in addition to the gains.
        unit_offset: gains are stored as gain - 1.
    """

    def __init__(
        self,
        kind: QKNormKind,
        heads: int,
        head_dim: int,
        eps: float | None = None,
        bias: bool = False,
        unit_offset: bool = True,
    ):
        super().__init__()
        known = KINDS[kind]
        self.statistic, self.whole, self.unit_offset = known.statistic, known.whole, unit_offset
        self.eps, self.head_dim = known.eps if eps is None else eps, head_dim
        shape = {"shared": (head_dim,), "per_head": (heads, 1, head_dim)}.get(known.gains)
        start = 0.0 if unit_offset else 1.0
        self.gain = None if shape is None else nn.Parameter(torch.full(shape, start))
        self.shift = nn.Parameter(torch.zeros(shape)) if bias and shape is not None else None

    def _normed(self, x: Tensor) -> Tensor:
        if self.statistic == "l2":
            return F.normalize(x, dim=-1, eps=self.eps)
        if self.statistic == "layer":
            return F.layer_norm(x, (self.head_dim,), None, None, self.eps)
        if self.whole:
            flat = x.transpose(1, 2).flatten(-2)
            return torch.unflatten(
                F.rms_norm(flat, flat.shape[-1:], None, self.eps), -1, (-1, self.head_dim)
            ).transpose(1, 2)
        return F.rms_norm(x, (self.head_dim,), None, self.eps)

    def forward(self, x: Tensor) -> Tensor:
        x = self._normed(x)
        if self.gain is not None:
            x = x * (self.gain + 1.0 if self.unit_offset else self.gain)
        return x if self.shift is None else x + self.shift
