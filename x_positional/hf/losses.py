"""The loss of labels, as transformers computes it, or by chunks of tokens where logits are large.

B batch, T tokens, M model dim, V vocabulary.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from x_positional.errors import InputError
from x_positional.models.language import TransformerWrapper
from x_positional.models.loss import LossOptions, marked_labels, sums_by_chunks
from x_positional.modules.cross_entropy import NO_TARGET


def loss_and_logits(
    model: Any,
    net: TransformerWrapper,
    hidden: Tensor,
    labels: Tensor | None,
    num_items_in_batch: int | Tensor | None,
    *,
    shifted: bool = False,
    keep: int | Tensor = 0,
) -> tuple[Any, Any]:
    """Hidden states [B T M] -> the loss, None without labels, and logits [B T V].

    In training, logits of more than 2^25 entries are computed by chunks and not returned: they are None.

    Args:
        model: Of transformers, with its loss_function.
        net: Computes the logits.
        hidden: After the final norm.
        labels: [B T], -100 for no target.
        num_items_in_batch: What the sum is divided by; None for the number of targets.
        shifted: Each place predicts the label of the next one.
        keep: As `logits_to_keep` of transformers.

    Raises:
        InputError: For labels of another shape, out of range, or of places without logits.
    """
    if labels is None:
        return None, net.logits(_kept(hidden, keep))
    if isinstance(keep, Tensor) or keep:
        raise InputError("labels need the logits of all places. Leave logits_to_keep out.")
    options, size = LossOptions(), net.num_tokens
    labels = marked_labels(hidden, labels, None, ignore_index=NO_TARGET, num_tokens=size, options=options)
    targets = F.pad(labels, (0, 1), value=NO_TARGET)[:, 1:] if shifted else labels
    if model.training and sums_by_chunks(net, targets):
        count = (targets != NO_TARGET).sum() if num_items_in_batch is None else num_items_in_batch
        count = count.to(hidden.device) if isinstance(count, Tensor) else count
        return net.token_losses(hidden, targets) / count, None
    logits = net.logits(hidden)
    return model.loss_function(logits, labels, vocab_size=size, num_items_in_batch=num_items_in_batch), logits


def _kept(hidden: Tensor, keep: int | Tensor) -> Tensor:
    """The hidden states that logits are computed of."""
    if isinstance(keep, Tensor):
        return hidden[:, keep]
    return hidden[:, -keep:] if keep else hidden
