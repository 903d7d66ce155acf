"""Training windows as a pure function of (seed, index), so a resumed run needs no record of the windows it has seen.

Shapes: B batch, T tokens in one window.
"""

import numpy as np
import torch
from torch import Tensor

from x_positional.errors import ArgumentError


class Windows:
    """Cuts a sequence of ids into windows of `seq_len + 1` tokens, in a new order and at a new offset each epoch.

    Each epoch visits every window once. Neighbouring windows share one token, so every token is predicted once per
    epoch, except those that the random offset cuts off at both ends.
    """

    def __init__(self, tokens: np.ndarray, seq_len: int, seed: int) -> None:
        if len(tokens) < seq_len + 1:
            raise ArgumentError(f"{len(tokens)} tokens are fewer than one window of seq_len + 1 = {seq_len + 1}")
        self._tokens = tokens
        self._seq_len = seq_len
        self._seed = seed
        self._count = max(1, (len(tokens) - seq_len) // seq_len)
        self._epoch = -1
        self._starts = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Windows per epoch."""
        return self._count

    def batch(self, first: int, count: int) -> Tensor:
        """Windows `first` to `first + count - 1` of the whole run, as int64 [B, T + 1]."""
        rows = [self._window(index) for index in range(first, first + count)]
        return torch.from_numpy(np.stack(rows))

    def _window(self, index: int) -> np.ndarray:
        epoch, place = divmod(index, self._count)
        if epoch != self._epoch:
            self._starts = self._epoch_starts(epoch)
            self._epoch = epoch
        start = self._starts[place]
        return np.asarray(self._tokens[start : start + self._seq_len + 1], dtype=np.int64)

    def _epoch_starts(self, epoch: int) -> np.ndarray:
        random = np.random.Generator(np.random.PCG64([self._seed, epoch]))
        slack = len(self._tokens) - 1 - self._count * self._seq_len
        offset = int(random.integers(0, min(slack, self._seq_len - 1) + 1))
        return offset + self._seq_len * random.permutation(self._count)
