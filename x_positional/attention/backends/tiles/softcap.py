"""A soft cap on the scores of a tile (Gemma 2, arXiv:2408.00118, section 2)."""

from collections.abc import Sequence

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
