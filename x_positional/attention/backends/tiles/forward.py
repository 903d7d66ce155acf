"""The forward pass by tiles: by torch's kernel where it takes the bias as a mask, otherwise with an online softmax."""

from collections.abc import Sequence

from torch import Tensor

from x_positional.attention.backends.tiles.cap_and_sinks import add_sinks_
from x_positional.attention.backends.tiles.distance import DistanceBias, forward_by_kernel
from x_positional.attention.backends.tiles.geometry import TilePlan
from x_positional.attention.backends.tiles.online_softmax import forward_by_tiles


def forward_pass(
    plan: TilePlan, tensors: Sequence[Tensor], sinks: Tensor | None, inputs: Sequence[Tensor]
) -> tuple[Tensor, Tensor, DistanceBias | None]:
    """The result [B H T E], its log-sum-exp [B H T 1] and the bias as torch's kernel takes it. tensors: q, k, v."""
    q, _, v = tensors
    out, logsumexp = empty_results(q, v)
    bias = DistanceBias.of(plan, tensors, inputs)
    if bias is None:
        unrecorded = [t.detach() for t in inputs]  # terms need nothing for `differentiate` here
        forward_by_tiles(plan, tensors, unrecorded, out, logsumexp, sinks)
    else:
        forward_by_kernel(plan, tensors, bias, out, logsumexp)
        if sinks is not None:
            add_sinks_(sinks, out, logsumexp)
    return out, logsumexp, bias


def empty_results(q: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
    """Uninitialized, the first in the layout in which heads are joined."""
    joined = q.new_empty(q.shape[0], q.shape[2], q.shape[1], v.shape[3])
    return joined.transpose(1, 2), q.new_empty(*q.shape[:3], 1)
