"""ALiBi whose products of slope and position were rounded in training, so that they are no function of distance.

B batch, T query tokens, S key tokens, H heads; slopes and positions in positions, biases in logits (after scaling).
"""

from typing import Literal

import torch
from torch import Tensor

from x_positional.schemes.base import AttentionContext, Bias, PositionScheme

Rounding = Literal["bfloat16"]
DTYPES: dict[Rounding, torch.dtype] = {"bfloat16": torch.bfloat16}


class RoundedAlibiBias(PositionScheme):
    """bias = -scale * |r(m p_query) - r(m p_key)|, m the slope of the head: Press et al. 2021, arXiv:2108.12409, section 3,
    where r rounds the slope, the position and their product, as Falcon did in training (Almazrouei et al. 2023,
    arXiv:2311.16867). Heads after the first `len(slopes)` have none.

    right: slopes for keys to the right of the query; None uses the same ones. Reads each token's own position, so caches,
    padding and packing change nothing; but a text moved along rounds otherwise.
    """

    absolute = True

    def __init__(
        self, heads: int, slopes: list[float], right: list[float] | None, rounding: Rounding, scale: float = 1.0
    ):
        super().__init__()
        self.heads, self.left, self.right, self.scale = heads, slopes, right, scale
        self.rounded = DTYPES[rounding]

    def _products(self, slopes: list[float], positions: Tensor, batch: int) -> Tensor:
        """[B|1 T] -> [B H T] float32, each rounded."""
        free = [0.0] * (self.heads - len(slopes))
        steep = torch.tensor(slopes + free, device=positions.device).to(self.rounded)[:, None]
        return (steep * positions.to(self.rounded)[:, None]).float().expand(batch, -1, -1)

    def bias(self, ctx: AttentionContext) -> Bias:
        q, k = ctx.q_positions.expand(ctx.batch, -1), ctx.kv_positions.expand(ctx.batch, -1)
        q_left, k_left = (self._products(self.left, p, ctx.batch) for p in (ctx.q_positions, ctx.kv_positions))
        if self.right is None:
            return Bias(
                lambda b, h, i, j: -(q_left[b, h, i] - k_left[b, h, j]).abs() * self.scale, ctx.mask_batch, self.heads
            )
        q_right, k_right = (self._products(self.right, p, ctx.batch) for p in (ctx.q_positions, ctx.kv_positions))

        def fn(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            left, right = q_left[b, h, i] - k_left[b, h, j], q_right[b, h, i] - k_right[b, h, j]
            return -torch.where(q[b, i] >= k[b, j], left, right).abs() * self.scale

        return Bias(fn, ctx.mask_batch, self.heads)
