"""Training loss and generation of a model of floats.

B batch, T tokens, I width, S context tokens, C context width.
"""

from collections.abc import Callable, Iterator

import torch.nn.functional as F
from torch import Tensor, nn

from x_positional.attention.inputs import (
    SeqLens,
    check_documents,
    check_finite,
    check_floats,
    check_positions,
    check_shows_a_token,
    packed_documents,
    token_mask,
)
from x_positional.config.flags.answers import answers
from x_positional.errors import InputError
from x_positional.generation.floats import FloatLoop, FloatOptions
from x_positional.generation.parameters import parameters_of
from x_positional.models.continuous import ContinuousTransformerWrapper
from x_positional.models.loss import continues_text

NET_CALL = ("ContinuousTransformerWrapper.forward", "AttentionLayers.forward")
"""The tables of the calls that x-transformers passes further keywords on to."""
ElementLoss = Callable[[Tensor, Tensor], Tensor]
"""Outputs and targets [B T I] -> a loss of each number [B T I]."""


class ContinuousAutoregressiveWrapper(nn.Module):
    """Next-token loss and generation for a `ContinuousTransformerWrapper` of a Decoder, as wide at its output as at its input.

    Args:
        net: The model.
        loss_fn: A loss of each number, as `torch.nn.SmoothL1Loss(reduction="none")`; None is the squared error.
        use_l1_loss: The absolute error in place of the squared one.
        equal_loss_weight_batch: Each sequence counts the same, however many targets it has; otherwise each target does.

    Raises:
        InputError: For a model that does not predict its own input, or two losses.
    """

    @answers("ContinuousAutoregressiveWrapper")
    def __init__(
        self,
        net: ContinuousTransformerWrapper,
        loss_fn: ElementLoss | None = None,
        use_l1_loss: bool = False,
        equal_loss_weight_batch: bool = False,
    ):
        super().__init__()
        if not isinstance(net, ContinuousTransformerWrapper):
            raise InputError(f"net must be a ContinuousTransformerWrapper; got {type(net).__name__}.")
        layers, width = net.config.layers, net.config.dim_out or net.config.layers.dim
        if layers.kind != "decoder":
            raise InputError(f"layers of kind {layers.kind!r} attend to the tokens they would predict. Use a Decoder.")
        if width != net.dim_in:
            raise InputError(
                f"each output is the next input, but outputs have {width} channels and inputs {net.dim_in}. "
                f"Build the model with dim_out={net.dim_in}."
            )
        if loss_fn is not None and use_l1_loss:
            raise InputError("loss_fn and use_l1_loss=True both set the loss. Give one.")
        self.net, self.equal_loss_weight_batch = net, equal_loss_weight_batch
        self.loss_fn: ElementLoss = loss_fn or (_absolute_errors if use_l1_loss else _squared_errors)

    @answers("ContinuousAutoregressiveWrapper.forward", *NET_CALL)
    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        seq_lens: SeqLens | None = None,
    ) -> Tensor:
        """Mean loss of tokens 1 .. T-1, each predicted from those before it; 0 without any target.

        Padding, the token after left padding and the first token of a packed document are not targets.

        Args:
            x: [B T I] floats, T at least 2.
            mask: [B T] bool, True = keep.
            positions: [B T] or [B T A], ints or floats, -1 for no token.
            document_ids: [B T], the document that each token of a packed row belongs to.
            context: [B S C] for cross-attention.
            context_mask: [B S] bool, True = keep.
            seq_lens: The lengths of packed documents, in place of `document_ids`.

        Raises:
            InputError, PositionError: Before any kernel runs.
        """
        width = self.net.dim_in
        check_floats(x, width, f"floats [batch, tokens, {width}]")
        batch, length = x.shape[:2]
        if length < 2:
            raise InputError(f"a loss needs at least two tokens; got {list(x.shape)}.")
        if positions is not None:
            positions = check_positions(positions, batch, length)
            check_finite(positions)
        present = token_mask(batch, length, mask, positions)
        if present is not None:
            check_shows_a_token(present)
        documents = packed_documents(document_ids, seq_lens, batch, length)
        documents = None if documents is None else check_documents(documents, batch, length).to(x.device)
        found = self.net(
            x[:, :-1],
            mask=None if mask is None or present is None else present[:, :-1],
            positions=None if positions is None else positions[:, :-1],
            document_ids=None if documents is None else documents[:, :-1],
            context=context,
            context_mask=context_mask,
        )
        present = None if present is None else present.to(x.device)
        return self._mean(found, x[:, 1:], continues_text(present, documents))

    def _mean(self, found: Tensor, targets: Tensor, counted: Tensor | None) -> Tensor:
        """Outputs and targets [B T-1 I], the targets that count [B T-1] -> the mean loss."""
        losses = self.loss_fn(found, targets)
        if losses.shape != targets.shape:
            raise InputError(
                f"loss_fn returned shape {list(losses.shape)} for targets {list(targets.shape)}. Use reduction='none'."
            )
        losses = losses.mean(-1)
        if counted is None:
            return losses.mean()
        losses = losses.masked_fill(~counted, 0.0)
        if not self.equal_loss_weight_batch:
            return losses.sum() / counted.sum().clamp(min=1)
        counts = counted.sum(-1)
        return (losses.sum(-1) / counts.clamp(min=1)).sum() / (counts > 0).sum().clamp(min=1)

    @answers("ContinuousAutoregressiveWrapper.generate", *NET_CALL)
    @parameters_of(FloatOptions)
    def generate(self, options: FloatOptions) -> Tensor:
        """Continue series of floats by `seq_len` tokens, each the output for the one before.

        Returns:
            The new tokens [B N I], [N I] for one prompt [T I].

        Raises:
            InputError: Before anything is computed.
        """
        return FloatLoop(self.net, options).generate()

    @answers("ContinuousAutoregressiveWrapper.stream", "ContinuousAutoregressiveWrapper.generate", *NET_CALL)
    @parameters_of(FloatOptions)
    def stream(self, options: FloatOptions) -> Iterator[Tensor]:
        """The tokens of `generate`, [B I] at a time as they are computed."""
        return FloatLoop(self.net, options).stream()


def _squared_errors(found: Tensor, targets: Tensor) -> Tensor:
    return F.mse_loss(found, targets, reduction="none")


def _absolute_errors(found: Tensor, targets: Tensor) -> Tensor:
    return F.l1_loss(found, targets, reduction="none")
