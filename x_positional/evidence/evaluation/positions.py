"""The loss by position inside a long window: where the context stops helping, and where the loss rises."""

from itertools import pairwise

import numpy as np
import torch

from x_positional.evidence.evaluation.lengths import TOKENS_AT_ONCE, LengthSettings
from x_positional.evidence.evaluation.results import PositionLoss
from x_positional.evidence.evaluation.scoring import Scorer, cut
from x_positional.models.language import TransformerWrapper
from x_positional.progress import Track, silent


def loss_by_position(
    model: TransformerWrapper,
    tokens: np.ndarray,
    length: int,
    *,
    windows: int = 16,
    bins: int = 32,
    start_token: int | None = None,
    device: torch.device | None = None,
    autocast: torch.autocast | None = None,
    track: Track = silent,
) -> PositionLoss:
    """The loss of every token of windows of `length` tokens but the first, averaged over windows and bins of positions.

    Args:
        model: A decoder with logits.
        tokens: Held-out ids [N].
        length: Tokens in a window.
        windows: Windows, at most: as many as the text has room for, evenly spaced.
        bins: Bins of equal width; the first is divided into ones that double.
        start_token: As in `LengthSettings`.
        device: As in `loss_by_length`.
        autocast: As there.
        track: Shows progress.

    Raises:
        UserError: The text is shorter than a window, the model refuses this length, or memory does not suffice.
        ArgumentError: The model does not predict the next token.
    """
    edges = bin_edges(length, bins)
    ends = LengthSettings((length,), targets=length - 1, windows=windows).ends(len(tokens))
    scorer, each = Scorer(model, device, autocast), max(1, TOKENS_AT_ONCE // length)
    total = torch.zeros(length - 1, dtype=torch.float64)
    for first in track(range(0, len(ends), each), "loss by position"):
        total += scorer.losses(cut(tokens, ends[first : first + each], length, start_token), length - 1).sum(0)
    by_position = (total / len(ends)).numpy()
    means = [by_position[low - 1 : high - 1].mean() for low, high in pairwise(edges)]
    return PositionLoss(
        length=length, edges=edges, loss=tuple(float(mean) if np.isfinite(mean) else None for mean in means)
    )


def bin_edges(length: int, bins: int) -> tuple[int, ...]:
    """Positions 1 to length - 1 in bins of equal width; the first one is divided at powers of two, where the loss falls fast."""
    width = -(-length // bins)
    doubling = [2**i for i in range(width.bit_length()) if 2**i < width]
    return (*doubling, *range(width, length, width), length)
