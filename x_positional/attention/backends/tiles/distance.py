"""A bias that depends on distance alone, and the forward pass by torch's flash attention kernel, which takes it as a mask."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional.attention.backends.base import blocks_of
from x_positional.attention.backends.tiles import geometry
from x_positional.attention.backends.tiles.geometry import TilePlan
from x_positional.attention.backends.tiles.online_softmax import least_log
from x_positional.schemes.base import Span

KERNEL_QUERIES = 1024
"""The most queries of one call of torch's kernel."""


@dataclass(frozen=True)
class DistanceBias:
    """The bias of query i and key j as a table of j - i."""

    table: Tensor
    """[H N], at j - i = low, low + 1, ...; -inf where the key is hidden."""
    low: int
    own: int
    """j - i of a query and its own key."""
    window: int
    """How many keys a query sees at most, with its own."""
    margin: Tensor | None
    """[H 1] by how much a key's bias must be below another's for its probability to be negligible, given the norms of q and k; None
    where no two biases differ by that much."""

    @classmethod
    def of(cls, plan: TilePlan, tensors: Sequence[Tensor], inputs: Sequence[Tensor]) -> "DistanceBias | None":
        """None where the bias depends on more than distance, or torch's kernel does not apply."""
        (q, k, v), ctx, found = tensors, plan.ctx, plan.terms.by_distance(inputs)
        if not plan.terms.parts:  # no bias is one of 0
            found = q.new_zeros(ctx.heads, ctx.T + ctx.S - 1), 1 - ctx.T
        own = ctx.q_start - ctx.kv_start
        if plan.dropout is not None or found is None or not ctx.simple_mask:
            return None
        if q.shape[-1] != v.shape[-1] or own < 0 or own + ctx.T > ctx.S:
            return None
        table, low = (
            found[0].to(q.dtype).contiguous(),
            found[1],
        )  # `rows` makes views of it; the kernel reads it as q's dtype
        spread = table.amax(-1) - table.amin(-1)
        least, margin = -least_log(q.dtype), None
        if float(spread.max()) > least:
            lengths = [torch.linalg.vector_norm(t, dim=-1).amax(2) for t in (q, k)]
            margin = (lengths[0] * lengths[1]).amax(0)[:, None].mul_(2 * abs(plan.scale)).add_(least)
        if ctx.visible is not None:
            distance = own - torch.arange(low, low + table.shape[-1], device=table.device)
            hidden = distance < 0 if ctx.causal else torch.zeros_like(distance, dtype=torch.bool)
            if ctx.window.size is not None:
                hidden |= distance.abs() >= ctx.window.size
            table = table.masked_fill(hidden, float("-inf"))
        return cls(table, low, own, ctx.S if ctx.window.size is None else ctx.window.size, margin)

    def of_block(self, queries: Span, keys: Span) -> tuple[Tensor, list[int]]:
        """The table for some queries, -inf also where a key is negligible, and the first key in each head that is not."""
        if self.margin is None:
            return self.table, [keys.start] * len(self.table)
        nearest = self.own - self.low
        farthest = nearest - min(self.own + queries.start, self.window - 1)  # that every query sees
        highest = self.table[:, farthest : nearest + 1].amax(-1, keepdim=True)
        table = self.table.masked_fill(self.table < highest - self.margin, float("-inf"))
        first = (table > float("-inf")).to(torch.uint8).argmax(-1) + (self.low + queries.start)
        return table, [max(keys.start, key) for key in first.tolist()]

    def rows(self, table: Tensor, queries: Span, keys: Span) -> Tensor:
        """[G R W], a view of a table [G N], for queries in reverse order: then rows and columns both have a stride of 1."""
        rows, width = queries.stop - queries.start, keys.stop - keys.start
        start = keys.start - queries.stop + 1 - self.low  # of the last query and the first key
        before, after = max(0, -start), max(0, start + rows + width - 1 - table.shape[-1])
        if before or after:
            table = F.pad(table, (before, after), value=float("-inf"))
        place = table.storage_offset() + start + before
        return table.as_strided((len(table), rows, width), (table.stride(0), 1, 1), place)


def forward_by_kernel(
    plan: TilePlan, tensors: Sequence[Tensor], bias: DistanceBias, out: Tensor, logsumexp: Tensor
) -> None:
    """Fills out [B H T E] and logsumexp [B H T 1]. torch's kernel reads a mask by its strides, so a view will do."""
    q, k, v = tensors
    backwards, kernel = q.flip(2), torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    size = min(KERNEL_QUERIES, max(KERNEL_QUERIES // 4, plan.ctx.T // (4 if bias.margin is None else 8)))
    for queries, seen in blocks_of(plan.ctx, size):
        whole, firsts = bias.of_block(queries, seen)
        for heads, first in _runs(firsts):
            keys = Span(first, seen.stop)
            mask = bias.rows(whole[heads.cut], queries, keys)[None]
            own = backwards[:, heads.cut, plan.ctx.T - queries.stop : plan.ctx.T - queries.start]
            k_own, v_own, at = (
                k[:, heads.cut, keys.cut],
                v[:, heads.cut, keys.cut],
                (slice(None), heads.cut, queries.cut),
            )
            found, sums = kernel(own, k_own, v_own, attn_mask=mask, scale=plan.scale)
            out[at], logsumexp[(*at, 0)] = found.flip(2), sums.flip(2)


def _runs(firsts: Sequence[int]) -> list[tuple[Span, int]]:
    """Ranges of heads whose first keys are in the same tile, each with the first key of all."""
    found: list[tuple[Span, int]] = []
    for _, run in groupby(range(len(firsts)), key=lambda head: firsts[head] // geometry.KEYS):
        heads = list(run)
        found.append((Span(heads[0], heads[-1] + 1), min(firsts[head] for head in heads)))
    return found
