"""Training loss and text generation of a language model.

B batch, T prompt tokens, N new tokens.
"""

from collections.abc import Iterator
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from x_positional.attention.cache import KVCache
from x_positional.attention.inputs import SeqLens, check_documents, packed_documents, token_mask
from x_positional.errors import InputError
from x_positional.generation.decoding import DecodeLoop
from x_positional.generation.options import DecodeOptions, GenerateAndReturnCache, GenerateOptions, parameters_of
from x_positional.generation.prompts import as_ids
from x_positional.models.language import TransformerWrapper


class AutoregressiveWrapper(nn.Module):
    """Next-token loss and sampling for a `TransformerWrapper` of a Decoder.

    Args:
        net: The model.
        ignore_index: Targets with this id do not count; the model is fed `pad_value` in their place.
        pad_value: The id that fills rows after their eos.
    """

    def __init__(self, net: TransformerWrapper, ignore_index: int = -100, pad_value: int = 0):
        super().__init__()
        if net.config.layers.kind != "decoder":
            raise InputError(
                "AutoregressiveWrapper predicts each token from those before it, but layers of kind "
                f"{net.config.layers.kind!r} attend to all tokens. Use a Decoder."
            )
        if net.config.logits_dim not in (None, net.num_tokens):
            raise InputError(
                f"logits_dim={net.config.logits_dim} differs from num_tokens={net.num_tokens}: a language model needs one "
                "logit per token. Leave logits_dim out."
            )
        if not 0 <= pad_value < net.num_tokens:
            raise InputError(
                f"pad_value={pad_value} is fed to the model, so it must be from 0 to {net.num_tokens - 1}."
            )
        self.net, self.ignore_index, self.pad_value = net, ignore_index, pad_value

    def forward(
        self,
        tokens: Tensor,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        *,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        seq_lens: SeqLens | None = None,
    ) -> Tensor:
        """Mean cross entropy (nats) of tokens 1 .. T-1, each predicted from those before it.

        Padding, the token after left padding, ignore_index and the first token of a packed document are not targets.

        Args:
            tokens: [B T] ids, T at least 2.
            mask: [B T] bool, True = keep.
            positions: [B T] or [B T A], -1 for no token.
            document_ids: [B T], the document that each token of a packed row belongs to.
            context: [B S M] for cross-attention.
            context_mask: [B S] bool, True = keep.
            seq_lens: The lengths of packed documents, in place of `document_ids`.

        Raises:
            InputError: For fewer than two tokens, and for ids, masks, positions or documents that do not fit.
        """
        if tokens.ndim != 2 or tokens.shape[1] < 2:
            raise InputError(f"a loss needs [batch, tokens] with at least two tokens; got {list(tokens.shape)}.")
        tokens = as_ids(tokens)
        ids = tokens.masked_fill(tokens == self.ignore_index, self.pad_value)
        self.net.check_tokens(ids)
        (batch, length), targets = tokens.shape, tokens[:, 1:]
        present = token_mask(batch, length, mask, positions)
        if present is not None:
            targets = torch.where(present[:, 1:] & present[:, :-1], targets, self.ignore_index)
        document_ids = packed_documents(document_ids, seq_lens, batch, length)
        if document_ids is not None:
            document_ids = document_ids.to(tokens.device)
            documents = check_documents(document_ids, batch, length)
            targets = torch.where(documents[:, 1:] == documents[:, :-1], targets, self.ignore_index)
        logits = self.net(
            ids[:, :-1],
            mask=_but_last(mask),
            positions=_positions_but_last(positions, length),
            document_ids=_but_last(document_ids),
            context=context,
            context_mask=context_mask,
            checked=True,
        )
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=self.ignore_index)

    @overload
    @parameters_of(GenerateAndReturnCache)
    def generate(self, options: GenerateAndReturnCache) -> tuple[Tensor, KVCache]: ...
    @overload
    @parameters_of(GenerateOptions)
    def generate(self, options: GenerateOptions) -> Tensor: ...
    @parameters_of(GenerateOptions)
    def generate(self, options: GenerateOptions) -> Tensor | tuple[Tensor, KVCache]:
        """Continue prompts by up to `seq_len` tokens. The parameters are the fields of `GenerateOptions`.

        Frequencies with length_policy="fixed" and no length are those of a row's prompt plus seq_len, or of the
        final_lengths that the cache was made with.

        Returns:
            The new tokens [B N] ([N] for one prompt [T]); with `return_cache=True` also the cache, to pass as `cache`.

        Raises:
            InputError, PositionError, CacheError, ArgumentError: Before anything is computed.
        """
        loop = DecodeLoop(self.net, options, self.pad_value)
        tokens = loop.generate()
        return (tokens, loop.cache) if options.return_cache and loop.cache is not None else tokens

    @parameters_of(DecodeOptions)
    def stream(self, options: DecodeOptions) -> Iterator[Tensor]:
        """The tokens of `generate`, [B] at a time as they are drawn. The parameters are the fields of `DecodeOptions`.

        A `cache` holds every token that was handed out, also if the caller stops early.
        """
        return DecodeLoop(self.net, options, self.pad_value).stream()


def _but_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x[..., :-1]


def _positions_but_last(positions: Tensor | None, length: int) -> Tensor | None:
    if positions is None:
        return None
    tokens_axis = 0 if positions.ndim == 1 else 1
    return positions.narrow(tokens_axis, 0, length - 1)
