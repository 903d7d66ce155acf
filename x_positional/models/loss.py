"""The loss of a language model: its targets, how they are reduced, and when it is computed by chunks inside of the model.

B batch, P prepended places, T tokens.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from x_positional.attention.backends.base import torch_func_runs
from x_positional.attention.inputs import INTEGERS, as_tensor, read_bounds
from x_positional.errors import InputError, did_you_mean, listed, shown
from x_positional.models.language import TransformerWrapper
from x_positional.modules.cross_entropy import NO_TARGET, PLAIN, TokenLoss, chunks_pay

Reduction: TypeAlias = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class LossOptions:
    """What is computed from the logits and the targets of a batch."""

    reduction: Reduction = "mean"
    """The mean over targets, their sum, or the loss of each place [B T-1], 0 where there is no target."""
    num_targets: float | Tensor | None = None
    """What the mean divides the sum by; None for the targets of this batch."""
    label_smoothing: float = 0.0
    """As in `TokenLoss`."""
    z_loss: float = 0.0
    """As in `TokenLoss`."""

    def problems(self) -> list[str]:
        """Every value that is out of range."""
        found, known = [], get_args(Reduction)
        if self.reduction not in known:
            hint = did_you_mean(self.reduction, known) if isinstance(self.reduction, str) else f"use one of {known}."
            found.append(f"reduction={shown(self.reduction)} is unknown; {hint}")
        elif self.num_targets is not None and self.reduction != "mean":
            found.append(
                f"num_targets is what a mean divides by, and reduction={self.reduction!r} divides by nothing. "
                "Leave one of them out."
            )
        if not _is_number(self.label_smoothing) or not 0 <= self.label_smoothing <= 1:
            found.append(
                f"label_smoothing={shown(self.label_smoothing)} must be a number from 0 to 1: the share of the target that is "
                "spread over the vocabulary."
            )
        if not _is_number(self.z_loss) or not 0 <= self.z_loss < math.inf:
            found.append(
                f"z_loss={shown(self.z_loss)} must be a finite number of at least 0, the weight of logsumexp(logits)^2: "
                "1e-4 in PaLM."
            )
        return found + self._num_targets_problems()

    def _num_targets_problems(self) -> list[str]:
        count = self.num_targets
        if isinstance(count, Tensor):
            if count.numel() == 1 and count.dtype != torch.bool and not count.is_complex():
                return []
            got = f"got {count.dtype} of shape {list(count.shape)}"
        elif count is None or (_is_number(count) and 0 <= count < math.inf):
            return []
        else:
            got = f"got {shown(count)}"
        return [
            f"num_targets must be one number of at least 0, as the sum of count_targets over all micro-batches; {got}."
        ]

    def token_loss(self) -> TokenLoss:
        """What the model computes from its logits."""
        if self.reduction != "none" and not self.label_smoothing and not self.z_loss:
            return PLAIN
        return TokenLoss(self.label_smoothing, self.z_loss, "none" if self.reduction == "none" else "sum")

    def reduced(self, loss: Tensor, targets: Tensor) -> Tensor:
        """The result of `token_loss` for targets [B T-1] -> the loss; without any target 0, at no device sync."""
        if self.reduction != "mean":
            return loss
        count = (targets != NO_TARGET).sum()
        if self.num_targets is None:
            return loss / count.clamp(min=1)
        total = self.num_targets
        total = total.reshape(()).to(loss.device) if isinstance(total, Tensor) else total
        return loss / torch.where(count == 0, 1, total)


def marked_labels(
    tokens: Tensor, labels: Any, loss_mask: Any, *, ignore_index: int, num_tokens: int, options: LossOptions
) -> Tensor:
    """[B T] the id that each place has as a target, NO_TARGET where it is none.

    Args:
        tokens: [B T] int64 ids, or [B T E] embeddings, which need labels.
        labels: As in `AutoregressiveWrapper.forward`.
        loss_mask: As there.
        ignore_index: The label of no target.
        num_tokens: V.
        options: Checked here too, so that all problems are reported at once.

    Raises:
        InputError: With every problem of labels, loss_mask and options.
    """
    problems, shape = options.problems(), tokens.shape[:2]
    if labels is not None:
        labels = as_tensor(labels, "labels").to(tokens.device)
        problems += _label_problems(labels, shape, ignore_index, num_tokens)
    elif tokens.ndim == 3:
        problems.append(
            "inputs_embeds contain no ids to predict. Pass labels=[batch, places], the target of each place."
        )
    if loss_mask is not None:
        loss_mask = as_tensor(loss_mask, "loss_mask").to(tokens.device)
        problems += _mask_problems(loss_mask, shape)
    if problems:
        raise InputError(problems[0] if len(problems) == 1 else listed("the loss cannot be computed:", problems))
    labels = tokens if labels is None else labels.long()
    labels = labels.masked_fill(labels == ignore_index, NO_TARGET)
    return labels if loss_mask is None else torch.where(loss_mask, labels, NO_TARGET)


def targets_after(labels: Tensor, prepended: int, present: Tensor | None, documents: Tensor | None) -> Tensor:
    """`marked_labels` [B T] -> [B P+T-1] the target of every place but the last: the label of the next one.

    NO_TARGET where either place holds no token or another document begins, and for prepended places. The last one of these
    predicts the first token of its row, padding between them or not.

    Args:
        labels: of each token.
        prepended: P.
        present: [B P+T] bool, True = a token or an embedding; None for all.
        documents: [B P+T] ids; None for one a row.
    """
    batch, length = labels.shape[0], prepended + labels.shape[1]
    if prepended:
        labels = torch.cat([labels.new_full((batch, prepended), NO_TARGET), labels], 1)
    present = None if present is None else present.to(labels.device)
    continues = continues_text(present, documents)
    targets = labels[:, 1:] if continues is None else torch.where(continues, labels[:, 1:], NO_TARGET)
    if present is None or not prepended:
        return targets
    place = torch.arange(length, device=labels.device)
    first = torch.where(present, place, length)[:, prepended:].amin(1, keepdim=True)  # of the tokens
    last = torch.where(present, place, -1)[:, :prepended].amax(1, keepdim=True)  # of what is prepended
    follows = (first < length) & (last >= 0)
    first, last = first.clamp(max=length - 1), last.clamp(min=0)
    if documents is not None:
        follows &= documents.gather(1, first) == documents.gather(1, last)
    return targets.scatter(1, last, torch.where(follows, labels.gather(1, first), targets.gather(1, last)))


def continues_text(present: Tensor | None, documents: Tensor | None) -> Tensor | None:
    """[B T] -> [B T-1] bool, whether places 1 .. T-1 and the ones before them hold tokens of one text; None: all do.

    Args:
        present: [B T] bool, True = a token; None for all.
        documents: [B T] ids, on the same device; None for one a row.
    """
    both = None if present is None else present[:, 1:] & present[:, :-1]
    if documents is None:
        return both
    same = documents[:, 1:] == documents[:, :-1]
    return same if both is None else both & same


def _mask_problems(loss_mask: Tensor, shape: Sequence[int]) -> list[str]:
    if loss_mask.dtype == torch.bool and loss_mask.shape == shape:
        return []
    return [
        f"loss_mask must be torch.bool of shape {list(shape)}, that of tokens, True = this token is a target; got "
        f"{loss_mask.dtype} of shape {list(loss_mask.shape)}. It is shifted here, as labels are; use .bool() for 0 and 1."
    ]


def _label_problems(labels: Tensor, shape: Sequence[int], ignore_index: int, num_tokens: int) -> list[str]:
    if labels.shape != shape or labels.dtype not in INTEGERS:
        return [
            f"labels must be integers of shape {list(shape)}, that of tokens; got {labels.dtype} of shape "
            f"{list(labels.shape)}. They are shifted here: pass the tokens, with {ignore_index} where there is no target."
        ]
    labels = labels.long()
    low, high = read_bounds(labels.masked_fill(labels == ignore_index, 0)) or (0, 0)
    if low >= 0 and high < num_tokens:
        return []
    return [
        f"label {low if low < 0 else high} is outside 0..{num_tokens - 1} (num_tokens={num_tokens}). "
        f"Where there is no target, pass ignore_index={ignore_index}."
    ]


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def sums_by_chunks(net: nn.Module, targets: Tensor, reduction: Literal["sum", "none"] = "sum") -> bool:
    """Whether to call `net(tokens, targets=targets)`, which never holds all logits.

    Only where they are large, and nothing else reads or changes them: hooks, subclasses, transforms of torch.func.
    """
    own = TransformerWrapper
    if not isinstance(net, own) or type(net).forward is not own.forward or type(net).logits is not own.logits:
        return False
    if {"forward", "logits"} & vars(net).keys() or net._forward_hooks:
        return False
    head = net.to_logits
    if head is not None and head._forward_hooks:
        return False
    columns, recomputed = net.config.logits_dim or net.num_tokens, reduction == "none" or net.unembedding() is None
    pay = chunks_pay(targets.numel(), columns, net.config.layers.dim, targets.device, recomputed)
    return pay and not torch_func_runs() and forward_ad._current_level < 0
