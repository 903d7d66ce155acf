"""Decoding with a cache gives the logits of one full forward pass.

B batch, T tokens, V vocabulary.
"""

from typing import Any

import torch
from torch import Tensor

from x_positional.attention.cache import CachePass, KeyView, KVCache
from x_positional.errors import PositionError
from x_positional.models.language import TransformerWrapper
from x_positional.schemes.base import PositionScheme
from x_positional.testing.expect import SAFETY, CheckFailed, Expect, difference
from x_positional.testing.subject import Subject, forced, forced_cache

STEPS = 127
"""Of an int8 cache, from 0 to the largest entry."""
LENGTH, WINDOW = 23, 5
CHUNKS = (1, 3, 7, LENGTH)


def decode(model: TransformerWrapper, cache: KVCache, chunk: int, tokens: Tensor, **per_token: Tensor) -> Tensor:
    """[B T] -> [B T V], `chunk` tokens at a time; masks, positions and documents are split alike."""
    pieces = [
        model(part, cache=cache, **{name: value[:, start : start + chunk] for name, value in per_token.items()})
        for start, part in zip(range(0, tokens.shape[1], chunk), tokens.split(chunk, 1), strict=True)
    ]
    return torch.cat(pieces, 1)


def need_cache(subject: Subject) -> None:
    """Raises NotApplicable for a scheme that cannot be cached."""
    subject.need_decoder()
    subject.need_cacheable()


@torch.no_grad()
def cached_equals_full(subject: Subject, expect: Expect) -> None:
    """Chunks of 1, 3, 7 and all tokens through a growing and a static cache give the logits of the full pass. With
    kv_cacheable=False a cache is refused, a forced one gives different logits, and one is right while the cache key stays
    the same."""
    subject.need_decoder()
    model, tokens = subject.model("decoder"), subject.tokens(LENGTH)
    full = model(tokens)
    if not subject.capabilities("decoder").kv_cacheable:
        _fails_cached(expect, model, tokens)
        _recomputes(expect, model, tokens, subject.scheme("decoder"))
        return
    for chunk in CHUNKS:
        expect.equal(decode(model, model.new_cache(3), chunk, tokens), full, f"a growing cache, chunks of {chunk}")
        static = model.new_cache(3, max_len=LENGTH)
        expect.equal(decode(model, static, chunk, tokens), full, f"a static cache, chunks of {chunk}")
    if subject.capabilities("decoder").uses_positions:
        positions = subject.stretched(LENGTH)
        got = decode(model, model.new_cache(3), 3, tokens, positions=positions)
        expect.equal(got, model(tokens, positions=positions), "a growing cache, custom positions")


def _fails_cached(expect: Expect, model: TransformerWrapper, tokens: Tensor) -> None:
    expect.refused(lambda: model.new_cache(3), PositionError, "new_cache with kv_cacheable=False")
    cache = forced_cache(model, 3)
    last = [forced(model, part, cache=cache)[:, -1] for part in tokens.split(1, 1)]
    right = [model(tokens[:, : n + 1])[:, -1] for n in range(LENGTH)]
    same = expect.equal_or_apart(torch.stack(last), torch.stack(right), "a forced cache")
    expect.that(not same, "kv_cacheable=False is declared, but cached logits equal those of the full pass.")


def _recomputes(expect: Expect, model: TransformerWrapper, tokens: Tensor, scheme: PositionScheme) -> None:
    cache = model.new_cache(3, rereads=True)
    for n in range(1, LENGTH + 1):
        new = tokens[:, n - 1 : n]
        if n > 1 and scheme.cache_key(n) != scheme.cache_key(n - 1):
            cache, new = model.new_cache(3, rereads=True), tokens[:, :n]
        want = model(tokens[:, :n])[:, -1]
        expect.equal(model(new, cache=cache)[:, -1], want, f"token {n}, prefix recomputed where the cache key changes")


