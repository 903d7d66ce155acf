"""One vector for an image: a learned query that attends to its patches.

B batch, T patches, M model dim, H heads, D head dim.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from x_positional.modules.experts import MixtureOfExperts
from x_positional.modules.feedforward import FeedForward
from x_positional.modules.norms import Norm
from x_positional.modules.patches import INIT_STD


class AttentionPooling(nn.Module):
    """y = attention(probe, x); y + feedforward(norm(y)). The pooling of SigLIP (Zhai et al. 2023, arXiv:2303.15343), as in
    Set Transformer (Lee et al. 2019, arXiv:1810.00825, section 3.2).

    Args:
        dim: M.
        heads: H.
        head_dim: D.
        norm: of the attention's output.
        ff: of that.
    """

    def __init__(self, dim: int, heads: int, head_dim: int, norm: Norm, ff: FeedForward | MixtureOfExperts):
        super().__init__()
        self.heads = heads
        self.probe = nn.Parameter(torch.randn(1, dim) * INIT_STD)
        self.to_qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.to_out = nn.Linear(heads * head_dim, dim)
        self.norm, self.ff = norm, ff

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B T M] -> [B M]. mask: [B T] bool, True = keep."""
        probe = self.probe.to(x.dtype).expand(len(x), -1, -1)
        joined = self.to_qkv(torch.cat([probe, x], dim=1)).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in joined.unbind(2))
        shown = None if mask is None else mask[:, None, None]
        out = F.scaled_dot_product_attention(q[:, :, :1], k[:, :, 1:], v[:, :, 1:], attn_mask=shown)
        y = self.to_out(out.transpose(1, 2).flatten(2))
        return (y + self.ff(self.norm(y)))[:, 0]
