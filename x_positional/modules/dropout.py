"""Dropout that costs nothing where it does nothing."""

from torch import Tensor, nn


class Dropout(nn.Dropout):
    """`nn.Dropout`, left out in eval mode and at a rate of 0 unless it has hooks: torch's takes as long as a small layer."""

    def __call__(self, x: Tensor) -> Tensor:
        acts = (self.training and self.p) or self._forward_hooks or self._forward_pre_hooks or self._backward_hooks
        return super().__call__(x) if acts else x
