"""What `generate` of transformers does otherwise for a model of x_positional: its cache, and positions that follow the mask."""

from typing import Any

from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from x_positional.errors import ArgumentError, CacheError, PositionError
from x_positional.hf.caching import CACHE_NAME, XPositionalCache
from x_positional.hf.reading import cacheable
from x_positional.models.language import TransformerWrapper

GROWING = (None, "dynamic", "dynamic_full")
"""Names of transformers' default cache, which grows as x_positional's does."""


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
        batch_size: int,
        max_cache_length: int,
    ) -> Any:
        """Puts a cache into model_kwargs, unless there is one or the prefix is read again for every token.

        Args:
            generation_config: `use_cache` is set to False where cached keys would go stale.
            model_kwargs: Of `forward`.
            generation_mode: Greedy, sampled, beams, assisted.
            batch_size: Of the prompts.
            max_cache_length: The most tokens of a row that are read.

        Raises:
            ArgumentError: For a cache_implementation of transformers.
            PositionError: Where decoding needs a cache, and cached keys would go stale.
            CacheError: Where rejected tokens would have overwritten keys of a window.
        """
        kind = generation_config.cache_implementation
        if kind not in GROWING:
            raise ArgumentError(
                f"cache_implementation={kind!r} holds keys and values alone; x_positional's layers write to their own cache. Leave "
                "it out."
            )
        if generation_config.use_cache is False:
            return
        assisted = generation_mode == GenerationMode.ASSISTED_GENERATION
        if not cacheable(self._decoder):
            self._check_needs_no_cache(assisted, model_kwargs)
            generation_config.use_cache = False
            return
        if assisted or generation_config.is_assistant:
            self._check_windows(max_cache_length)
        if model_kwargs.get(CACHE_NAME) is None:
            model_kwargs[CACHE_NAME] = XPositionalCache()

    def _check_needs_no_cache(self, assisted: bool, model_kwargs: dict[str, Any]) -> None:
        """Raises PositionError where a call of generate cannot read the whole sequence for every token."""
        needs = {
            "assisted decoding": assisted,
            "inputs_embeds in generate": model_kwargs.get("inputs_embeds") is not None,
            CACHE_NAME: model_kwargs.get(CACHE_NAME) is not None,
        }
        if wanted := [what for what, given in needs.items() if given]:
            schemes = self._decoder.attn_layers.position_schemes
            stale = dict.fromkeys(type(s).__name__ for s in schemes if not s.capabilities().kv_cacheable)
            raise PositionError(
                f"{wanted[0]} needs a cache, but {', '.join(stale)} changes the keys of earlier tokens as the sequence grows. "
                "Without it, generate reads the whole sequence for every token."
            )

    def _check_windows(self, length: int) -> None:
        """Raises CacheError where a window drops tokens that come back when proposals are rejected."""
        sizes = [kind.window.kept for kind in self._decoder.attn_layers.kinds if kind.window.kept is not None]
        if sizes and min(sizes) < length:
            raise CacheError(
                f"assisted decoding to {length} tokens exceeds a window of {min(sizes)}, so keys that a rejected token overwrites "
                "would be visible again. Generate without an assistant, or fewer tokens."
            )
