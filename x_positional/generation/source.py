"""The parameters of decoding from a source: those of `DecodeOptions`, with the source and its mask in place of the context.

B batch, S source tokens, M model dim.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from torch import Tensor

from x_positional.attention.cache import KVCache
from x_positional.generation.options import DecodeOptions, GenerateOptions
from x_positional.generation.prompts import PromptsLike
from x_positional.generation.sampling import FilterChoice


@dataclass(frozen=True, eq=False)
class Source:
    """The positional parameters, first as bases come first."""

    src: Tensor | None
    start_tokens: PromptsLike
    seq_len: int
    mask: Tensor | None = None


@dataclass(frozen=True, eq=False)
class DecodeFromSource(DecodeOptions, Source):
    """The parameters of an encoder-decoder's `stream`.

    Args:
        src: [B S] source ids; None continues with the source whose keys `cache` holds.
        start_tokens: Target prompts, in any form that `prompts` of `AutoregressiveWrapper.generate` takes.
        mask: [B S] bool, True = keep. Of the source.
    """

    prompts: PromptsLike = field(init=False, default=None)
    context: Tensor | None = field(init=False, default=None)
    context_mask: Tensor | None = field(init=False, default=None)
    # keyword-only here, since x-transformers' fifth positional parameter is another one
    eos_token: int | Sequence[int] | None = field(default=None, kw_only=True)
    temperature: float = field(default=1.0, kw_only=True)
    prompt_lens: Tensor | Sequence[int] | None = field(default=None, kw_only=True)
    filter_logits_fn: FilterChoice | Sequence[FilterChoice] | None = field(default="top_k", kw_only=True)
    restrict_to_max_seq_len: bool = field(default=True, kw_only=True)
    filter_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = field(default=None, kw_only=True)
    cache_kv: bool = field(default=True, kw_only=True)

    def _problems(self) -> Iterator[str]:
        yield from super()._problems()
        held = self.cache is not None and isinstance(self.cache, KVCache) and self.cache.state.cross_context is not None
        if self.src is None and not held:
            yield "src=None continues with the source of a cache, and none was read into it. Pass the source ids."
        if self.src is None and self.mask is not None:
            yield "mask was given without src. Leave it out: the cache holds the mask of its source."

    def with_context(self, context: Tensor | None) -> GenerateOptions:
        """The options of the decoder alone, for the encoded source [B S M]."""
        set_here = ("prompts", "context", "context_mask")
        names = [option.name for option in fields(GenerateOptions) if option.init and option.name not in set_here]
        kept = {option.name: getattr(self, option.name) for option in fields(self) if option.name in names}
        return GenerateOptions(self.start_tokens, context=context, context_mask=self.mask, **kept)


@dataclass(frozen=True, eq=False)
class GenerateFromSource(DecodeFromSource, GenerateOptions):
    """The parameters of an encoder-decoder's `generate`: those of `stream`, and `return_cache`."""


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerateFromSourceAndReturnCache(DecodeFromSource):
    """The parameters of `generate(..., return_cache=True)`, for type checkers alone: that call returns a pair."""

    return_cache: Literal[True]
