"""Training windows as a pure function of (seed, index), so that a resumed run needs no record of what it has seen.

Shapes: B batch, T tokens in one window.
"""

import numpy as np
import torch
from torch import Tensor


class Windows:
    """Cuts a row of ids into windows of `seq_len + 1`, in a new order and at a new offset each epoch.

    Each epoch visits every window once. The next window starts on the last token of the one before, so every token
    is predicted once an epoch (but for those that the random offset leaves out at both ends).
    """

    def __init__(self, tokens: np.ndarray, seq_len: int, seed: int) -> None:
        if len(tokens) < seq_len + 1:
            raise ValueError(f"{len(tokens)} tokens cannot fill one window of seq_len + 1 = {seq_len + 1}")
        self._tokens = tokens
        self._seq_len = seq_len
        self._seed = seed
        self._count = max(1, (len(tokens) - seq_len) // seq_len)
        self._epoch = -1
        self._starts = np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Windows in one epoch."""
        return self._count

    def batch(self, first: int, count: int) -> Tensor:
        """Windows number `first` to `first + count - 1` of the whole run: int64 [B, T + 1]."""
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
