"""Validation loss in nats and bits, and the bits per byte of a general-purpose compressor for comparison.

Shapes: B batch, T tokens in one window, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from x_positional.models.loss import sums_by_chunks
from x_positional.modules.cross_entropy import NO_TARGET
from x_positional.progress import Track, silent
from x_positional.schemes.precision import widened
from x_positional.training.data.token_cache import Split
from x_positional.training.finetune.packing import PackedRows


@dataclass(frozen=True)
class Score:
    """Mean loss over `tokens` predictions, in nats per token."""

    loss: float
    tokens: int
    bytes_per_token: float | None

    @property
    def bits(self) -> dict[str, float]:
        """`bits_per_token`, and `bits_per_byte` if the text is known."""
        return bits(self.loss, self.bytes_per_token)


def bits(loss: float, bytes_per_token: float | None) -> dict[str, float]:
    """A loss in nats per token as `bits_per_token`, and as `bits_per_byte` if `bytes_per_token` is known."""
    per_token = loss / math.log(2)
    if bytes_per_token is None:
        return {"bits_per_token": per_token}
    return {"bits_per_token": per_token, "bits_per_byte": per_token / bytes_per_token}


@dataclass(frozen=True)
class Scored:
    """Inputs and targets [B, T], -100 where there is no target; for packed rows, the document of each token."""

    inputs: Tensor
    targets: Tensor
    documents: Tensor | None = None

    def to(self, device: torch.device) -> "Scored":
        documents = None if self.documents is None else self.documents.to(device)
        return Scored(self.inputs.to(device), self.targets.to(device), documents)


@dataclass(frozen=True)
class EvalWindows:
    """The windows to score. Each scores its last `stride` tokens; the tokens before them are context only."""

    starts: np.ndarray
    """Index of the first token of each window."""
    seq_len: int
    stride: int

    def read(self, data: Split, starts: np.ndarray) -> Scored:
        """The windows that begin at `starts`; targets of context tokens and past the end are no targets."""
        inputs = np.zeros((len(starts), self.seq_len), dtype=np.int64)
        targets = np.full((len(starts), self.seq_len), NO_TARGET, dtype=np.int64)
        for row, start in enumerate(starts):
            window = np.asarray(data.tokens[start : start + self.seq_len + 1], dtype=np.int64)
            inputs[row, : len(window) - 1] = window[:-1]
            context = 0 if start == 0 else self.seq_len - self.stride
            targets[row, context : len(window) - 1] = window[1:][context:]
        return Scored(torch.from_numpy(inputs), torch.from_numpy(targets))


@dataclass(frozen=True)
class EvalRows:
    """The packed rows to score."""

    starts: np.ndarray
    """Number of each row."""

    def read(self, data: PackedRows, starts: np.ndarray) -> Scored:
        """The rows with these numbers."""
        rows = data.rows([int(place) for place in starts])
        return Scored(rows["tokens"][:, :-1], rows["labels"][:, 1:], rows["document_ids"][:, :-1])


def eval_rows(rows: int, seq_len: int, *, limit: int | None = None) -> EvalRows:
    """About `limit` tokens of packed rows, evenly spaced; None is all of them."""
    count = rows if limit is None else min(rows, max(1, limit // seq_len))
    return EvalRows(np.linspace(0, rows - 1, count, dtype=np.int64))


def eval_windows(count: int, seq_len: int, *, limit: int | None = None, stride: int | None = None) -> EvalWindows:
    """Windows over a sequence of `count` ids.

    Args:
        count: Ids in the sequence.
        seq_len: Tokens the model sees in one window.
        limit: Score about this many tokens, in evenly spaced windows. None scores every token but the first, once.
        stride: New tokens per window, at most (and by default) `seq_len`. A smaller stride gives every token after the
            first window at least `seq_len - stride` tokens of context.
    """
    stride = seq_len if stride is None else stride
    starts = np.arange(0, max(1, count - 1 - seq_len + stride), stride)
    if limit is not None and len(starts) > max(1, limit // stride):
        starts = starts[np.linspace(0, len(starts) - 1, max(1, limit // stride), dtype=np.int64)]
    return EvalWindows(starts, seq_len, stride)


@dataclass(frozen=True)
class Share:
    """The part of the batches that this process scores."""

    index: int = 0
    count: int = 1
    total: Callable[[Tensor], Tensor] = lambda tensor: tensor
    """The sum of a tensor over all processes."""


ALL = Share()


@torch.no_grad()
def evaluate(
    model: nn.Module,
    data: Split | PackedRows,
    windows: EvalWindows | EvalRows,
    *,
    batch_size: int,
    device: torch.device,
    autocast: torch.autocast,
    track: Track = silent,
    share: Share = ALL,
) -> Score:
    """Mean next-token cross-entropy over windows or packed rows; restores the model's training mode afterwards.

    With a share, every process scores some of the batches, and the result is that of all.
    """
    was_training = model.training
    model.eval()
    total, count = torch.zeros((), dtype=torch.float64), 0
    batches = [windows.starts[i : i + batch_size] for i in range(0, len(windows.starts), batch_size)]
    for first in track(range(0, len(batches), share.count), "validating"):
        own = first + share.index
        starts = batches[min(own, len(batches) - 1)]  # as many passes in every process, for sharded models
        batch = windows.read(data, starts)  # type: ignore[arg-type]
        loss = _summed_loss(model, batch.to(device), autocast)
        if own < len(batches):
            total += loss.cpu().double()
            count += int((batch.targets != NO_TARGET).sum())
    model.train(was_training)
    if share.count > 1:
        found = share.total(torch.stack([total, torch.tensor(count, dtype=torch.float64)]).to(device))
        total, count = found[0], int(found[1])
    return Score(float(total) / count, count, data.bytes_per_token)


def _summed_loss(model: nn.Module, batch: Scored, autocast: torch.autocast) -> Tensor:
    """The sum of the cross entropies, in float32 or wider."""
    targets = batch.targets
    places = {} if batch.documents is None else {"document_ids": batch.documents}
    with autocast:
        if sums_by_chunks(model, targets):
            return model(batch.inputs, targets=targets, **places)  # type: ignore[no-any-return]
        logits = model(batch.inputs, **places)
    wide = widened(logits)
    return F.cross_entropy(wide.flatten(0, 1), targets.flatten(), ignore_index=NO_TARGET, reduction="sum")


def xz_bits_per_byte(text: bytes) -> float:
    """Bits per byte of `text` compressed with `xz -9` (LZMA, preset 9). Raises ImportError if Python lacks lzma."""
    import lzma

    return 8.0 * len(lzma.compress(text, preset=9)) / len(text)
