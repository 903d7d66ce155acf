"""The loss of a language model: what counts as a target, and micro-batches that add up to one batch.

B batch, T tokens, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.testing.checks_batch import LENGTHS, padded
from x_positional.testing.expect import Expect
from x_positional.testing.subject import Subject

LABEL_SMOOTHING, Z_LOSS = 0.1, 0.01
PARTS: dict[str, Any] = {"label_smoothing": LABEL_SMOOTHING, "z_loss": Z_LOSS}
ACCUMULATED = 1e-6
"""Largest difference between the micro-batches and one batch in float64, of losses and gradients of size 1. Tables of positions
are float32, and equal in both."""


def labels(subject: Subject, expect: Expect) -> None:
    """With labels and a loss mask, label smoothing and z-loss included, the loss is the one computed by hand from the logits of the
    marked places; micro-batches of one row each add up to the loss and the gradients of one padded batch."""
    subject.need_decoder()
    with torch.no_grad():
        _of_logits(subject, expect)
    _accumulated(subject, expect)


def _of_logits(subject: Subject, expect: Expect) -> None:
    tokens, others = subject.tokens(13), subject.tokens(13, seed=5)
    counts, ignored = subject.tokens(13, seed=6) % 3 > 0, subject.tokens(13, seed=7) % 4 == 0
    model, given = subject.model("decoder"), {"labels": others.masked_fill(ignored, -100), "loss_mask": counts}
    logits = model(tokens[:, :-1]).double()
    log_p, normalizer = logits.log_softmax(-1), logits.logsumexp(-1)
    own = -log_p.gather(-1, others[:, 1:, None])[..., 0]
    each = (1 - LABEL_SMOOTHING) * own - LABEL_SMOOTHING * log_p.mean(-1) + Z_LOSS * normalizer.square()
    want = torch.where((counts & ~ignored)[:, 1:], each, 0).float()
    wrapper = AutoregressiveWrapper(model)
    expect.equal(wrapper(tokens, **given, **PARTS, reduction="none"), want, "the loss of each target")
    mean = want.sum() / (counts & ~ignored)[:, 1:].sum()
    expect.equal(wrapper(tokens, **given, **PARTS), mean, "the mean over targets")


def _accumulated(subject: Subject, expect: Expect) -> None:
    """Padding is on the left, where a row of the batch and the row alone leave out the same last token."""
    wrapper = AutoregressiveWrapper(subject.exact("decoder"))
    rows = [row[:n] for row, n in zip(subject.tokens(11), LENGTHS, strict=True)]
    tokens, mask = padded(rows, "left", subject.tokens(14, seed=4))
    total = wrapper.count_targets(tokens, mask)
    whole = _with_gradients(wrapper, wrapper(tokens, mask, **PARTS))
    alone = [_with_gradients(wrapper, wrapper(row[None], num_targets=total, **PARTS)) for row in rows]
    for name, want in whole.items():
        got = torch.stack([of[name] for of in alone]).sum(0)
        size = max(1.0, want.abs().max().item())
        expect.equal(got / size, want / size, f"micro-batches of one row and one batch, {name}", ACCUMULATED)


def _with_gradients(wrapper: AutoregressiveWrapper, loss: Tensor) -> dict[str, Tensor]:
    """The loss, and the gradient of every parameter by name; 0 where it has none."""
    named = {f"gradient of {name}": p for name, p in wrapper.net.named_parameters() if p.requires_grad}
    if not named:
        return {"loss": loss}
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True, materialize_grads=True)
    return {"loss": loss.detach(), **dict(zip(named, found, strict=True))}
