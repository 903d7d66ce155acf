"""When the loss of a language model is computed by chunks, inside of the model, rather than from its logits."""

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
