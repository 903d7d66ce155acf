"""Autoregressive decoding: prefill once, then one token per step.

P prompts, B rows (one or several sequences per prompt, or its beams), T prompt tokens, S tokens so far, N new tokens,
M model dim, V vocabulary.
"""

import itertools
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from x_positional.attention.cache import CrossContext, KVCache
from x_positional.attention.cache_rows import take_rows
from x_positional.attention.cross import ContextInputs, refuse_another
from x_positional.attention.embeds import check_covers_prepended
from x_positional.attention.inputs import INTEGERS, as_tensor, check_positions, where_tokens
from x_positional.attention.tokens import following_positions
from x_positional.errors import CacheError, InputError, listed
from x_positional.generation.callbacks import as_list, processed, stopped
from x_positional.generation.contrast import Contrasted
from x_positional.generation.eval_mode import in_eval_mode
from x_positional.generation.options import DecodeOptions, GenerateOptions
from x_positional.generation.prefill import check_chunks, check_limits, read_in_chunks
from x_positional.generation.prompts import Prompts, read_prompts
from x_positional.generation.proposals import DraftModel
from x_positional.generation.sampling import (
    LogitsFilter,
    LogitsGuard,
    draw,
    log_probabilities,
    mark_seen,
    repetition_penalty,
    seen_tokens,
    vocabulary_problems,
)
from x_positional.generation.speculative import Speculation, speculation_problems
from x_positional.generation.step.compiled import CompiledSteps, announce, give_up, pays, refusals, worth_a_look
from x_positional.generation.step.graph import CompileError, Drawn, GraphDraw
from x_positional.schemes.base import PositionScheme
from x_positional.schemes.precision import wide_dtype


class Layers(Protocol):
    """What decoding needs of a model's layers."""

    @property
    def position_schemes(self) -> list[PositionScheme]: ...


class LanguageModel(Protocol):
    """What decoding needs of a model; `TransformerWrapper` has it."""

    num_tokens: int
    max_seq_len: int
    training: bool

    @property
    def attn_layers(self) -> Layers: ...
    def parameters(self) -> Iterator[nn.Parameter]: ...
    def check_tokens(self, tokens: Tensor) -> None: ...
    def check_embeds(self, x: Any, name: str, batch: int | None = None) -> Tensor: ...
    def new_cache(
        self,
        batch_size: int,
        max_len: int | None = None,
        window: int | None = None,
        *,
        rereads: bool = False,
        final_lengths: Tensor | None = None,
    ) -> KVCache: ...
    def __call__(self, tokens: Tensor | None, **inputs: Any) -> Tensor: ...
    def logits(self, x: Tensor) -> Tensor: ...


