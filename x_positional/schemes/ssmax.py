"""Scalable softmax: queries are scaled by the logarithm of the number of keys they see, with a learned factor per head.

B batch, T tokens, H heads, D head dim.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from x_positional.schemes.base import Dims, PositionScheme
from x_positional.schemes.precision import exact_dtype
from x_positional.schemes.registry import SchemeConfig

TRAINED = 1024
"""The trained length where the model has none."""


class ScalableSoftmax(PositionScheme):
    """q_t is multiplied by s_h ln(t + 1): softmax(s ln(n) z), n = t + 1, so that attention does not fade as the sequence grows
    (Nakanishi 2025, arXiv:2501.19399, equation 2). s is learned, one per head of each layer.

    n is the number of keys up to the query's position, also where a window or a mask hides some of them. A query that sees later
    keys (`prefix_len`, `attention_mask`, encoders) is refused: n would be the number that it sees. Biases are not scaled.

    Args:
        heads: H.
        initial: s before training.
    """

    absolute = True
    causal_only = True
    counts_keys = True
    per_layer = True

    def __init__(self, heads: int, initial: float):
        super().__init__()
        self.scale = nn.Parameter(torch.full((heads,), initial))

    def tables(self, positions: Tensor) -> Tensor:
        """[B|1 T] -> [B|1 1 T 1] float32: ln(n) of each query."""
        seen = (positions.to(exact_dtype(positions.device)) + 1).clamp(min=1)
        return seen.log().float()[:, None, :, None]

    def token_tables(self, tables: Tensor, i: int) -> Tensor:
        return tables.narrow(-2, i, 1)

    def rotate_q(self, q: Tensor, tables: Tensor) -> Tensor:
        return (q * (self.scale[:, None, None] * tables)).to(q.dtype)


class SSMax(SchemeConfig):
    """`position="ssmax"`: combined with rope or another scheme, as it acts on queries alone."""

    kind: Literal["ssmax"] = "ssmax"
    init: float | None = Field(default=None, gt=0)
    """The factors before training. None makes s ln(n) 1 on average over max_seq_len tokens (over 1024 where it is not set)."""
    summary: ClassVar[str] = "queries scaled by the logarithm of their number of keys, a learned factor per head"
    paper: ClassVar[str] = "Nakanishi 2025, arXiv:2501.19399"

    def build(self, dims: Dims) -> ScalableSoftmax:
        trained = max(2, dims.max_seq_len or TRAINED)
        mean = math.lgamma(trained + 1) / trained  # of ln 1 .. ln trained
        return ScalableSoftmax(dims.heads, self.init or 1 / mean)
