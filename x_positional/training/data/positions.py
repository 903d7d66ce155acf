"""Positions drawn for each training window, so that short windows show a model the positions of a long text.

Shapes: B batch, T tokens in one window.
"""

from typing import Literal

import numpy as np
import torch
from torch import Tensor

from x_positional.training.data.windows import Windows

Draw = Literal["random", "pose"]
STREAM = 1
"""Keeps these numbers apart from those that order the windows; not 0, which a seed sequence ignores at its end."""


class PositionedWindows:
    """Windows whose tokens stand at drawn positions: a pure function of (seed, index), as the windows themselves.

    Args:
        windows: Of T + 1 tokens, of which the model reads T.
        draw: `random` or `pose`.
        limit: Positions are below this; at least T.
        seed: Of the run.
        chunks: Of `pose`.
    """

    def __init__(self, windows: Windows, draw: Draw, limit: int, seed: int, chunks: int) -> None:
        self._windows, self._draw, self._limit, self._seed, self._chunks = windows, draw, limit, seed, chunks

    def __len__(self) -> int:
        """Windows per epoch."""
        return len(self._windows)

    def batch(self, first: int, count: int) -> dict[str, Tensor]:
        """Windows `first` to `first + count - 1` of the whole run: tokens and positions, int64 [B, T + 1] each."""
        tokens = self._windows.batch(first, count)
        rows = [self._row(index, tokens.shape[1] - 1) for index in range(first, first + count)]
        return {"tokens": tokens, "positions": torch.from_numpy(np.stack(rows))}

    def _row(self, index: int, length: int) -> np.ndarray:
        """[T + 1]. The last token is only a target: no model reads its position, which is the next one."""
        random = np.random.Generator(np.random.PCG64([self._seed, index, STREAM]))
        if self._draw == "random":
            found = random_positions(length, self._limit, random)
        else:
            found = skipped_positions(length, self._limit, self._chunks, random)
        return np.append(found, found[-1] + 1)


def random_positions(length: int, limit: int, random: np.random.Generator) -> np.ndarray:
    """`length` distinct positions below `limit`, in order: every subset is equally likely.

    Source: Ruoss et al. 2023, "Randomized Positional Encodings Boost Length Generalization of Transformers", arXiv:2305.16843.

    Returns:
        int64 [T].
    """
    return np.sort(random.choice(limit, length, replace=False, shuffle=False)).astype(np.int64)


def skipped_positions(length: int, limit: int, chunks: int, random: np.random.Generator) -> np.ndarray:
    """Consecutive positions in each of `chunks` chunks, with gaps between them, all below `limit` (PoSE).

    Chunk i is moved by u_i, drawn from u_{i-1} to `limit` - `length` with equal probability; u_0 = 0. The paper leaves open how the
    chunks' lengths are drawn: here every way to cut the window into chunks is equally likely. The text of a window is contiguous,
    the paper's v_i = 0 (its appendix A measures little difference).

    Source: Zhu et al. 2024, "PoSE: Efficient Context Window Extension of LLMs via Positional Skip-wise Training", arXiv:2309.10400,
    equations 3 and 4.

    Returns:
        int64 [T].
    """
    starts = 1 + np.sort(random.choice(length - 1, chunks - 1, replace=False))
    skip, positions = 0, np.arange(length, dtype=np.int64)
    for start, stop in zip(starts, [*starts[1:], length], strict=True):
        skip = int(random.integers(skip, limit - length, endpoint=True))
        positions[start:stop] += skip
    return positions