@torch.no_grad()
def cache_grows(subject: Subject, expect: Expect) -> None:
    """A growing cache stays right when it is enlarged in the middle of a sequence, in chunks and token by token."""
    need_cache(subject)
    model, tokens = subject.model("decoder"), subject.tokens(141, batch=2)
    full, bound = model(tokens), subject.rounding("decoder", 141)
    expect.equal(decode(model, model.new_cache(2), 31, tokens), full, "141 tokens, chunks of 31", bound)
    cache = model.new_cache(2)
    head, tail = decode(model, cache, 61, tokens[:, :61]), decode(model, cache, 1, tokens[:, 61:71])
    expect.equal(torch.cat([head, tail], 1), full[:, :71], "61 tokens, then 10 single ones", bound)


@torch.no_grad()
def sliding_windows(subject: Subject, expect: Expect) -> None:
    """A window of 5, in the model or in the cache, gives the logits of the windowed full pass for every chunk size."""
    need_cache(subject)
    model, open_model, tokens = (
        subject.model("decoder", window=WINDOW),
        subject.model("decoder"),
        subject.tokens(LENGTH),
    )
    full = model(tokens)
    for chunk in (*CHUNKS, 2, 5, 9):
        expect.equal(decode(model, model.new_cache(3), chunk, tokens), full, f"a windowed model, chunks of {chunk}")
        sliding = open_model.new_cache(3, window=WINDOW)
        expect.equal(decode(open_model, sliding, chunk, tokens), full, f"a sliding cache, chunks of {chunk}")
    if subject.capabilities("decoder").uses_positions:
        positions = subject.stretched(LENGTH)
        want = model(tokens, positions=positions)
        for chunk in (1, 3, 9):
            got = decode(model, model.new_cache(3), chunk, tokens, positions=positions)
            expect.equal(got, want, f"a windowed model, custom positions, chunks of {chunk}")


@torch.no_grad()
def cache_reorders(subject: Subject, expect: Expect) -> None:
    """After cache.reorder(rows), as in beam search, and cache.repeat(2), as for continuations of a prefix, decoding continues as if
    the cache held those rows from the start."""
    need_cache(subject)
    model, prompt, more = subject.model("decoder"), subject.tokens(11), subject.tokens(6, seed=2)
    for mask in (None, _padding(subject)):
        cache = model.new_cache(3)
        model(prompt, mask=mask, cache=cache)
        whole = None if mask is None else torch.cat([mask, torch.ones_like(more, dtype=torch.bool)], 1)
        for rows in ([2, 0, 0], [1, 2], [0, 0, 1, 1, 2, 2]):
            picked = torch.tensor(rows, device=subject.device)
            new = cache.copy().repeat(2) if len(rows) == 6 else cache.copy().reorder(picked)
            got = decode(model, new, 4, more[picked])
            tokens, keep = torch.cat([prompt, more], 1)[picked], None if whole is None else whole[picked]
            want = model(tokens, mask=keep)[:, 11:]
            expect.equal(got, want, f"rows {rows} of {'a plain' if mask is None else 'a padded'} batch")


def _padding(subject: Subject) -> Tensor:
    """[3 11] bool: 11, 7 and 4 tokens."""
    return torch.arange(11, device=subject.device) >= torch.tensor([[0], [4], [7]], device=subject.device)


@torch.no_grad()
def cache_crops(subject: Subject, expect: Expect) -> None:
    """After cache.crop(length), as where speculative decoding rejects proposals, decoding continues as if the cache had never held
    the other tokens: with one length for all rows, one for each, or a number of tokens to drop."""
    need_cache(subject)
    model, prompt, more = subject.model("decoder"), subject.tokens(11), subject.tokens(6, seed=2)
    rejected = subject.tokens(4, seed=3)
    for mask in (None, _padding(subject)):
        held = torch.full_like(prompt[:, 0], 11) if mask is None else mask.sum(1)
        cache = model.new_cache(3)
        model(prompt, mask=mask, cache=cache)
        model(rejected, cache=cache)
        cache.crop(-4)
        model(rejected[:, :1], cache=cache)
        cache.crop(held)
        first = model(more[:, :2], cache=cache)
        model(rejected, cache=cache)
        cache.crop(held + 2)
        emptied = cache.copy().crop(0)
        got = torch.cat([first, decode(model, cache, 3, more[:, 2:])], 1)
        whole = None if mask is None else torch.cat([mask, torch.ones_like(more, dtype=torch.bool)], 1)
        want = model(torch.cat([prompt, more], 1), mask=whole)[:, 11:]
        batch = "a plain batch" if mask is None else "a padded batch"
        expect.equal(got, want, f"tokens cropped three times, of {batch}")
        expect.equal(model(more, cache=emptied), model(more), f"all tokens cropped, of {batch}")


