"""The targets of a language model's loss, and when it is computed by chunks, inside of the model, rather than from logits.

B batch, P prepended places, T tokens.
"""

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from x_positional.attention.backends.base import torch_func_runs
from x_positional.models.language import TransformerWrapper
from x_positional.modules.cross_entropy import chunks_pay


def sums_by_chunks(net: nn.Module, targets: Tensor) -> bool:
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
    columns = net.config.logits_dim or net.num_tokens
    pay = chunks_pay(
        targets.numel(), columns, net.config.layers.dim, targets.device, recomputed=net.unembedding() is None
    )
    return pay and not torch_func_runs() and forward_ad._current_level < 0


def targets_after(
    labels: Tensor, prepended: int, present: Tensor | None, documents: Tensor | None, ignore: int
) -> Tensor:
    """Labels [B T] of tokens -> [B P+T-1] the target of every place but the last: the label of the next one.

    `ignore` where either place holds no token or another document begins, and for prepended places. The last one of these
    predicts the first token of its row, padding between them or not.

    Args:
        labels: of each token.
        prepended: P.
        present: [B P+T] bool, True = a token or an embedding; None for all.
        documents: [B P+T] ids; None for one a row.
        ignore: of no target.
    """
    batch, length = labels.shape[0], prepended + labels.shape[1]
    if prepended:
        labels = torch.cat([labels.new_full((batch, prepended), ignore), labels], 1)
    targets = labels[:, 1:]
    if present is not None:
        present = present.to(labels.device)
        targets = torch.where(present[:, 1:] & present[:, :-1], targets, ignore)
    if documents is not None:
        targets = torch.where(documents[:, 1:] == documents[:, :-1], targets, ignore)
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
