"""Validation loss in nats and bits, and what a general compressor needs for the same text.

Shapes: B batch, T tokens in one window, V vocabulary.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from x_positional.training.data.corpus import Part
from x_positional.training.progress import Track, silent


@dataclass(frozen=True)
class Score:
    """Mean loss over `tokens` predictions, in nats per token."""

    loss: float
    tokens: int
    bytes_per_token: float | None

    @property
    def bits(self) -> dict[str, float]:
        """`bits_per_token`, and `bits_per_byte` where the text is known."""
        return bits(self.loss, self.bytes_per_token)


def bits(loss: float, bytes_per_token: float | None) -> dict[str, float]:
    """Nats per token as `bits_per_token`, and as `bits_per_byte` where the number of bytes is known."""
    per_token = loss / math.log(2)
    if bytes_per_token is None:
        return {"bits_per_token": per_token}
    return {"bits_per_token": per_token, "bits_per_byte": per_token / bytes_per_token}


@dataclass(frozen=True)
class Plan:
    """Which windows are scored: `stride` new tokens each, with what is before them in the window as context."""

    starts: np.ndarray
    seq_len: int
    stride: int


def plan_windows(count: int, seq_len: int, *, limit: int | None = None, stride: int | None = None) -> Plan:
    """Windows over a row of `count` ids.

    With `limit`, about that many predictions, in windows spread evenly over the row; without it every id but the first
    is predicted exactly once. A `stride` below seq_len gives every prediction but the first ones at least
    `seq_len - stride` ids of context.
    """
    stride = seq_len if stride is None else stride
    starts = np.arange(0, max(1, count - 1 - seq_len + stride), stride)
    if limit is not None and len(starts) > max(1, limit // stride):
        starts = starts[np.linspace(0, len(starts) - 1, max(1, limit // stride), dtype=np.int64)]
    return Plan(starts, seq_len, stride)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    part: Part,
    plan: Plan,
    *,
    batch_size: int,
    device: torch.device,
    autocast: torch.autocast,
    track: Track = silent,
) -> Score:
    """Mean cross-entropy of the next token over the windows of `plan`; the model's mode is put back afterwards."""
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    count = 0
    batches = [plan.starts[i : i + batch_size] for i in range(0, len(plan.starts), batch_size)]
    for starts in track(batches, "validating"):
        inputs, targets = _windows(part.tokens, starts, plan)
        with autocast:
            logits = model(inputs.to(device))
        flat = logits.float().flatten(0, 1), targets.to(device).flatten()
        total += F.cross_entropy(*flat, ignore_index=-100, reduction="sum").cpu().double()
        count += int((targets != -100).sum())
    model.train(was_training)
    return Score(float(total) / count, count, part.bytes_per_token)


def _windows(tokens: np.ndarray, starts: np.ndarray, plan: Plan) -> tuple[Tensor, Tensor]:
    """Inputs and targets [B, T]; a target of -100 is context or past the end and is not scored."""
    inputs = np.zeros((len(starts), plan.seq_len), dtype=np.int64)
    targets = np.full((len(starts), plan.seq_len), -100, dtype=np.int64)
    for row, start in enumerate(starts):
        window = np.asarray(tokens[start : start + plan.seq_len + 1], dtype=np.int64)
        inputs[row, : len(window) - 1] = window[:-1]
        fresh = 0 if start == 0 else plan.seq_len - plan.stride
        targets[row, fresh : len(window) - 1] = window[1:][fresh:]
    return torch.from_numpy(inputs), torch.from_numpy(targets)


def xz_bits_per_byte(text: bytes) -> float:
    """Bits that `xz -9` (LZMA, preset 9) needs for each byte of `text`. Raises ImportError in a Python without it."""
    import lzma

    return 8.0 * len(lzma.compress(text, preset=9)) / len(text)
