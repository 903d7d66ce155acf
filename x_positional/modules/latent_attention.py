"""Multi-head latent attention (MLA): keys and values of all heads from one small latent, which is what the cache holds.

B batch, T query tokens, S key tokens, H heads, D head dim, R rotary channels, N = D - R others, E value dim, C latent dim,
M model dim.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from x_positional.attention.plan import LayerPlan
from x_positional.modules.attention import Heads
from x_positional.modules.norms import Norm
from x_positional.modules.plain import plain_weight
from x_positional.modules.quantized import Int8Linear
from x_positional.schemes.base import PositionScheme
from x_positional.schemes.context import add


class FromLatent(NamedTuple):
    """The projections from the latent to each head."""

    to_keys: Tensor
    """[H N C]."""
    to_values: Tensor
    """[H E C]."""


class LatentAttention(Heads):
    """Self-attention of DeepSeek-V2 (2024, arXiv:2405.04434, section 2.1 and appendix C).

    A head has R channels that are rotated, then N that are not. A key's R channels are shared by all heads; its N channels and
    the value come from the latent. The cache holds both as one head. Scores are computed in whichever of two equivalent ways is
    less work: keys and values of every head are expanded from the latents of all keys; or, with few queries and many keys, queries
    are projected into the latent space, where one key of R + C channels serves every head, and the output is projected back. The
    second way reads the matrix of `to_kv`. Where that is wrapped (LoRA, hooks, a quantization of another package), all latents
    are expanded at each step, which is exact but slow in long contexts: merge adapters before decoding.

    Args:
        dim: M.
        heads: H.
        head_dim: D = R + N.
        kv_rank: C.
        rope_dim: R.
        value_dim: E.
        q_rank: width of a latent that queries come from; None projects them directly.
        eps: of the latents' norms.
        unit_offset: these norms store gain - 1.
        bias: of the projections into the latents and of the output; the projections out of the latents have none, and neither has
            the direct query projection.
        shared: the keyword arguments of `Heads`.
    """

    def __init__(
        self,
        dim: int,
        heads: int,
        head_dim: int,
        *,
        kv_rank: int,
        rope_dim: int,
        value_dim: int,
        q_rank: int | None = None,
        eps: float = 1e-6,
        unit_offset: bool = True,
        bias: bool = False,
        **shared: Any,
    ):
        super().__init__(dim, heads, heads, head_dim, bias=bias, value_dim=value_dim, **shared)
        self.kv_rank, self.rope_dim, self.value_dim, self.key_dim = kv_rank, rope_dim, value_dim, head_dim - rope_dim
        self.to_q_latent = None if q_rank is None else nn.Linear(dim, q_rank, bias=bias)
        self.q_latent_norm = None if q_rank is None else Norm(q_rank, "rms", eps, unit_offset=unit_offset)
        self.to_q = nn.Linear(q_rank or dim, heads * head_dim, bias=False)
        self.to_kv_latent = nn.Linear(dim, kv_rank + rope_dim, bias=bias)
        self.kv_latent_norm = Norm(kv_rank, "rms", eps, unit_offset=unit_offset)
        self.to_kv = nn.Linear(kv_rank, heads * (self.key_dim + value_dim), bias=False)

    def forward(self, x: Tensor, scheme: PositionScheme, plan: LayerPlan) -> Tensor:
        """[B T M] -> [B T M]."""
        content = self._queries(x)
        latent, key = self.to_kv_latent(x).unsqueeze(1).split([self.kv_rank, self.rope_dim], dim=-1)
        latent, key = self.kv_latent_norm(latent), scheme.rotate_k(key, plan.tables)
        state = scheme.key_state(x)
        if plan.cache is not None and plan.view is not None:
            key, latent, state = plan.cache.write(plan.layer, plan.view, key, latent, state)
        latent = latent.expand(-1, key.shape[1], -1, -1)  # a scheme may rotate keys differently in each head
        absorbed = self._from_latent() if self._absorbs(x.shape[1], latent.shape[2]) else None
        ops = self.ops(scheme, x, content, state, plan.prepared, rows=plan.whole_rows)
        q = self._in_space(scheme.rotate_q(content, plan.tables), absorbed)
        k, v = self._of_heads(key, latent) if absorbed is None else (torch.cat([key, latent], dim=-1), latent)
        if plan.kept_tokens is not None:
            moved = self._in_space(scheme.rotate_q(content, plan.kept_tokens.tables), absorbed)
            ops = ops._replace(content=add([ops.content, plan.kept_tokens.correction(moved, q, k, self.scale)]))
        if plan.maps is not None:
            plan.collect(q, k, ops)
        out = plan.backend.attend(q, k, v, plan.prepared, ops)
        return self.join(out if absorbed is None else out @ absorbed.to_values.mT)

    def _queries(self, x: Tensor) -> Tensor:
        """[B T M] -> [B H T D]."""
        if self.to_q_latent is not None and self.q_latent_norm is not None:
            x = self.q_latent_norm(self.to_q_latent(x))
        return self.split(self.to_q(x))

    def _absorbs(self, queries: int, keys: int) -> bool:
        """Whether the latent space is less work, in multiplications per head. Never where all keys are new: fused kernels are
        made for narrow heads."""
        rank, rope, out = self.kv_rank, self.rope_dim, self.key_dim + self.value_dim
        inside = queries * rank * out + queries * keys * (2 * rank + rope)
        outside = keys * rank * out + queries * keys * (rope + out)
        return queries < keys and inside < outside

    def _from_latent(self) -> FromLatent | None:
        """The projections to absorb; None where `to_kv` is wrapped, which need not be linear, so that it is called instead."""
        weight = self.to_kv.matrix() if isinstance(self.to_kv, Int8Linear) else plain_weight(self.to_kv)
        if weight is None:
            return None
        return FromLatent(*torch.unflatten(weight, 0, (self.heads, -1)).split([self.key_dim, self.value_dim], dim=1))

    def _in_space(self, q: Tensor, absorbed: FromLatent | None) -> Tensor:
        """[B H T D] -> the same, or [B H T R+C] in the latent space."""
        if absorbed is None:
            return q
        rotated, plain = q.split([self.rope_dim, self.key_dim], dim=-1)
        return torch.cat([rotated, plain @ absorbed.to_keys], dim=-1)

    def _of_heads(self, key: Tensor, latent: Tensor) -> tuple[Tensor, Tensor]:
        """[B 1 S R], [B 1 S C] -> keys [B H S D] and values [B H S E]."""
        expanded = torch.unflatten(self.to_kv(latent[:, 0]), -1, (self.heads, -1)).transpose(1, 2)
        plain, values = expanded.split([self.key_dim, self.value_dim], dim=-1)
        return torch.cat([key.expand(-1, self.heads, -1, -1), plain], dim=-1), values
