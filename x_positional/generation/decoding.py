"""Autoregressive decoding: prefill once, then one token a step.

B batch, T prompt tokens, S tokens so far, M model dim.
"""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from x_positional.attention.cache import KVCache
from x_positional.attention.inputs import check_positions, following_positions, where_tokens
from x_positional.errors import CacheError, InputError
from x_positional.generation.prompts import Prompts
from x_positional.generation.sampling import LogitsFilter, mark_seen, repetition_penalty, sample, seen_tokens
from x_positional.models.language import TransformerWrapper


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Every module inside in eval mode; afterwards each is as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How to pick tokens and when to stop. keep_cache: the cache is to hold every token that was handed out."""

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
    positions: Tensor | None = None  # of the prompts


class Run:
    """One call of generate or stream. Raises InputError, CacheError where its tokens do not fit model or cache."""

    def __init__(
        self, net: TransformerWrapper, prompts: Prompts, decoding: Decoding, cache: KVCache | None, pad_value: int
    ):
        self.net, self.prompts, self.decoding, self.pad_value = net, prompts, decoding, pad_value
        if prompts.tokens.shape[1]:
            net.check_tokens(prompts.tokens)
        schemes = net.attn_layers.position_schemes
        self.changing = [s for s in schemes if not s.capabilities().kv_cacheable]  # a longer text has other keys
        self.fed, self.mask = prompts.tokens, prompts.mask  # [B S], grown only where tokens may be read again
        self.positions = None if decoding.positions is None else self._prompt_positions(decoding.positions)
        foresees = cache is None and any(s.takes_final_length for s in schemes)  # a cache given has lengths of its own
        self.final_lengths = self._final_lengths() if foresees else None
        self.cache = self._choose_cache(cache)
        self.lengths = self._prompt_lengths() if self.changing else []
        self.cache_key = self._cache_keys()
        self.ended = torch.zeros(len(self.fed), dtype=torch.bool, device=self.fed.device)

    def _choose_cache(self, cache: KVCache | None) -> KVCache | None:
        """The cache given, if the run fits into it; else one of the final size; None where none is used."""
        net, decoding = self.net, self.decoding
        last_unread = decoding.seq_len > 0 and not decoding.keep_cache
        total = self._longest_row(cache) + decoding.seq_len - last_unread
        _check_length(net, total)
        past = decoding.restrict and total > net.max_seq_len
        if cache is not None:
            _check_room(cache, total, net.max_seq_len if past else None)
            return cache
        window = net.max_seq_len if past or (decoding.restrict and decoding.keep_cache) else None
        if not decoding.use_cache and window is None and self.final_lengths is None:
            return None
        grows = decoding.keep_cache or window is not None
        self.room = (None if grows else total, window)
        return self._new_cache()

    def _longest_row(self, cache: KVCache | None) -> int:
        """Tokens of the longest row, those in the cache and the prompt. Looks at the device where rows differ."""
        before = 0 if cache is None else cache.starts()
        prompt = self.prompts.tokens.shape[1] if self.prompts.mask is None else self.prompts.mask.sum(dim=-1)
        total = before + prompt
        return total if isinstance(total, int) else int(total.max())

    def _new_cache(self) -> KVCache:
        (max_len, window), rereads = self.room, bool(self.changing) and not self.decoding.keep_cache
        return self.net.new_cache(
            len(self.prompts.tokens), max_len=max_len, window=window, rereads=rereads, final_lengths=self.final_lengths
        )

    def _final_lengths(self) -> Tensor:
        """[B|1] the last position + 1 of each row once all that was asked for is drawn."""
        if self.positions is not None:
            prompt = following_positions(self.positions).reshape(len(self.fed), -1)[:, 0]
        elif self.mask is not None:
            prompt = self.mask.sum(dim=-1)
        else:
            prompt = torch.full((1,), self.fed.shape[1], device=self.fed.device)
        return prompt + self.decoding.seq_len

    def _prompt_positions(self, positions: Tensor) -> Tensor:
        """[B T] or [B T A], -1 where there is no token. Raises InputError."""
        batch, length = self.fed.shape
        positions = check_positions(positions, batch, length).to(self.fed.device)
        if positions.is_floating_point():
            raise InputError(
                f"positions of prompts are {positions.dtype}, and nothing says where the new tokens would be. Give integers, "
                "or decode with model(tokens, positions=..., cache=cache) yourself."
            )
        positions = positions.expand(batch, *positions.shape[1:])
        return positions if self.mask is None else where_tokens(positions, self.mask)

    def _prompt_lengths(self) -> list[int]:
        """Tokens per row."""
        tokens, mask = self.prompts.tokens, self.prompts.mask
        return [tokens.shape[1]] * len(tokens) if mask is None else mask.sum(dim=-1).tolist()

    def _cache_keys(self) -> Hashable:
        """Cached keys are right until this changes."""
        return tuple(scheme.cache_key(length) for scheme in self.changing for length in self.lengths)

    @torch.no_grad()
    def tokens(self) -> Iterator[Tensor]:
        """The new tokens, [B] at a time; the model is in eval mode meanwhile."""
        with evaluating(self.net):
            yield from self._draw()

    def _draw(self) -> Iterator[Tensor]:
        decoding, seen = self.decoding, None
        if decoding.penalty != 1.0:
            seen = seen_tokens(self.fed, self.net.num_tokens, self.mask)
        x = self._prefill()
        for step in range(decoding.seq_len):
            logits = self.net.logits(x)
            if seen is not None:
                logits = repetition_penalty(logits, seen, decoding.penalty)
            token = sample(logits, decoding.temperature, decoding.filters, decoding.generator)
            if decoding.eos is not None:
                token = torch.where(self.ended, self.pad_value, token)
            if seen is not None:
                seen = mark_seen(seen, token)
            try:
                yield token
            except GeneratorExit:  # the caller stops here, and this token was handed out
                if decoding.keep_cache:
                    self._advance(x, token)
                raise
            last = step + 1 == decoding.seq_len or self._all_end(token)
            if last and not decoding.keep_cache:
                return
            x = self._advance(x, token)
            if last:
                return

    def _all_end(self, token: Tensor) -> bool:
        """Whether no row goes on after these tokens [B]. The one look at values, and only where eos asks for it."""
        eos = self.decoding.eos
        return eos is not None and bool((self.ended | torch.isin(token, eos)).all())

    def _prefill(self) -> Tensor:
        """[B M] that the first new token is predicted from."""
        cache, prompts = self.cache, self.prompts
        if cache is not None and cache.ending is not None and not prompts.tokens.shape[1]:
            return cache.ending[1]
        x = prompts.last(self._read(prompts.tokens, prompts.mask, cache, self.decoding.context, self.positions))
        if cache is not None and self.decoding.keep_cache:
            cache.ending = (cache.span, x)
        return x

    def _advance(self, x: Tensor, token: Tensor) -> Tensor:
        """Read one more token a row, [B]; x [B M] predicted it, what is returned predicts the next."""
        if self.net.training:  # the caller may have changed it between two tokens
            self.net.eval()
        alive, eos, cache = ~self.ended, self.decoding.eos, self.cache
        if eos is not None:
            self.ended = self.ended | torch.isin(token, eos)
        if not self.decoding.use_cache or self.changing:
            self._append(token)
        if not self.decoding.use_cache or self._outgrown():
            return self._read_again()
        if not self.decoding.keep_cache:
            return self._read(token[:, None], None, cache, None)[:, -1]
        new = self._read(token[:, None], None if eos is None else alive[:, None], cache, None)[:, -1]
        x = torch.where(alive[:, None], new, x)  # rows that ended stay as they were
        if cache is not None:
            cache.ending = (cache.span, x)
        return x

    def _append(self, token: Tensor) -> None:
        self.fed = torch.cat([self.fed, token[:, None]], dim=1)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        if self.positions is not None:
            after = following_positions(self.positions)[:, None]
            self.positions = torch.cat([self.positions, after], dim=1)

    def _outgrown(self) -> bool:
        """Whether one more token a row changes the keys of those before it."""
        before, self.lengths = self.cache_key, [length + 1 for length in self.lengths]
        self.cache_key = self._cache_keys()
        return self.cache_key != before

    def _read_again(self) -> Tensor:
        """All tokens so far, from the first on -> [B M]."""
        self.cache = None if self.cache is None else self._new_cache()
        return self._read(self.fed, self.mask, self.cache, self.decoding.context, self.positions)[:, -1]

    def _read(
        self,
        tokens: Tensor,
        mask: Tensor | None,
        cache: KVCache | None,
        context: Tensor | None,
        positions: Tensor | None = None,
    ) -> Tensor:
        context_mask = None if context is None else self.decoding.context_mask
        return self.net(
            tokens,
            mask=mask,
            positions=positions,
            cache=cache,
            return_embeddings=True,
            checked=True,
            context=context,
            context_mask=context_mask,
        )


def _check_length(net: TransformerWrapper, total: int) -> None:
    limits = [s.limit for s in net.attn_layers.position_schemes if s.limit is not None]
    if limits and total > min(limits):
        raise InputError(
            f"prompt and seq_len together feed {total} tokens, and this model's positions end at {min(limits)} "
            f"(max_seq_len={net.max_seq_len}): there is no row for more. Ask for fewer, or use a scheme without "
            "a table (rope, alibi, ...)."
        )


def _check_room(cache: KVCache, total: int, longest: int | None) -> None:
    """Raises where a cache cannot take `total` tokens a row, or keeps more than the `longest` that a token may see."""
    if longest is not None and any(window.kept is None or window.kept > longest for window in cache.windows):
        raise InputError(
            f"with what is in the cache a row comes to {total} tokens, past max_seq_len={longest}, where "
            "restrict_to_max_seq_len=True shows the last max_seq_len only, and this cache shows them all. Make it with "
            f"new_cache({cache.batch_size}, window={longest}), or say restrict_to_max_seq_len=False."
        )
    if cache.max_len is not None and total > cache.max_len and any(window.kept is None for window in cache.windows):
        raise CacheError(
            f"the cache holds max_len={cache.max_len} tokens a row, and with this call a row comes to {total}. "
            "Make it with a larger max_len, or with max_len=None to let it grow."
        )
