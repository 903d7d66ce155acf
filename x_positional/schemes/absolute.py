"""Absolute positions, added to the token embeddings: a learned table, sinusoids, scaled sinusoids.

B batch, T tokens, M model dim.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.base import Dims, PositionScheme
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.rotary.frequencies import angles, inverse_frequencies


class LearnedAbsolute(PositionScheme):
    """x_t += scale * E[t + offset], E of shape [max_seq_len + offset, M] (Gehring et al. 2017, arXiv:1705.03122).

    offset: 2 in OPT, BART and RoBERTa, whose tables begin with rows that no token uses.
    """

    absolute = True
    continuous = False

    def __init__(self, max_seq_len: int, dim: int, offset: int = 0, scale: float = 1.0):
        super().__init__()
        self.limit, self.offset, self.scale = max_seq_len, offset, scale
        self.table = nn.Parameter(torch.empty(max_seq_len + offset, dim))
        nn.init.normal_(self.table)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        rows = F.embedding(positions.clamp(min=0) + self.offset, self.table)
        return x + rows * self.scale


class SinusoidalEmbedding(PositionScheme):
    """x_t += [sin(t w_i), cos(t w_i)], w_i = theta^(-2i/M) (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

    layout: "interleaved" as in the paper (sin, cos, sin, cos, ...) or "concat" (all sines, then all cosines).
    """

    absolute = True

    def __init__(self, dim: int, theta: float = 10_000.0, layout: Literal["interleaved", "concat"] = "interleaved"):
        super().__init__()
        self.dim, self.theta, self.concat = dim, theta, layout == "concat"

    def waves(self, positions: Tensor) -> Tensor:
        """[B|1 T] -> [B|1 T M] float32."""
        angle = angles(positions, inverse_frequencies(self.dim, self.theta, positions.device))
        sin, cos = angle.sin(), angle.cos()
        both = torch.cat([sin, cos], -1) if self.concat else torch.stack([sin, cos], -1).flatten(-2)
        return both[..., : self.dim].float()

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.waves(positions).to(x.dtype)


class ScaledSinusoidalEmbedding(SinusoidalEmbedding):
    """x_t += g * [sin(t w), cos(t w)] with one learned g, M^-0.5 at the start (Hua et al. 2022, arXiv:2202.10447)."""

    def __init__(self, dim: int, theta: float = 10_000.0):
        super().__init__(dim, theta, "concat")
        self.scale = nn.Parameter(torch.full((1,), dim**-0.5))

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + (self.waves(positions) * self.scale).to(x.dtype)


class Absolute(SchemeConfig):
    """`position="absolute"`. scale: None is M^-0.5 (as x-transformers); 1.0 as GPT-2 and BERT."""

    kind: Literal["absolute"] = "absolute"
    needs_wrapper: ClassVar[bool] = True
    max_seq_len: int | None = Field(default=None, gt=0)
    offset: int = Field(default=0, ge=0)
    scale: float | None = None
    summary: ClassVar[str] = "one learned vector per position"
    paper: ClassVar[str] = "Gehring et al. 2017, arXiv:1705.03122"

    def build(self, dims: Dims) -> LearnedAbsolute:
        rows = self.max_seq_len or dims.max_seq_len
        if rows is None:
            raise ValueError(self.problems(dims)[0])
        scale = dims.embed_dim**-0.5 if self.scale is None else self.scale
        return LearnedAbsolute(rows, dims.embed_dim, self.offset, scale)

    def resolved(self, dims: Dims) -> SchemeConfig:
        scale = dims.embed_dim**-0.5 if self.scale is None else self.scale
        return self.model_copy(update={"max_seq_len": self.max_seq_len or dims.max_seq_len, "scale": scale})

    def problems(self, dims: Dims) -> list[str]:
        if self.max_seq_len or dims.max_seq_len:
            return []
        return [
            "position='absolute' is a table with one row per position, and no length was named. Put the layers into "
            "TransformerWrapper(max_seq_len=...), or say position=Absolute(max_seq_len=1024)."
        ]


class Sinusoidal(SchemeConfig):
    """`position="sinusoidal"`."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    needs_wrapper: ClassVar[bool] = True
    theta: float = Field(default=10_000.0, gt=0)
    layout: Literal["interleaved", "concat"] = "interleaved"
    summary: ClassVar[str] = "fixed sine and cosine waves"
    paper: ClassVar[str] = "Vaswani et al. 2017, arXiv:1706.03762"

    def build(self, dims: Dims) -> SinusoidalEmbedding:
        return SinusoidalEmbedding(dims.embed_dim, self.theta, self.layout)


class ScaledSinusoidal(SchemeConfig):
    """`position="scaled_sinusoidal"`."""

    kind: Literal["scaled_sinusoidal"] = "scaled_sinusoidal"
    needs_wrapper: ClassVar[bool] = True
    theta: float = Field(default=10_000.0, gt=0)
    summary: ClassVar[str] = "sine and cosine waves times one learned number"
    paper: ClassVar[str] = "Hua et al. 2022, arXiv:2202.10447"

    def build(self, dims: Dims) -> ScaledSinusoidalEmbedding:
        return ScaledSinusoidalEmbedding(dims.embed_dim, self.theta)
