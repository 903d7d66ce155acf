"""Absolute positions, added to the token embeddings: a learned table, sinusoids, scaled sinusoids.

B batch, T tokens, M model dim.
"""

from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn

from x_positional.errors import ArgumentError
from x_positional.schemes.base import Dims, PositionScheme
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.rotary.frequencies import angles, inverse_frequencies
from x_positional.schemes.values import MAX_LENGTH


class LearnedAbsolute(PositionScheme):
    """x_t += scale * E[t + offset], E of shape [max_seq_len + offset, M] (Gehring et al. 2017, arXiv:1705.03122).

    Args:
        max_seq_len: how many positions the table has.
        dim: M.
        offset: unused rows at the start of the table; 2 in OPT, BART and RoBERTa.
        scale: multiplies the rows.
    """

    absolute = True
    continuous = False

    def __init__(self, max_seq_len: int, dim: int, offset: int = 0, scale: float = 1.0):
        super().__init__()
        self.limit, self.offset, self.scale = max_seq_len, offset, scale
        self.table = nn.Parameter(torch.empty(max_seq_len + offset, dim))
        if not self.table.is_meta:  # without values; there, normal_ would import torch's compiler
            nn.init.normal_(self.table)

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        rows = F.embedding(positions.clamp(min=0) + self.offset, self.table)
        return x + rows * self.scale


class SinusoidalEmbedding(PositionScheme):
    """x_t += [sin(t w_i), cos(t w_i)], w_i = theta^(-2i/M) (Vaswani et al. 2017, arXiv:1706.03762, section 3.5).

    Args:
        dim: M.
        theta: the base of the frequencies.
        layout: "interleaved" as in the paper (sin, cos, sin, cos, ...) or "concat" (all sines, then all cosines).
        offset: added to positions.
        endpoint: w_i = theta^(-2i/(M-2)), so that the last frequency is exactly 1 / theta (tensor2tensor).
    """

    absolute = True

    def __init__(
        self,
        dim: int,
        theta: float = 10_000.0,
        layout: Literal["interleaved", "concat"] = "interleaved",
        offset: int = 0,
        endpoint: bool = False,
    ):
        super().__init__()
        self.dim, self.theta, self.concat, self.offset, self.endpoint = dim, theta, layout == "concat", offset, endpoint

    def waves(self, positions: Tensor) -> Tensor:
        """[B|1 T] -> [B|1 T M] float32."""
        width, count = (self.dim - 2, (self.dim + 1) // 2) if self.endpoint else (self.dim, None)
        frequencies = inverse_frequencies(width, self.theta, positions.device, count)
        angle = angles(positions + self.offset if self.offset else positions, frequencies)
        sin, cos = angle.sin(), angle.cos()
        both = rearrange([sin, cos], f"wave b t f -> b t {'(wave f)' if self.concat else '(f wave)'}")
        return both[..., : self.dim].float()

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.waves(positions).to(x.dtype)


class ScaledSinusoidalEmbedding(SinusoidalEmbedding):
    """x_t += g * [sin(t w), cos(t w)] with one learned g, initialised to M^-0.5 (Hua et al. 2022, arXiv:2202.10447)."""

    def __init__(self, dim: int, theta: float = 10_000.0):
        super().__init__(dim, theta, "concat")
        self.scale = nn.Parameter(torch.full((1,), dim**-0.5))

    def embed(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + (self.waves(positions) * self.scale).to(x.dtype)


class Absolute(SchemeConfig):
    """`position="absolute"`."""

    kind: Literal["absolute"] = "absolute"
    max_seq_len: int | None = Field(default=None, gt=0, le=MAX_LENGTH)
    """How many positions the table has; None is the model's max_seq_len."""
    offset: int = Field(default=0, ge=0, le=MAX_LENGTH)
    """Unused rows at the start of the table; 2 in OPT, BART and RoBERTa."""
    scale: float | None = None
    """Multiplies the rows; None is M^-0.5 as in x-transformers, 1.0 is GPT-2 and BERT."""
    summary: ClassVar[str] = "one learned vector per position"
    paper: ClassVar[str] = "Gehring et al. 2017, arXiv:1705.03122"

    def model_dims(self) -> frozenset[str]:
        return frozenset(("embed_dim", "max_seq_len"))

    def build(self, dims: Dims) -> LearnedAbsolute:
        rows = self.max_seq_len or dims.max_seq_len
        if rows is None:
            raise ArgumentError(self.problems(dims)[0])
        scale = dims.embed_dim**-0.5 if self.scale is None else self.scale
        return LearnedAbsolute(rows, dims.embed_dim, self.offset, scale)

    def resolved(self, dims: Dims) -> SchemeConfig:
        scale = dims.embed_dim**-0.5 if self.scale is None else self.scale
        return self.model_copy(update={"max_seq_len": self.max_seq_len or dims.max_seq_len, "scale": scale})

    def problems(self, dims: Dims) -> list[str]:
        if self.max_seq_len or dims.max_seq_len:
            return []
        return [
            "position='absolute' is a table with one row per position, and no length is set. Use "
            "TransformerWrapper(max_seq_len=...), or position=Absolute(max_seq_len=1024)."
        ]


class Sinusoidal(SchemeConfig):
    """`position="sinusoidal"`."""

    kind: Literal["sinusoidal"] = "sinusoidal"
    theta: float = Field(default=10_000.0, gt=0)
    """The base of the frequencies."""
    layout: Literal["interleaved", "concat"] = "interleaved"
    """"interleaved" is sin, cos, sin, cos, ...; "concat" is all sines, then all cosines."""
    offset: int = Field(default=0, ge=0, le=MAX_LENGTH)
    """Added to positions; 2 in M2M-100 and XGLM."""
    endpoint: bool = False
    """Frequencies are theta^(-2i/(M-2)), so that the last one is exactly 1 / theta (tensor2tensor, M2M-100)."""
    summary: ClassVar[str] = "fixed sine and cosine waves"
    paper: ClassVar[str] = "Vaswani et al. 2017, arXiv:1706.03762"

    def model_dims(self) -> frozenset[str]:
        return frozenset(("embed_dim",))

    def build(self, dims: Dims) -> SinusoidalEmbedding:
        return SinusoidalEmbedding(dims.embed_dim, self.theta, self.layout, self.offset, self.endpoint)

    def problems(self, dims: Dims) -> list[str]:
        if not self.endpoint or dims.embed_dim > 2:
            return []
        return [
            f"sinusoidal: endpoint=True divides by the width - 2, and the width is {dims.embed_dim}. Leave endpoint out, or "
            "widen the model."
        ]


class ScaledSinusoidal(SchemeConfig):
    """`position="scaled_sinusoidal"`."""

    kind: Literal["scaled_sinusoidal"] = "scaled_sinusoidal"
    theta: float = Field(default=10_000.0, gt=0)
    """The base of the frequencies."""
    summary: ClassVar[str] = "sine and cosine waves times one learned number"
    paper: ClassVar[str] = "Hua et al. 2022, arXiv:2202.10447"

    def model_dims(self) -> frozenset[str]:
        return frozenset(("embed_dim",))

    def build(self, dims: Dims) -> ScaledSinusoidalEmbedding:
        return ScaledSinusoidalEmbedding(dims.embed_dim, self.theta)
