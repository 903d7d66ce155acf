"""The loss by context length: the same target tokens at every length, so that only the context differs.

Window i ends at the same token at every length. At length L the model reads the L tokens up to that end and is scored on the
last of them. Sliding evaluation is the same with ends one stride apart, so that consecutive tokens are scored once each.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from x_positional.errors import ArgumentError, UserError, counted, listed
from x_positional.evidence.evaluation.results import LengthLoss
from x_positional.evidence.evaluation.scoring import Scorer, cut
from x_positional.models.language import TransformerWrapper
from x_positional.progress import Track, silent

TOKENS_AT_ONCE = 8192
"""Tokens of one pass, at most, unless a single window has more."""


@dataclass(frozen=True)
class LengthSettings:
    """Which windows are scored."""

    lengths: tuple[int, ...]
    """Context lengths: tokens of context and target in a window. Sorted, each one once."""
    targets: int = 64
    """Tokens scored at the end of each window."""
    windows: int | None = 32
    """Windows, at most: as many as the text has room for without scoring a token twice. None is all."""
    stride: int | None = None
    """Sliding evaluation: windows one stride apart, each scored on its last `stride` tokens in place of `targets`."""
    start_token: int | None = None
    """An id in place of the first token of every window, for models trained with one at the start of every text."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "lengths", tuple(sorted(set(self.lengths))))
        problems = [] if self.lengths else ["lengths is empty; give at least one length"]
        if self.scored < 1:
            name = "targets" if self.stride is None else "stride"
            problems.append(f"{name}={self.scored} must be at least 1")
        if self.windows is not None and self.windows < 1:
            problems.append(f"windows={self.windows} must be at least 1")
        problems += [
            f"length {length} does not exceed the {self.scored} scored tokens, the first of which needs context; "
            "leave the length out or score fewer tokens"
            for length in self.lengths
            if length <= self.scored
        ]
        if problems:
            raise ArgumentError(
                problems[0] if len(problems) == 1 else listed("the lengths cannot be scored:", problems)
            )

    @property
    def scored(self) -> int:
        """Tokens scored in each window."""
        return self.targets if self.stride is None else self.stride

    def ends(self, tokens: int) -> np.ndarray:
        """One past the last token of each window, in a text of `tokens` tokens.

        Raises:
            UserError: The text is shorter than the longest length.
        """
        longest, scored = self.lengths[-1], self.scored
        if tokens < longest:
            raise UserError(
                f"the text has {tokens:,} tokens; a window of the longest length needs {longest:,}. "
                f"Give a longer text, or lengths up to {tokens:,}"
            )
        most = 1 + (tokens - longest) // scored
        count = most if self.windows is None else min(most, self.windows)
        if self.stride is not None:
            return longest + scored * np.arange(count)
        return np.linspace(longest, tokens, count).astype(np.int64) if count > 1 else np.array([tokens])

    def protocol(self, tokens: int) -> str:
        """The protocol in words, for a text of `tokens` tokens. Raises UserError as `ends` does."""
        count = len(self.ends(tokens))
        start = "" if self.start_token is None else f", each window starting with token {self.start_token}"
        if self.stride is None:
            return f"final {counted(self.targets, 'token')} of {counted(count, 'window')}, same targets at every length{start}"
        return (
            f"sliding: {counted(count * self.stride, 'consecutive token')}, stride {self.stride}, "
            f"same targets at every length{start}"
        )


def loss_by_length(
    model: TransformerWrapper,
    tokens: np.ndarray,
    settings: LengthSettings,
    *,
    device: torch.device | None = None,
    autocast: torch.autocast | None = None,
    track: Track = silent,
) -> tuple[LengthLoss, ...]:
    """The mean loss of the same targets at every length, in nats per token.

    A length at which the model cannot run, or has a loss that is not finite, has no loss but a reason.

    Args:
        model: A decoder with logits.
        tokens: Held-out ids [N].
        settings: Lengths and windows.
        device: Where the windows go; None is the device of the model.
        autocast: Entered around each pass; None is none.
        track: Shows progress. Each of its items is the same windows at every length, so that its estimate of the time holds.

    Raises:
        UserError: The text is shorter than the longest length.
        ArgumentError: The model does not predict the next token.
    """
    ends, scorer = settings.ends(len(tokens)), Scorer(model, device, autocast)
    each = max(1, TOKENS_AT_ONCE // settings.lengths[-1])
    found: dict[int, list[float]] = {length: [] for length in settings.lengths}
    refused: dict[int, str] = {}
    for first in track(range(0, len(ends), each), "loss by length"):
        for length in settings.lengths:
            if length in refused:
                continue
            windows = cut(tokens, ends[first : first + each], length, settings.start_token)
            try:
                found[length] += scorer.losses(windows, settings.scored).mean(1).tolist()
            except UserError as reason:
                refused[length] = str(reason)
    return tuple(_entry(length, found[length], settings.scored, refused.get(length)) for length in settings.lengths)


def _entry(length: int, windows: Sequence[float], scored: int, reason: str | None) -> LengthLoss:
    if reason is not None:
        return LengthLoss(length=length, loss=None, reason=reason)
    wrong = sum(not math.isfinite(loss) for loss in windows)
    if wrong:
        reason = f"the loss is not finite in {wrong} of {counted(len(windows), 'window')}"
        return LengthLoss(length=length, loss=None, reason=reason)
    mean = math.fsum(windows) / len(windows)
    return LengthLoss(length=length, loss=mean, targets=scored * len(windows), windows=tuple(windows))
