"""Cross entropy from hidden states by chunks of rows, so that the logits of a large vocabulary are never held whole.

While the logits of a chunk exist, the gradients that follow from them are computed too, as in Liger Kernel (arXiv:2410.10989,
section 3.2): forward keeps the gradients of the sum, backward scales them, and no product is computed twice. Where the map to
logits is not known as tensors, backward computes the logits of each chunk again.

R rows (tokens), M channels, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from x_positional.schemes.precision import wide_dtype, widened

NO_TARGET = -100
"""The target of a row that does not count."""
ROWS, ROWS_ON_A_GPU = 256, 1024
"""Rows of a chunk; the second is an estimate. Fewer take longer (on a CPU by a quarter with 64): each chunk reads the matrix and
the sum of its gradients, for which arithmetic must leave time."""
FEWEST = 2**25
"""Logits above which chunks are used: 128 MB in float32, and twice as much again in backward."""
FEWEST_RECOMPUTED = 2**28
"""The same where backward computes logits again, which takes time: 1 GB in float32, and twice as much again in backward."""


@dataclass(frozen=True)
class TokenLoss:
    """The loss of a target t: (1 - s) * -log p(t) + s / V * sum_v -log p(v) + z * (log sum_v exp(logit_v))^2, in nats."""

    label_smoothing: float = 0.0
    """s: the share of the target that every id gets (Szegedy et al. 2016, arXiv:1512.00567, section 7)."""
    z_loss: float = 0.0
    """z: keeps the normalizer of the softmax near 1 (PaLM: Chowdhery et al. 2022, arXiv:2204.02311, section 5)."""
    reduction: Literal["sum", "none"] = "sum"
    """The sum [] over all targets, or the loss of each row [R], 0 where there is no target."""

    def of_logits(self, logits: Tensor, targets: Tensor) -> Tensor:
        """[R V], [R] -> the loss [] or [R], in float32 or wider."""
        logits, smoothing = widened(logits), self.label_smoothing
        nats = F.cross_entropy(
            logits, targets, ignore_index=NO_TARGET, reduction=self.reduction, label_smoothing=smoothing
        )
        if not self.z_loss:
            return nats
        squares = torch.where(targets == NO_TARGET, 0, self.z_loss * logits.logsumexp(-1).square())
        return nats + (squares.sum() if self.reduction == "sum" else squares)


PLAIN = TokenLoss()
"""The sum of the cross entropies."""


@dataclass(frozen=True)
class Unembedding:
    """Logits as a function of tensors: cap * tanh(z / cap) of z = factor * matrix x + bias."""

    matrix: Tensor
    """[V M]."""
    bias: Tensor | None = None
    """[V]."""
    factor: float = 1.0
    cap: float | None = None
    """None leaves out the tanh."""


def chunks_pay(rows: int, columns: int, width: int, device: torch.device, recomputed: bool) -> bool:
    """Whether chunks take less memory than whole logits, and no more time, or little for what they save.

    Args:
        rows: R.
        columns: V.
        width: M. Backward holds one more gradient of the matrix, so with fewer rows than channels little is saved.
        device: of the hidden states.
        recomputed: backward computes logits again.
    """
    fewest = FEWEST_RECOMPUTED if recomputed else FEWEST
    return rows * columns > fewest and rows >= max(width, 2 * _rows_of_chunk(device))


def cross_entropy_by_chunks(
    x: Tensor,
    targets: Tensor,
    logits: Callable[[Tensor], Tensor],
    unembedding: Unembedding | None,
    loss: TokenLoss = PLAIN,
) -> Tensor:
    """The loss [], or [R] with reduction="none", in float32 or wider.

    Args:
        x: [R M] hidden states.
        targets: [R] ids, `NO_TARGET` where there is none.
        logits: [R M] -> [R V], called for each chunk, and again in backward, unless `unembedding` is given and the loss a sum.
        unembedding: the same function as tensors.
        loss: what is computed.
    """
    device = x.device.type
    if unembedding is None or loss.reduction == "none":
        return _recomputed(x, targets, logits, loss)
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
    elif x.dtype != unembedding.matrix.dtype:
        return _recomputed(x, targets, logits, loss)  # raises torch's error
    x = x if unembedding.factor == 1 else x * unembedding.factor
    tensors = x, unembedding.matrix, unembedding.bias
    wanted = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in tensors]
    return _summed(*tensors, targets, unembedding.cap, loss.label_smoothing, loss.z_loss, *wanted)[0]


def _recomputed(x: Tensor, targets: Tensor, logits: Callable[[Tensor], Tensor], loss: TokenLoss) -> Tensor:
    """The loss, recorded by autograd without the logits, which backward computes again."""

    def of_chunk(x: Tensor, targets: Tensor) -> Tensor:
        return loss.of_logits(logits(x), targets)

    rows = _rows_of_chunk(x.device)
    parts = zip(x.split(rows), targets.split(rows), strict=True)
    if torch.is_grad_enabled():
        found: list[Tensor] = [checkpoint(of_chunk, *part, use_reentrant=False) for part in parts]  # type: ignore[misc]
    else:
        found = [of_chunk(*part) for part in parts]
    return torch.stack(found).sum() if loss.reduction == "sum" else torch.cat(found)


def _rows_of_chunk(device: torch.device) -> int:
    return ROWS if device.type == "cpu" else ROWS_ON_A_GPU


@torch.library.custom_op("x_positional::summed_cross_entropy", mutates_args=())
def _summed(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    cap: float | None,
    label_smoothing: float,
    z_loss: float,
    for_x: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """[R M], [V M], [V], [R] -> the sum [], and its gradients for x, weight and bias, each empty unless it is wanted.

    An operator, so that torch.compile neither unrolls the chunks nor specializes on their number.
    """
    wanted, loss = (for_x, for_weight, for_bias), TokenLoss(label_smoothing, z_loss)
    with torch.autocast(x.device.type, enabled=False):
        if x.device.type != "cpu":  # counting rows there forces a device sync
            return _sum_of_chunks(x, weight, bias, targets, cap, wanted, False, loss)
        rows = (targets >= 0).nonzero()[:, 0]
        if len(rows) == len(x):
            return _sum_of_chunks(x, weight, bias, targets, cap, wanted, True, loss)
        total, dx, dweight, dbias = _sum_of_chunks(x[rows], weight, bias, targets[rows], cap, wanted, True, loss)
        dx = torch.zeros_like(x).index_copy_(0, rows, dx) if for_x else dx
        return total, dx, dweight, dbias


def _sum_of_chunks(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    cap: float | None,
    wanted: tuple[bool, bool, bool],
    all_count: bool,
    loss: TokenLoss = PLAIN,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`_summed`. all_count: every row has a target."""
    total, dx, dweight, dbias = _empty_results(x, weight, bias, wanted)
    matrix, offset = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    rows = max(1, min(len(x), _rows_of_chunk(x.device)))
    buffers = x.new_empty(rows, len(weight)), x.new_empty(rows, len(weight), dtype=total.dtype)
    for start in range(0, len(x), rows):
        part, ids = x[start : start + rows], targets[start : start + rows, None]
        z, p = (buffer[: len(part)] for buffer in buffers)
        counts, ids = ids >= 0, ids.clamp(min=0)
        _logits(part, matrix, offset, cap, out=z)
        torch.log_softmax(z, -1, dtype=p.dtype, out=p)
        normalizer = z.amax(-1, True).to(p.dtype) - p.amax(-1, True) if loss.z_loss else None
        total += torch.where(counts, _losses(p, ids, normalizer, loss), 0).sum()
        if not any(wanted):
            continue
        _gradients_(p, ids, normalizer, loss)
        if cap is not None:
            p.addcmul_(p, z.to(p.dtype).square(), value=-1 / cap**2)  # 1 - tanh^2
        grad = p if all_count and p.dtype == x.dtype else torch.mul(p, counts, out=z)
        if wanted[0]:
            torch.mm(grad, matrix, out=dx[start : start + rows])
        if wanted[1] and dweight.dtype == x.dtype:
            dweight.addmm_(grad.mT, part)
        elif wanted[1]:
            dweight += grad.mT @ part
        if wanted[2]:
            dbias += grad.sum(0, dtype=dbias.dtype)
    return total, dx, dweight, dbias


