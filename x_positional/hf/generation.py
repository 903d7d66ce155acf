"""What `generate` of transformers does otherwise for a model of x_positional: its cache, and positions that follow the mask."""

from typing import Any

from torch import Tensor
from transformers import GenerationConfig
from transformers.generation import GenerationMode

from x_positional.errors import ArgumentError, PositionError
from x_positional.hf.caching import XPositionalCache
from x_positional.hf.reading import cacheable
from x_positional.models.language import TransformerWrapper


class OwnCache:
    """A model of transformers whose `generate` keeps keys in an `XPositionalCache`. Stands before GenerationMixin."""

    _decoder: TransformerWrapper

    def _prepare_position_ids_for_generation(self, inputs_tensor: Tensor, model_kwargs: dict[str, Any]) -> None:
        """None: positions count the tokens of the mask, and a cache continues them."""

    def _prepare_cache_for_generation(
        self,
        generation_config: GenerationConfig,
        model_kwargs: dict[str, Any],
        generation_mode: GenerationMode,
        *sizes: int,
    ) -> None:
        """Puts a cache into model_kwargs, unless there is one or the prefix is read again for every token.

        Args:
            generation_config: `use_cache` is set to False where cached keys would go stale.
            model_kwargs: Of `forward`.
            generation_mode: Greedy, sampled, beams, assisted.
            sizes: Rows and length, which a cache that grows needs not.

        Raises:
            ArgumentError: For a cache_implementation of transformers.
            PositionError: Where decoding needs a cache, and cached keys would go stale.
        """
        kind = generation_config.cache_implementation
        if kind is not None:
            raise ArgumentError(
                f"cache_implementation={kind!r} holds keys and values alone; x_positional's layers write to their own cache. Leave "
                "it out."
            )
        if model_kwargs.get("past_key_values") is not None or generation_config.use_cache is False:
            return
        if cacheable(self._decoder):
            model_kwargs["past_key_values"] = XPositionalCache()
            return
        needs = {
            "assisted decoding": generation_mode == GenerationMode.ASSISTED_GENERATION,
            "inputs_embeds in generate": model_kwargs.get("inputs_embeds") is not None,
        }
        for what, given in needs.items():
            if given:
                stale = [type(s).__name__ for s in self._decoder.attn_layers.position_schemes]
                raise PositionError(
                    f"{what} needs a cache, but {', '.join(stale)} changes the keys of earlier tokens as the sequence grows. Leave "
                    "it out: generate then reads the whole sequence for every token."
                )
        generation_config.use_cache = False