class DecodeLoop:
    """One call of `generate` or `stream` that draws tokens; `BeamSearch` is one that searches.

    Raises InputError or CacheError, before anything is computed, where the options do not fit the model or the cache.
    """

    def __init__(self, net: LanguageModel, options: DecodeOptions, pad_value: int):
        if options.contrast is not None:
            net = Contrasted(net, options.contrast, options.restrict_to_max_seq_len)
        self.given, self.net, self.options, self.pad_value = net, in_eval_mode(net), options, pad_value
        device = next(net.parameters()).device
        given = options.prompts, options.prompt_lens, options.cache, device, options.prepend_embeds
        self.prompts = read_prompts(*given, net.check_embeds)
        self.eos = _eos_ids(options.eos_token, net.num_tokens, device)
        seed = options.seed
        self.generator = options.generator if seed is None else torch.Generator(device).manual_seed(seed)
        self.guard = LogitsGuard(device)
        _check_filters(options.filters, net.num_tokens)
        _check_generator(options.generator, device)
        if self.prompts.tokens.shape[1]:
            net.check_tokens(self.prompts.tokens)
        schemes = net.attn_layers.position_schemes
        self.length_dependent = [s for s in schemes if not s.capabilities().kv_cacheable]  # their keys change with S
        # tokens [B S], mask and positions [B P+S], extended only if read again
        self.sequence, self.mask = self.prompts.tokens, self.prompts.mask
        self.positions = None if options.positions is None else self._prompt_positions(options.positions)
        self.prefix = self.prompts.prefix(options.prefix_len, options.cache)
        takes_final_length = any(s.takes_final_length for s in schemes)
        # a cache that is passed in brings its own final lengths
        self.final_lengths = self._final_lengths() if takes_final_length and options.cache is None else None
        self.cache = self._choose_cache()
        self.lengths = self._prompt_lengths() if self.length_dependent else []
        longest = max(self.lengths, default=0) + options.seq_len
        check_chunks(options.prefill_chunk_size, self.prompts.places, longest, self.length_dependent, self.prefix)
        self.cache_key = self._cache_keys()
        self.context, self.context_mask = options.context, options.context_mask
        self.processors, self.criteria = as_list(options.logits_processors), as_list(options.stopping_criteria)
        self.may_end = self.eos is not None or bool(self.criteria)
        self.ended = torch.zeros(len(self.sequence), dtype=torch.bool, device=device)
        self.alive, self.ends = ~self.ended, self.ended
        penalized = options.repetition_penalty != 1.0
        self.seen = (
            seen_tokens(self.sequence, net.num_tokens, self.prompts.token_mask) if penalized else None
        )  # [B V] bool
        called = self.processors or self.criteria
        self.history = self.sequence[:, :0] if called else None  # [B N], for functions of the caller
        self.log_probs: list[Tensor] | None = [] if options.keeps_log_probs else None  # [B] each
        self.compiled: CompiledSteps | None = None
        self.speculation = self._speculation()
        if options.compile is True:
            self._reasons_not_to_compile()

    def _choose_cache(self) -> KVCache | None:
        """The cache passed in, if this call fits into it, or a new one of the final size; None if none is used."""
        net, options, cache = self.net, self.options, self.options.cache
        last_unread = options.seq_len > 0 and not options.keeps_cache
        total = self.total = self._longest_row() + options.seq_len - last_unread
        check_limits(net.attn_layers.position_schemes, total, net.max_seq_len)
        restrict = options.restrict_to_max_seq_len
        exceeds = restrict and total > net.max_seq_len
        if cache is not None:
            _check_room(cache, total, net.max_seq_len if exceeds else None)
            return cache
        window = net.max_seq_len if exceeds or (restrict and options.keeps_cache) else None
        if not options.cache_kv and window is None and self.final_lengths is None:
            return None
        grows = options.keeps_cache or window is not None
        self.cache_size = (None if grows else total, window)
        return self._new_cache()

    def _longest_row(self) -> int:
        """Tokens of the longest row, cache and prompt together. Forces a device sync if rows differ."""
        before = 0 if self.options.cache is None else self.options.cache.starts()
        total = before + self.prompts.lengths
        return total if isinstance(total, int) else int(total.max())

    def _new_cache(self) -> KVCache:
        (max_len, window), rereads = self.cache_size, bool(self.length_dependent) and not self.options.keeps_cache
        return self.net.new_cache(
            len(self.sequence), max_len=max_len, window=window, rereads=rereads, final_lengths=self.final_lengths
        )

    def _final_lengths(self) -> Tensor:
        """[B|1] the last position + 1 of each row after all seq_len tokens."""
        if self.positions is not None:
            prompt = following_positions(self.positions).reshape(len(self.sequence), -1)[:, 0]
        else:
            prompt = torch.as_tensor(self.prompts.lengths, device=self.sequence.device).reshape(-1)
        return prompt + self.options.seq_len

    def _prompt_positions(self, positions: Tensor) -> Tensor:
        """[B T] or [B T A], -1 where there is no token. Raises InputError."""
        batch, length, embeds = len(self.sequence), self.prompts.places, self.prompts.embeds
        if embeds is not None:
            check_covers_prepended((embeds, self.sequence), positions=positions)
        positions = check_positions(positions, batch, length).to(self.sequence.device)
        if positions.is_floating_point():
            raise InputError(
                f"positions of prompts are {positions.dtype}, which does not determine the positions of new tokens. Pass "
                "integers, or decode in a loop of model(tokens, positions=..., cache=cache)."
            )
        positions = positions.expand(batch, *positions.shape[1:])
        return positions if self.mask is None else where_tokens(positions, self.mask)

    def _prompt_lengths(self) -> list[int]:
        """Tokens per row; with positions given, the next position, which the frequencies of a length follow."""
        rows, lengths = len(self.sequence), self.prompts.lengths
        if self.positions is not None:
            return following_positions(self.positions).reshape(rows, -1)[:, 0].tolist()
        return [lengths] * rows if isinstance(lengths, int) else lengths.tolist()

    def _cache_keys(self) -> Hashable:
        """Cached keys stay valid as long as this is unchanged."""
        return tuple(scheme.cache_key(length) for scheme in self.length_dependent for length in self.lengths)

    def generate(self) -> Tensor:
        """The new tokens [B N], or [N] for a single prompt [T]. If it fails, the cache passed in is as before."""
        cache = self.options.cache
        before = None if cache is None else cache.snapshot(self.total)
        try:
            with torch.no_grad():
                tokens = self._new_tokens()
        except BaseException:
            if cache is not None and before is not None:
                cache.restore(before)
            raise
        return self._as_returned(tokens)

    def _new_tokens(self) -> Tensor:
        """[B N] of all returned rows."""
        new = list(self._tokens())
        return torch.stack(new, dim=1) if new else self.sequence[:, :0]

    def results(self) -> Any:
        """What `generate` of a model returns: tokens, then log-probabilities and the cache, where they are asked for."""
        found: list[Any] = [self.generate()]
        if self.options.keeps_log_probs:
            found.append(self._new_log_probs())
        if self.cache is not None and isinstance(self.options, GenerateOptions) and self.options.return_cache:
            found.append(self.cache)
        return tuple(found) if len(found) > 1 else found[0]

    def _new_log_probs(self) -> Tensor:
        """[B N] under the model, of the tokens that `generate` returned; 0 after the end of a row."""
        if self.log_probs:
            return self._as_returned(torch.stack(self.log_probs, dim=1))
        return self._as_returned(self.x.new_empty(len(self.x), 0, dtype=wide_dtype(self.x.dtype)))

    def _as_returned(self, rows: Tensor) -> Tensor:
        """Rows [B N], or [N] for a single sequence of a single prompt [T]."""
        return rows[0] if self.prompts.single and len(rows) == 1 else rows

    @torch.no_grad()
    def stream(self) -> Iterator[Tensor]:
        """The new tokens, [B] at a time, as in eval mode. The model's own mode stays as it is."""
        yield from self._tokens()

    def _tokens(self) -> Iterator[Tensor]:
        options = self.options
        self.x = self._prefill()
        self._spread(options.num_return_sequences)
        if not options.seq_len:
            return
        drawn = self._draw(self.net.logits(self.x))
        if self.speculation is not None:
            yield from self._speculative_stream(self.speculation, drawn)
            return
        self.compiled = self._compile()
        for step in range(options.seq_len):
            token = self._read(drawn)
            try:
                yield token
            except GeneratorExit:  # the caller stops after this token, so a kept cache must hold it
                if options.keeps_cache:
                    self._feed(token)
                raise
            last = step + 1 == options.seq_len or self._all_ended()
            if not last:
                drawn = self._next(token)
            elif options.keeps_cache:
                self._feed(token)
            if last:
                break
        self.guard.finish()

    def _spread(self, count: int) -> None:
        """Copy the row of each prompt: rows i * count to i * count + count - 1 continue prompt i."""
        if count == 1:
            return
        prompts = len(self.sequence)
        if self.cache is not None:
            self.cache.repeat(count)
        rows = torch.arange(prompts, device=self.x.device).repeat_interleave(count)

        def spread(t: Tensor | None) -> Any:
            return None if t is None else take_rows(t, rows, prompts)

        tokens, mask, embeds = (spread(t) for t in (self.prompts.tokens, self.prompts.mask, self.prompts.embeds))
        self.prompts = replace(self.prompts, tokens=tokens, mask=mask, embeds=embeds)
        self.x, self.sequence, self.mask = spread(self.x), tokens, mask
        self.positions, self.final_lengths = spread(self.positions), spread(self.final_lengths)
        self.context, self.context_mask = spread(self.context), spread(self.context_mask)
        self.prefix = spread(self.prefix) if isinstance(self.prefix, Tensor) else self.prefix
        self.seen, self.history = spread(self.seen), spread(self.history)
        self.ended, self.alive, self.ends = spread(self.ended), spread(self.alive), spread(self.ends)
        self.lengths = [length for length in self.lengths for _ in range(count)]
        self.cache_key = self._cache_keys()

    def _speculation(self) -> Speculation | None:
        """How this call speculates, if it does. Raises InputError."""
        options, cache, how = self.options, self.cache, self.options.speculate
        if how is None:
            return None
        reasons = [
            f"keys of {type(scheme).__name__} depend on the length of the sequence, so rejected tokens change them"
            for scheme in self.length_dependent
        ]
        rows = len(self.sequence) * options.num_return_sequences
        reasons += speculation_problems(how, self.net, cache, rows, self.total, options.filters)
        if self.prompts.prepended and isinstance(how, DraftModel):
            reasons.append(
                "a draft model reads tokens, and its proposals would ignore prepend_embeds. Use PromptLookup"
            )
        if reasons or cache is None:
            raise InputError(listed("speculative decoding is not possible here:", reasons))
        return Speculation(
            how,
            cache,
            self.sequence[0].tolist(),
            self.total,
            options.temperature,
            options.filters,
            self.generator,
            penalty=options.repetition_penalty,
            chunk=options.prefill_chunk_size,
            log_probs=self.log_probs is not None,
        )

    def _speculative_stream(self, speculation: Speculation, drawn: Drawn) -> Iterator[Tensor]:
        """The tokens of `stream`, of which one pass may give several."""
        run, left, log_probs = [drawn], self.options.seq_len, iter(())
        while True:
            for unread, drawn in zip(reversed(range(len(run))), run, strict=True):  # tokens of the run after this one
                token, left = self._read(drawn), left - 1
                if self.log_probs is not None:
                    self.log_probs.extend(itertools.islice(log_probs, 1))
                last = not left or self._all_ended()
                try:
                    yield token
                except GeneratorExit:
                    self._end_run(token, unread)
                    raise
                if last:
                    self._end_run(token, unread)
                    self.guard.finish()
                    speculation.finish()
                    return
            if self.net.training:  # the caller switched modes between two tokens
                self.net = in_eval_mode(self.net)
            run = speculation.next(self.net, run[-1][0], left, self.seen)
            log_probs = iter(speculation.log_probs)

    def _end_run(self, token: Tensor, unread: int) -> None:
        """Bring a kept cache to the last token that was handed out, before `unread` others of the same pass."""
        if self.options.keeps_cache and self.cache is not None:
            if unread:
                self.cache.crop(-unread)
            self._feed(token)

    def _steered(self, logits: Tensor) -> Tensor:
        """Logits [B V] after the repetition penalty and the logits processors."""
        if self.seen is not None:
            logits = repetition_penalty(logits, self.seen, self.options.repetition_penalty)
        if self.processors and self.history is not None:
            logits = processed(self.processors, self.history, logits)
        return logits

    def _draw(self, logits: Tensor) -> Drawn:
        """Logits [B V] -> the next tokens and the largest filtered logits, [B] each."""
        options = self.options
        model = None if self.log_probs is None else log_probabilities(logits)
        token, largest = draw(self._steered(logits), options.temperature, options.filters, self.generator)
        if self.log_probs is not None and model is not None:
            found = model.gather(1, token[:, None])[:, 0]
            self.log_probs.append(found.masked_fill(self.ended, 0.0) if self.may_end else found)
        return token, largest

    def _read(self, drawn: Drawn) -> Tensor:
        """The tokens [B] of a draw, checked, with padding after a row's end."""
        token, largest = drawn
        self.guard.add(largest)
        if self.may_end:
            token = torch.where(self.ended, self.pad_value, token)
        if self.seen is not None:
            self.seen = mark_seen(self.seen, token)
        if self.history is not None:
            self.history = torch.cat([self.history, token[:, None]], dim=1)
        if self.may_end:
            self.ends = self.ended | self._end_with(token, self.history)
        return token

    def _end_with(self, token: Tensor, new: Tensor | None) -> Tensor:
        """[R] bool: rows that end with this token [R], the last one of their new tokens [R N]."""
        ends = torch.zeros_like(token, dtype=torch.bool) if self.eos is None else torch.isin(token, self.eos)
        return ends | stopped(self.criteria, new) if self.criteria and new is not None else ends

    def _next(self, token: Tensor) -> Drawn:
        """Feed one more token per row, [B], and draw the one after it."""
        drawn = self._feed(token, draws=True)
        return self._draw(self.net.logits(self.x)) if drawn is None else drawn

    def _feed(self, token: Tensor, *, draws: bool = False) -> Drawn | None:
        """Feed one more token per row, [B]. Returns what a compiled step draws, if it does and that is asked for."""
        alive = self.alive
        if self.may_end:
            self.ended, self.alive = self.ends, ~self.ends
        x, drawn = self._compiled_step(token, alive, draws=draws) or (self._advance(token, alive), None)
        if self.options.keeps_cache and self.cache is not None:
            x = torch.where(alive[:, None], x, self.x)  # rows that have ended stay as they are
            self.cache.remember_ending(x)
        self.x = x
        return drawn

    def _compiled_step(self, token: Tensor, alive: Tensor, *, draws: bool) -> tuple[Tensor, Drawn | None] | None:
        """As `CompiledSteps.feed`; None where steps are not compiled."""
        if self.compiled is None:
            return None
        try:
            return self.compiled.feed(token, alive, self.generator, draws=draws)
        except CompileError as error:
            if self.options.compile is True:
                raise
            give_up(error)
            self.compiled = None
            return None

    def _all_ended(self) -> bool:
        """Whether every row has ended. The only device sync of a step, and only where rows may end."""
        return self.may_end and self.guard.wait(self.ends.all())

    def _prefill(self) -> Tensor:
        """[B M] that predicts the first new token."""
        cache, prompts = self.cache, self.prompts
        if cache is not None and cache.state.ending is not None and not prompts.places:
            self._check_context(cache.state.cross_context)
            return cache.state.ending[1]
        x = self._read_prompts()
        if cache is not None and self.options.keeps_cache:
            cache.remember_ending(x)
        return x

    def _check_context(self, seen: CrossContext | None) -> None:
        """Raises InputError where a context is given that is not the one of the cache, and no token would read it."""
        given = self.options.context
        if given is not None and seen is None:
            raise InputError("context was given without prompts, and this cache holds none. Leave it out.")
        if given is not None and seen is not None:
            refuse_another(ContextInputs(given, self.options.context_mask), seen)

    def _read_prompts(self) -> Tensor:
        """[B M] of each row's last token. A kept cache reads all chunks or none."""
        options, cache = self.options, self.cache
        chunks = options.prefill_chunk_size is not None
        before = cache.snapshot(self.total) if chunks and cache is not None else None

        def read(part: Prompts, positions: Tensor | None, prefix: int | Tensor | None) -> Tensor:
            tokens, given = part.arguments()
            return self._forward(tokens, part.mask, cache, self.context, positions, prefix, given)

        try:
            return read_in_chunks(read, self.prompts, self.positions, options.prefill_chunk_size, self.prefix)
        except BaseException:
            if cache is not None and before is not None:
                cache.restore(before)
            raise

    def _compile(self) -> CompiledSteps | None:
        """Compiled steps for the tokens after the first one, where `compile` allows them and they pay. Raises InputError."""
        options, cache, wanted = self.options, self.cache, self.options.compile
        if wanted is False or options.contrast is not None or options.seq_len < 2:
            return None
        if not (wanted is True or worth_a_look(self.given, options.seq_len)):
            return None
        # with compile=True a second time: the prefill has shown whether a call changes parameters
        if self._reasons_not_to_compile() or cache is None:
            return None
        outside = self.seen is not None or self.processors or self.log_probs is not None
        draw = None if outside else GraphDraw.of(options.filters)
        by_row = options.keeps_cache and self.may_end
        steps = CompiledSteps(self.net, cache, draw, options.temperature, by_row=by_row, stores=options.keeps_cache)
        if wanted is not True and not pays(steps):
            return None
        if not steps.ready:
            announce()
        return steps

    def _reasons_not_to_compile(self) -> list[str]:
        """Raises InputError with them where compile=True."""
        reasons = list(refusals(self.net, self.given, self.cache, self.length_dependent))
        if reasons and self.options.compile is True:
            raise InputError(listed("the decoding step cannot be compiled:", reasons))
        return reasons

    def _advance(self, token: Tensor, alive: Tensor | None) -> Tensor:
        """Feed one more token per row, [B], where rows [B] are alive -> [B M], which predicts the next one. None: all are."""
        if self.net.training:  # the caller switched modes between two tokens
            self.net = in_eval_mode(self.net)
        options = self.options
        if not options.cache_kv or self.length_dependent:
            self._append(token)
        if not options.cache_kv or self._cached_keys_expired():
            return self._recompute()
        mask = alive[:, None] if alive is not None and options.keeps_cache and self.may_end else None
        return self._forward(token[:, None], mask, self.cache, None)[:, -1]

    def _append(self, token: Tensor) -> None:
        self.sequence = torch.cat([self.sequence, token[:, None]], dim=1)
        if self.mask is not None:
            self.mask = torch.cat([self.mask, torch.ones_like(self.mask[:, :1])], dim=1)
        if self.positions is not None:
            after = following_positions(self.positions)[:, None]
            self.positions = torch.cat([self.positions, after], dim=1)

    def _cached_keys_expired(self) -> bool:
        """Whether one more token per row changes the keys of the tokens before it."""
        before, self.lengths = self.cache_key, [length + 1 for length in self.lengths]
        self.cache_key = self._cache_keys()
        return self.cache_key != before

    def _recompute(self) -> Tensor:
        """One pass over the whole sequence so far -> [B M] of its last token."""
        self.cache = None if self.cache is None else self._new_cache()
        tokens, given = replace(self.prompts, tokens=self.sequence).arguments()
        context, positions = self.context, self.positions
        return self._forward(tokens, self.mask, self.cache, context, positions, self.prefix, given)[:, -1]

    def _forward(
        self,
        tokens: Tensor | None,
        mask: Tensor | None,
        cache: KVCache | None,
        context: Tensor | None,
        positions: Tensor | None = None,
        prefix: int | Tensor | None = None,
        given: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> Tensor:
        context_mask = None if context is None else self.context_mask
        prefixed = {} if prefix is None else {"prefix_len": prefix}
        return self.net(
            tokens,
            mask=mask,
            positions=positions,
            cache=cache,
            return_embeddings=True,
            checked=True,
            context=context,
            context_mask=context_mask,
            **prefixed,
            **given,
        )


def _eos_ids(eos_token: int | Sequence[int] | None, num_tokens: int, device: torch.device) -> Tensor | None:
    """The end-of-sequence ids [N] on the device. Raises InputError."""
    if eos_token is None:
        return None
    ids, last = as_tensor(eos_token, "eos_token").flatten(), num_tokens - 1
    if ids.dtype not in INTEGERS or not len(ids) or int(ids.long().min()) < 0 or int(ids.long().max()) > last:
        raise InputError(f"eos_token={eos_token!r} must be one or several ids from 0 to {last}.")
    return ids.long().to(device)


def _check_filters(filters: list[LogitsFilter], num_tokens: int) -> None:
    if problems := list(vocabulary_problems(filters, num_tokens)):
        raise InputError("\n".join(problems))


def _check_generator(generator: torch.Generator | None, device: torch.device) -> None:
    if generator is not None and generator.device.type != device.type:
        raise InputError(
            f"generator is on {generator.device}, but the model is on {device}. Use torch.Generator({str(device)!r}), or seed=."
        )


def _check_room(cache: KVCache, total: int, longest: int | None) -> None:
    """Raises if a cache cannot hold `total` tokens per row, or shows more than the `longest` a token may attend to."""
    if longest is not None and any(window.kept is None or window.kept > longest for window in cache.windows):
        raise InputError(
            f"cache and new tokens come to {total} tokens per row, beyond max_seq_len={longest}. With "
            "restrict_to_max_seq_len=True each token then attends to the last max_seq_len only, but this cache shows all "
            f"of them. Make it with new_cache({cache.batch_size}, window={longest}), or pass restrict_to_max_seq_len=False."
        )
    if cache.max_len is not None and total > cache.max_len and any(window.kept is None for window in cache.windows):
        raise CacheError(
            f"the cache holds max_len={cache.max_len} tokens per row, and with this call a row comes to {total}. "
            "Make it with a larger max_len, or with max_len=None to let it grow."
        )