def _losses(log_p: Tensor, ids: Tensor, normalizer: Tensor | None, loss: TokenLoss) -> Tensor:
    """[R V], [R 1] and the logsumexp [R 1], which only z_loss needs -> the losses [R 1]."""
    found = -log_p.gather(1, ids)
    if smoothed := loss.label_smoothing:
        found = (1 - smoothed) * found - smoothed / log_p.shape[1] * log_p.sum(-1, True)
    return found if normalizer is None else found + loss.z_loss * normalizer.square()


def _gradients_(log_p: Tensor, ids: Tensor, normalizer: Tensor | None, loss: TokenLoss) -> None:
    """Replaces log p [R V] by the gradients of `_losses` for the logits."""
    p = log_p.exp_()
    if normalizer is not None:
        p.mul_(1 + 2 * loss.z_loss * normalizer)
    if loss.label_smoothing:
        p.sub_(loss.label_smoothing / p.shape[1])
    p.scatter_add_(1, ids, p.new_full((1, 1), loss.label_smoothing - 1.0).expand_as(ids))


def _logits(x: Tensor, matrix: Tensor, offset: Tensor | None, cap: float | None, *, out: Tensor) -> None:
    if offset is None:
        torch.mm(x, matrix.mT, out=out)
    else:
        torch.addmm(offset, x, matrix.mT, out=out)
    if cap is not None:
        out.div_(cap).tanh_().mul_(cap)


