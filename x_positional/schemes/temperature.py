"""Temperature by position: queries are scaled up with their position, so attention stays sharp in long sequences.

B batch, T tokens, H heads, D head dim.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from x_positional.schemes.base import Dims, PositionScheme
from x_positional.schemes.precision import exact_dtype
from x_positional.schemes.registry import SchemeConfig
from x_positional.schemes.values import MAX_LENGTH


class QueryTemperature(PositionScheme):
    """q_t is multiplied by 1 + scale * ln(1 + floor((t + offset) / floor_scale)).

    Llama 4 (2025), in its layers without RoPE: floor_scale 8192, scale 0.1, offset 1. Ministral 3 (2025): offset 0,
    floor_scale its original max_position_embeddings.

    Args:
        scale: how much each step adds.
        floor_scale: positions per step.
        offset: added to positions.
    """

    absolute = True
    causal_only = True

    def __init__(self, scale: float = 0.1, floor_scale: float = 8192, offset: float = 1.0):
        super().__init__()
        self.scale, self.floor_scale, self.offset = scale, floor_scale, offset

    def tables(self, positions: Tensor) -> Tensor:
        """[B|1 T] -> [B|1 1 T 1] float32: the factor of each query."""
        steps = ((positions.to(exact_dtype(positions.device)) + self.offset) / self.floor_scale).floor()
        return (1 + self.scale * torch.log1p(steps.clamp(min=0))).float()[:, None, :, None]

    def token_tables(self, tables: Tensor, i: int) -> Tensor:
        return tables.narrow(-2, i, 1)

    def rotate_q(self, q: Tensor, tables: Tensor) -> Tensor:
        return (q * tables).to(q.dtype)


class LogLengthTemperature(PositionScheme):
    """q_t is multiplied by max(1, ln(t + 1) / ln(trained)): log-n scaling (Chiang and Cholak 2022, arXiv:2202.12172,
    section 5.3; Su 2021), so that the entropy of attention does not grow with the number of visible keys.

    Args:
        trained: the trained length.
    """

    absolute = True
    causal_only = True

    def __init__(self, trained: int):
        super().__init__()
        self.trained = trained

    def tables(self, positions: Tensor) -> Tensor:
        """[B|1 T] -> [B|1 1 T 1] float32: the factor of each query."""
        seen = (positions.to(exact_dtype(positions.device)) + 1).clamp(min=1)
        return (seen.log() / math.log(self.trained)).clamp(min=1).float()[:, None, :, None]

    def token_tables(self, tables: Tensor, i: int) -> Tensor:
        return tables.narrow(-2, i, 1)

    def rotate_q(self, q: Tensor, tables: Tensor) -> Tensor:
        return (q * tables).to(q.dtype)


class Temperature(SchemeConfig):
    """`position="temperature"`: combined with rope, or alone in layers without it."""

    kind: Literal["temperature"] = "temperature"
    scale: float = 0.1
    """How much each step adds."""
    floor_scale: float = Field(default=8192, gt=0)
    """Positions per step."""
    offset: float = 1.0
    """Added to positions."""
    summary: ClassVar[str] = "scales queries up in steps of their position"
    paper: ClassVar[str] = "Llama 4, Meta 2025"

    def build(self, dims: Dims) -> QueryTemperature:
        return QueryTemperature(self.scale, self.floor_scale, self.offset)


class LogN(SchemeConfig):
    """`position="log_n"`."""

    kind: Literal["log_n"] = "log_n"
    trained: int | None = Field(default=None, gt=1, le=MAX_LENGTH)
    """The trained length; None is max_seq_len."""
    summary: ClassVar[str] = "scales queries up with the logarithm of their position"
    paper: ClassVar[str] = "Chiang and Cholak 2022, arXiv:2202.12172"

    def model_dims(self) -> frozenset[str]:
        return frozenset(("max_seq_len",)) if self.trained is None else frozenset()

    def build(self, dims: Dims) -> LogLengthTemperature:
        return LogLengthTemperature(self._trained(dims))

    def _trained(self, dims: Dims) -> int:
        return max(2, self.trained or dims.max_seq_len or 2)

    def resolved(self, dims: Dims) -> SchemeConfig:
        return self.model_copy(update={"trained": self._trained(dims)})

    def problems(self, dims: Dims) -> list[str]:
        if self.trained is None and dims.max_seq_len is None:
            return ["log_n: the trained length is unknown. Set trained=, or use a wrapper with max_seq_len."]
        return []