class NoisyCache(KVCache):
    """A cache of floats that adds noise to keys and values: as much as rounding to int8 does, and independent of them."""

    @classmethod
    def of(cls, cache: KVCache, seed: int) -> "NoisyCache":
        """An empty one like `cache`."""
        new = cls(cache.windows, cache.batch_size, cache.max_len, cache.device, cache.dtype, cache.owner)
        new.random = torch.Generator().manual_seed(seed)
        return new

    random: torch.Generator

    def begin(self, *args: Any, **options: Any) -> CachePass:
        started = super().begin(*args, **options)
        noisy = object.__new__(NoisyPass)
        noisy.__dict__.update(vars(started), random=self.random)
        return noisy


class NoisyPass(CachePass):
    """A pass over a NoisyCache."""

    random: torch.Generator

    def write(
        self, layer: int, view: KeyView, k: Tensor, v: Tensor, state: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        return super().write(layer, view, self._noisy(k), self._noisy(v), state)

    def _noisy(self, x: Tensor) -> Tensor:
        noise = torch.rand(x.shape, generator=self.random).to(x) - 0.5
        return x + noise * x.abs().amax(-1, keepdim=True) / STEPS


@torch.no_grad()
def int8_cache(subject: Subject, expect: Expect) -> None:
    """A cache in int8 keeps every entry of the first layer within half a step. It changes logits at most 4 times as much as
    random noise of that size, for chunks of 1, 3, 7 and all tokens, with a window too."""
    need_cache(subject)
    model, tokens = subject.model("decoder"), subject.tokens(LENGTH)
    exact, rounded = model.new_cache(3), model.new_cache(3, dtype=torch.int8)
    full = decode(model, exact, 7, tokens)
    decode(model, rounded, 7, tokens)
    k, v, *_ = exact.state.layers[0]
    k_integers, v_integers, _, k_scale, v_scale = rounded.state.layers[0]
    _stored_within_half_a_step(expect, k, k_integers, k_scale)
    _stored_within_half_a_step(expect, v, v_integers, v_scale)
    noisy = [decode(model, NoisyCache.of(exact, seed), 7, tokens) for seed in range(3)]
    bound = SAFETY * max(difference(logits, full) for logits in noisy)
    for window in (None, WINDOW):
        want = full if window is None else subject.model("decoder", window=window)(tokens)
        for chunk in CHUNKS:
            got = decode(model, model.new_cache(3, window=window, dtype=torch.int8), chunk, tokens)
            if not (measured := difference(got, want)) <= bound:
                raise CheckFailed(
                    f"a cache in int8, window {window}, chunks of {chunk}: logits are off by {measured:.2g}; noise of half a "
                    f"step explains at most {bound:.2g}.",
                    measured / bound,
                )


def _stored_within_half_a_step(
    expect: Expect, exact: Tensor | None, integers: Tensor | None, scale: Tensor | None
) -> None:
    if exact is None or integers is None or scale is None:
        raise CheckFailed("a cache in int8 stores no integers and scales.")
    step = exact.abs().amax(-1, keepdim=True).clamp(min=1e-30) / STEPS
    off = ((integers * scale - exact).abs() / step).max().item()
    expect.that(off <= 0.5 + 1e-3, f"an entry is stored {off:.3g} steps away; rounding explains half a step.")