@_summed.register_fake
def _empty_sum(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    cap: float | None,
    label_smoothing: float,
    z_loss: float,
    for_x: bool,
    for_weight: bool,
    for_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return _empty_results(x, weight, bias, (for_x, for_weight, for_bias))


def _empty_results(
    x: Tensor, weight: Tensor, bias: Tensor | None, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums of 0, in a wide dtype, and a gradient for x to be filled; empty where it is not wanted."""
    dweight = weight.new_zeros(weight.shape if wanted[1] else 0, dtype=wide_dtype(weight.dtype))
    dbias = dweight.new_zeros(len(weight) if wanted[2] else 0)
    return (
        x.new_zeros((), dtype=wide_dtype(x.dtype)),
        torch.empty_like(x) if wanted[0] else x.new_empty(0),
        dweight,
        dbias,
    )


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, targets, ctx.cap, label_smoothing, z_loss, *ctx.wanted = inputs
    ctx.loss = TokenLoss(label_smoothing, z_loss)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, weight, bias, targets, *output[1:])


def _backward(ctx: Any, grad: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 10
    x, weight, bias, targets, *gradients = ctx.saved_tensors
    if torch.is_grad_enabled():  # create_graph=True
        found = _recorded_gradients(x, weight, bias, targets, ctx.cap, ctx.wanted, grad, ctx.loss)
    else:
        of_each = zip(gradients, (x, weight, bias), ctx.wanted, strict=True)
        found = [(g * grad).to(t.dtype) if wanted else None for g, t, wanted in of_each]
    return *found, *(None,) * 7


def _recorded_gradients(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    targets: Tensor,
    cap: float | None,
    wanted: list[bool],
    grad: Tensor,
    loss: TokenLoss,
) -> list[Tensor | None]:
    """The gradients of x, weight and bias, recorded by autograd. Views keep them partial where one depends on another."""
    x, weight, bias = x.view_as(x), weight.view_as(weight), None if bias is None else bias.view_as(bias)

    def logits(part: Tensor) -> Tensor:
        z = F.linear(part, weight.to(part.dtype), None if bias is None else bias.to(part.dtype))
        return z if cap is None else cap * torch.tanh(z / cap)

    of_each = zip((x, weight, bias), wanted, strict=True)
    asked = [t for t, is_asked in of_each if is_asked and t is not None]
    found = iter(torch.autograd.grad(_recomputed(x, targets, logits, loss), asked, grad, create_graph=True))
    return [next(found) if is_asked else None for is_asked in wanted]


_summed.register_autograd(_backward, setup_context=_keep)
