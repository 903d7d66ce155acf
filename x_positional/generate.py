"""Autoregressive training and decoding: prefill once, then one token a step.

B batch, T prompt tokens, N new tokens, V vocabulary, M model dim.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from x_positional.cache import KVCache
from x_positional.placement import InputError
from x_positional.prompts import Prompts, read_prompts
from x_positional.sampling import (
    FilterChoice,
    LogitsFilter,
    mark_seen,
    repetition_penalty,
    resolve_filters,
    sample,
    seen_tokens,
)
from x_positional.wrappers import TransformerWrapper

PromptsLike = Tensor | Sequence[Tensor | Sequence[int]]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How to pick tokens and when to stop."""

    seq_len: int
    eos: Tensor | None
    temperature: float
    filters: list[LogitsFilter]
    penalty: float
    generator: torch.Generator | None
    use_cache: bool
    restrict: bool
    keep_cache: bool
    context: Tensor | None = None
    context_mask: Tensor | None = None


class AutoregressiveWrapper(nn.Module):
    """Next-token loss and sampling around a `TransformerWrapper` of a Decoder.

    ignore_index: targets that do not count (the model reads pad_value there). pad_value: fills rows after their eos.
    """

    def __init__(self, net: TransformerWrapper, ignore_index: int = -100, pad_value: int = 0):
        super().__init__()
        if net.config.layers.kind != "decoder":
            raise InputError(
                f"AutoregressiveWrapper predicts each token from those before it, and this net is a "
                f"{net.config.layers.kind}, which sees them all. Use a Decoder."
            )
        self.net, self.ignore_index, self.pad_value = net, ignore_index, pad_value

    def forward(
        self, tokens: Tensor, mask: Tensor | None = None, positions: Tensor | None = None,
        document_ids: Tensor | None = None, *, context: Tensor | None = None, context_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Ids [B T] -> the mean cross entropy (nats) of tokens 1 .. T-1, each predicted from those before it.

        Padding (mask False), ignore_index and the first token of a packed document are no targets. T must be 2 or more.
        """
        if tokens.ndim != 2 or tokens.shape[1] < 2:
            raise InputError(f"a loss needs [batch, tokens] with at least two tokens; these are {list(tokens.shape)}.")
        inputs, targets = tokens[:, :-1], tokens[:, 1:]
        inputs = torch.where(inputs == self.ignore_index, self.pad_value, inputs)
        if mask is not None:
            targets = torch.where(mask[:, 1:], targets, self.ignore_index)
        if document_ids is not None:
            same = document_ids[..., 1:] == document_ids[..., :-1]
            targets = torch.where(same, targets, self.ignore_index)
        logits = self.net(
            inputs, mask=_but_last(mask), positions=_positions_but_last(positions, tokens.shape[1]),
            document_ids=_but_last(document_ids), context=context, context_mask=context_mask,
        )  # fmt: skip
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=self.ignore_index)

    @overload
    def generate(self, prompts: PromptsLike, seq_len: int, *args: Any, return_cache: Literal[False] = False,
                 **options: Any) -> Tensor: ...  # fmt: skip
    @overload
    def generate(self, prompts: PromptsLike, seq_len: int, *args: Any, return_cache: Literal[True],
                 **options: Any) -> tuple[Tensor, KVCache]: ...  # fmt: skip
    @torch.no_grad()
    def generate(
        self, prompts: PromptsLike, seq_len: int, eos_token: int | Sequence[int] | None = None,
        temperature: float = 1.0, prompt_lens: Tensor | None = None,
        filter_logits_fn: FilterChoice | Sequence[FilterChoice] | None = "top_k", restrict_to_max_seq_len: bool = True,
        filter_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None, cache_kv: bool = True, *,
        repetition_penalty: float = 1.0, generator: torch.Generator | None = None, seed: int | None = None,
        cache: KVCache | None = None, return_cache: bool = False, context: Tensor | None = None,
        context_mask: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, KVCache]:  # fmt: skip
        """Continue prompts by up to `seq_len` tokens; returns the new tokens [B N] ([N] for a prompt [T]).

        prompts: [T], [B T] (right-padded with prompt_lens), or a list of ragged prompts; each row equals itself alone.
        eos_token: one id or several; a row is filled with pad_value after it, and decoding stops when all rows ended.
        temperature: 0 takes the likeliest token. filter_logits_fn: "top_k", "top_p", "min_p", "top_a", "typical", a
        function of logits, or a list applied in turn; filter_kwargs: its options (a list or dict by name for several).
        restrict_to_max_seq_len: past max_seq_len each token sees the last max_seq_len tokens; otherwise all of them.
        cache: continue from a cache that an earlier call returned (`return_cache=True`); prompts are then what is new.
        generator or seed: makes the draw repeatable.
        Raises InputError, PositionError, CacheError, ValueError (filters), all before anything is computed.
        """
        read = read_prompts(prompts, prompt_lens, self._device)
        decoding = self._decoding(
            seq_len, eos_token, temperature, filter_logits_fn, restrict_to_max_seq_len, filter_kwargs, cache_kv,
            repetition_penalty, generator, seed, context, context_mask, return_cache,
        )  # fmt: skip
        if cache is None:
            cache = self._cache(read, decoding)
        new = list(self._steps(read, decoding, cache))
        tokens = torch.stack(new, dim=1) if new else read.tokens[:, :0]
        tokens = tokens[0] if read.single else tokens
        if not return_cache:
            return tokens
        if cache is None:
            raise InputError("return_cache=True with cache_kv=False: there is no cache to return. Use cache_kv=True.")
        return tokens, cache

    @torch.no_grad()
    def stream(
        self, prompts: PromptsLike, seq_len: int, eos_token: int | Sequence[int] | None = None,
        temperature: float = 1.0, prompt_lens: Tensor | None = None,
        filter_logits_fn: FilterChoice | Sequence[FilterChoice] | None = "top_k", restrict_to_max_seq_len: bool = True,
        filter_kwargs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None, cache_kv: bool = True, *,
        repetition_penalty: float = 1.0, generator: torch.Generator | None = None, seed: int | None = None,
        cache: KVCache | None = None, context: Tensor | None = None, context_mask: Tensor | None = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """The tokens of `generate`, [B] at a time, as they are drawn."""
        read = read_prompts(prompts, prompt_lens, self._device)
        decoding = self._decoding(
            seq_len, eos_token, temperature, filter_logits_fn, restrict_to_max_seq_len, filter_kwargs, cache_kv,
            repetition_penalty, generator, seed, context, context_mask, cache is not None,
        )  # fmt: skip
        yield from self._steps(read, decoding, self._cache(read, decoding) if cache is None else cache)

    @property
    def _device(self) -> torch.device:
        return next(self.net.parameters()).device

    def _decoding(
        self, seq_len: int, eos_token: int | Sequence[int] | None, temperature: float, filter_logits_fn: Any,
        restrict: bool, filter_kwargs: Any, cache_kv: bool, penalty: float, generator: torch.Generator | None,
        seed: int | None, context: Tensor | None, context_mask: Tensor | None, keep_cache: bool,
    ) -> Decoding:  # fmt: skip
        if seq_len < 0:
            raise InputError(f"seq_len={seq_len} is the number of new tokens; it cannot be negative.")
        if not cache_kv and keep_cache:
            raise InputError("a cache was asked for or given, with cache_kv=False. Use cache_kv=True.")
        if seed is not None:
            if generator is not None:
                raise InputError("seed= and generator= both make the draw repeatable. Give one.")
            generator = torch.Generator(self._device).manual_seed(seed)
        ids = None
        if eos_token is not None:
            ids = torch.atleast_1d(torch.as_tensor(eos_token, device=self._device))
        return Decoding(
            seq_len=seq_len, eos=ids, temperature=temperature, filters=resolve_filters(filter_logits_fn, filter_kwargs),
            penalty=penalty, generator=generator, use_cache=cache_kv, restrict=restrict, keep_cache=keep_cache,
            context=context, context_mask=context_mask,
        )  # fmt: skip

    def _cache(self, prompts: Prompts, decoding: Decoding) -> KVCache | None:
        """A cache of the final size: static up to max_seq_len, then a ring of that size where that is wanted."""
        total = prompts.tokens.shape[1] + decoding.seq_len
        self._check_length(total - 1)
        window = self.net.max_seq_len if decoding.restrict and total > self.net.max_seq_len else None
        if not decoding.use_cache and window is None:
            return None
        grows = decoding.keep_cache or window is not None
        return self.net.new_cache(len(prompts.tokens), max_len=None if grows else total, window=window)

    def _check_length(self, total: int) -> None:
        limits = [s.limit for s in self.net.attn_layers.position_schemes if s.limit is not None]
        if limits and total > min(limits):
            raise InputError(
                f"prompt and seq_len together feed {total} tokens, and this model's positions end at {min(limits)} "
                f"(max_seq_len={self.net.max_seq_len}): there is no row for more. Ask for fewer, or use a scheme without "
                "a table (rope, alibi, ...)."
            )

    @torch.no_grad()
    def _steps(self, prompts: Prompts, decoding: Decoding, cache: KVCache | None) -> Iterator[Tensor]:
        net, was_training = self.net, self.net.training
        net.check_tokens(prompts.tokens)
        net.eval()
        try:
            yield from self._draw(prompts, decoding, cache)
        finally:
            net.train(was_training)

    def _draw(self, prompts: Prompts, decoding: Decoding, cache: KVCache | None) -> Iterator[Tensor]:
        rows = len(prompts.tokens)
        fed, mask = prompts.tokens, prompts.mask
        seen = seen_tokens(fed, self.net.num_tokens, mask) if decoding.penalty != 1.0 else None
        ended = torch.zeros(rows, dtype=torch.bool, device=fed.device)
        x = self._read(fed, mask, decoding, cache, decoding.context)
        x = prompts.last(x)
        for step in range(decoding.seq_len):
            logits = self.net.logits(x)
            if seen is not None:
                logits = repetition_penalty(logits, seen, decoding.penalty)
            token = sample(logits, decoding.temperature, decoding.filters, decoding.generator)
            if decoding.eos is not None:
                token = torch.where(ended, self.pad_value, token)
            if seen is not None:
                seen = mark_seen(seen, token)
            yield token
            alive = None
            if decoding.eos is not None:
                alive = ~ended
                ended = ended | (alive & torch.isin(token, decoding.eos))
            finished = step + 1 == decoding.seq_len or (decoding.eos is not None and bool(ended.all()))
            if finished and not decoding.keep_cache:
                return
            if self.net.training:  # the caller may have changed it between two tokens
                self.net.eval()
            x, fed, mask = self._advance(token, alive, fed, mask, decoding, cache)
            if finished:
                return

    def _advance(
        self, token: Tensor, alive: Tensor | None, fed: Tensor, mask: Tensor | None, decoding: Decoding,
        cache: KVCache | None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        """Read one more token a row: [B] -> embeddings [B M] to predict from, and what was fed so far."""
        keep = alive[:, None] if alive is not None and decoding.keep_cache else None  # ended rows stay as they are
        if decoding.use_cache:
            return self._read(token[:, None], keep, decoding, cache, None)[:, -1], fed, mask
        fed = torch.cat([fed, token[:, None]], dim=1)
        if mask is not None:
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        fresh = None if cache is None else self.net.new_cache(len(fed), window=self.net.max_seq_len)
        return self._read(fed, mask, decoding, fresh, decoding.context)[:, -1], fed, mask

    def _read(
        self, tokens: Tensor, mask: Tensor | None, decoding: Decoding, cache: KVCache | None, context: Tensor | None
    ) -> Tensor:
        return self.net(
            tokens, mask=mask, cache=cache, return_embeddings=True, checked=True, context=context,
            context_mask=decoding.context_mask if context is not None else None,
        )  # fmt: skip


def _but_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x[..., :-1]


def _positions_but_last(positions: Tensor | None, length: int) -> Tensor | None:
    if positions is None:
        return None
    tokens_axis = 0 if positions.ndim == 1 else 1
    return positions.narrow(tokens_axis, 0, length - 1)
