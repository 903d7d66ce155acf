"""What a layer adds to a softmax besides biases: a soft cap on the scores (Gemma 2, arXiv:2408.00118, section 2), and sinks, a key
without a value in each head, whose logit is learned (gpt-oss).

B batch, T query tokens, H heads, E value dim.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from x_positional.schemes.terms import ScoreBlock, ScoreTerm


class SoftcapTerm(ScoreTerm):
    """c * tanh(score / c), after all biases.

    Args:
        cap: c.
        keeps_hidden: hidden keys stay at -inf, for a transform of whole rows that follows; otherwise they become -c, and the
            softmax hides them.
    """

    inputs = ()

    def __init__(self, cap: float, keeps_hidden: bool):
        self.cap, self.keeps_hidden = cap, keeps_hidden

    @property
    def arguments(self) -> tuple[Any, ...]:
        return self.cap, self.keeps_hidden

    def add(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        hidden = scores.isneginf() if self.keeps_hidden else None
        kept = scores.div_(self.cap).tanh_().clone()
        scores.mul_(self.cap)
        if hidden is not None:
            scores.masked_fill_(hidden, float("-inf"))
        return kept

    def differentiate(self, grad: Tensor, kept: Tensor, sums: Sequence[Tensor | None], block: ScoreBlock) -> None:
        grad.mul_(kept.square_().neg_().add_(1))

    def recorded(self, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Tensor:
        least = torch.finfo(scores.dtype).min
        capped = self.cap * torch.tanh(scores / self.cap)
        return capped.masked_fill(scores.detach() < least / 2, least)


def add_sinks_(sinks: Tensor, out: Tensor, logsumexp: Tensor) -> None:
    """Change a result [B H T E] and its log-sum-exp [B H T 1], in place, to those with sinks [H]."""
    joint = logsumexp.logaddexp(sinks[:, None, None])
    out.mul_(logsumexp.sub(joint).exp_())
    logsumexp.copy_(joint)


def sink_gradient(sinks: Tensor, out: Tensor, logsumexp: Tensor, grad: Tensor) -> Tensor:
    """[H], from the result, its log-sum-exp and its gradient: minus each sink's probability times result . gradient."""
    probabilities = (sinks[:, None, None] - logsumexp).exp_()
    return (grad * out).sum(-1, keepdim=True).mul_(probabilities).sum((0, 2, 3)).neg_()
