"""Contrastive decoding: tokens that a model finds likelier than a weaker one does.

B batch, T tokens, M model dim, V vocabulary.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from x_positional.attention.cache import KVCache
from x_positional.errors import ArgumentError, InputError
from x_positional.generation.sampling import NON_NEGATIVE, POSITIVE, UNIT, Range
from x_positional.schemes.base import PositionScheme
from x_positional.schemes.precision import wide_dtype

WEIGHT = Range(NON_NEGATIVE.low, optional=True)


class ContrastWith:
    """The amateur of contrastive decoding, and how its logits enter.

    Only tokens whose probability under the model is at least `alpha` times that of its most likely one can be drawn (Li et
    al. 2022, arXiv:2210.15097, eq. 3). Their logits become (1 + beta) * model - beta * amateur (O'Brien and Lewis 2023,
    arXiv:2309.09117, and x-transformers), or model - amateur with beta=None (Li et al., eq. 4). Penalties, filters and the
    temperature of the call apply afterwards.

    Args:
        amateur: a smaller `TransformerWrapper` of a Decoder with the same vocabulary, on the device of the model.
        alpha: from 0, every token, to 1, the most likely one alone.
        beta: the weight of the amateur; 0 leaves the model's logits.
        temperature: divides the amateur's logits.

    Raises:
        ArgumentError: a number out of its range.
        InputError: the amateur is not such a model.
    """

    def __init__(self, amateur: Any, *, alpha: float = 0.1, beta: float | None = 0.5, temperature: float = 1.0):
        numbers = (("alpha", UNIT, alpha), ("beta", WEIGHT, beta), ("temperature", POSITIVE, temperature))
        problems = [problem for name, allowed, value in numbers for problem in allowed.problems(name, value)]
        if problems:
            raise ArgumentError("\n".join(problems))
        config = getattr(amateur, "config", None)
        layers = getattr(config, "layers", None)
        if not getattr(amateur, "has_head", False) or getattr(layers, "kind", None) != "decoder":
            raise InputError(
                f"the amateur must be a TransformerWrapper of a Decoder; got {type(amateur).__name__}. Of an "
                "AutoregressiveWrapper pass .net."
            )
        if config is not None and config.layers.cross_attend:
            raise InputError("the amateur has cross-attention, and there is no context for it. Use a model without.")
        self.amateur, self.alpha, self.beta, self.temperature = amateur, alpha, beta, temperature

    def logits(self, model: Tensor, amateur: Tensor) -> Tensor:
        """Logits of both [B V] -> those that tokens are drawn from [B V], -inf where the model is not sure enough."""
        dtype = torch.promote_types(wide_dtype(model.dtype), wide_dtype(amateur.dtype))
        model, amateur = model.to(dtype), amateur.to(dtype) / self.temperature
        contrasted = model - amateur if self.beta is None else (1 + self.beta) * model - self.beta * amateur
        if not self.alpha:
            return contrasted
        least = model.amax(-1, keepdim=True) + math.log(self.alpha)
        return contrasted.masked_fill(model < least, -math.inf)


class BothLayers:
    """The position schemes of two models: what makes one of them read a sequence again makes both."""

    def __init__(self, *models: Any):
        self.models = models

    @property
    def position_schemes(self) -> list[PositionScheme]:
        return [scheme for model in self.models for scheme in model.attn_layers.position_schemes]


class Contrasted(nn.Module):
    """A model and its amateur as one language model, whose hidden states are those of both, side by side.

    Each reads into a cache of its own. The amateur attends to its own max_seq_len last tokens where `restrict` is set.

    Raises:
        InputError: their vocabularies or devices differ.
    """

    def __init__(self, model: Any, contrast: ContrastWith, restrict: bool):
        super().__init__()
        amateur = contrast.amateur
        if amateur.num_tokens != model.num_tokens:
            raise InputError(
                f"the amateur has num_tokens={amateur.num_tokens}, the model {model.num_tokens}. Use one with the same vocabulary."
            )
        devices = [next(net.parameters()).device for net in (amateur, model)]
        if devices[0] != devices[1]:
            raise InputError(f"the amateur is on {devices[0]}, the model on {devices[1]}. Move one of them.")
        self.model, self.amateur, self.contrast = model, amateur, contrast
        self.num_tokens, self.max_seq_len, self.restrict = model.num_tokens, model.max_seq_len, restrict
        self.width = model.config.layers.dim
        self.attn_layers = BothLayers(model, amateur)
        self.amateur_cache: KVCache | None = None
        self.dtypes = (torch.float32, torch.float32)

    def check_tokens(self, tokens: Tensor) -> None:
        """Raises InputError for ids outside of the vocabulary. Forces a device sync."""
        self.model.check_tokens(tokens)

    def check_embeds(self, x: Any, name: str, batch: int | None = None) -> Tensor:
        """Raises InputError for embeddings that do not fit the model."""
        return self.model.check_embeds(x, name, batch)

    def new_cache(
        self,
        batch_size: int,
        max_len: int | None = None,
        window: int | None = None,
        *,
        rereads: bool = False,
        final_lengths: Tensor | None = None,
    ) -> KVCache:
        """The model's cache, after one for the amateur was made, which is kept here."""
        self.amateur_cache = self._amateur_cache(batch_size, rereads, final_lengths)
        return self.model.new_cache(
            batch_size, max_len, window, rereads=rereads, final_lengths=_taken(self.model, final_lengths)
        )

    def _amateur_cache(self, batch_size: int, rereads: bool, final_lengths: Tensor | None = None) -> KVCache:
        window = self.amateur.max_seq_len if self.restrict else None
        return self.amateur.new_cache(
            batch_size, window=window, rereads=rereads, final_lengths=_taken(self.amateur, final_lengths)
        )

    def __call__(
        self,
        tokens: Tensor | None,
        *,
        cache: KVCache | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        **inputs: Any,
    ) -> Tensor:
        """Ids [B T] -> hidden states of both [B T, M of the model + M of the amateur]."""
        x = self.model(tokens, cache=cache, context=context, context_mask=context_mask, **inputs)
        own = self._amateur_cache(len(x), rereads=True) if cache is None else self.amateur_cache
        weak = self.amateur(tokens, cache=own, **inputs)
        self.dtypes, wide = (x.dtype, weak.dtype), torch.promote_types(x.dtype, weak.dtype)
        return torch.cat([x.to(wide), weak.to(wide)], dim=-1)

    def logits(self, x: Tensor) -> Tensor:
        """Hidden states of both [B, ...] -> contrasted logits [B V]."""
        strong, weak = (
            part.to(dtype) for part, dtype in zip(x.tensor_split([self.width], -1), self.dtypes, strict=True)
        )
        return self.contrast.logits(self.model.logits(strong), self.amateur.logits(weak))


def _taken(net: Any, final_lengths: Tensor | None) -> Tensor | None:
    """Final lengths for a model whose frequencies follow them."""
    takes = any(scheme.takes_final_length for scheme in net.attn_layers.position_schemes)
    return final_lengths if takes else None
