"""Beam search over a model: each step extends the beams, and the rows of cache, history and penalty follow them.

P prompts, K beams per prompt, B = P * K rows, N new tokens, V vocabulary.
"""

import torch
from torch import Tensor

from x_positional.attention.cache import CacheState, KVCache
from x_positional.generation.beams import BeamRules, Beams, Hypotheses
from x_positional.generation.decoding import DecodeLoop, LanguageModel
from x_positional.generation.options import DecodeOptions
from x_positional.generation.prefill import read_in_chunks
from x_positional.generation.prompts import Prompts
from x_positional.generation.sampling import READ_AT_ONCE, log_probabilities, mark_seen
from x_positional.schemes.precision import wide_dtype


class BeamSearch(DecodeLoop):
    """One call of `generate` with beams. Raises as `DecodeLoop` does."""

    def __init__(self, net: LanguageModel, options: DecodeOptions, pad_value: int, rules: BeamRules):
        super().__init__(net, options, pad_value)
        self.rules = rules

    def _new_tokens(self) -> Tensor:
        """The best sequences [P * n, N], those of one prompt in turn. A kept cache then holds these."""
        rules, cache = self.rules, self.cache
        self.x = self._prefill()
        prompts = len(self.x)
        if not rules.steps:
            self._spread(rules.returned)
            return self.sequence[:, :0]
        prefix = cache.state if cache is not None and self.options.keeps_cache else None
        starts = 0 if cache is None else cache.starts()
        start = starts if isinstance(starts, int) else int(starts.min())
        self._spread(rules.width)
        beams = self._beams(prompts)
        for step in range(rules.steps):
            rows, token = beams.step(*self._scored(beams), lambda new: self._end_with(new[:, -1], new))
            if step + 1 == rules.steps or (self.may_end and self.guard.wait(beams.done.all())):
                break
            self._follow(rows, token, start)
            self.x = self._advance(token, None)
        self.guard.finish()
        return self._finish(beams.best(), prefix)

    def _beams(self, prompts: int) -> Beams:
        """Beams without tokens."""
        return Beams(
            self.rules,
            prompts,
            wide_dtype(self.x.dtype),
            self.x.device,
            ends=0 if self.eos is None else len(self.eos),
            pad_value=self.pad_value,
            log_probs=self.log_probs is not None,
        )

    def _scored(self, beams: Beams) -> tuple[Tensor, Tensor | None]:
        """The log-probabilities [B V] that the search adds up, and those of the model where they are asked for."""
        logits = self.net.logits(self.x)
        model = None if self.log_probs is None else log_probabilities(logits)
        if self.history is not None:
            self.history = beams.tokens
        logits = self._steered(logits)
        self.guard.add(torch.where(beams.alive, logits.amax(-1), 0.0))
        return log_probabilities(logits), model

    def _follow(self, rows: Tensor, token: Tensor, start: int) -> None:
        """Row i becomes row rows[i] with one more token [B]. start: the index of the first new token of any row."""
        if self.cache is not None and not _is_identity(rows):
            self.cache.follow_rows(rows, start)
        if not self.options.cache_kv or self.length_dependent:
            self.sequence = self.sequence[rows]
        if self.seen is not None:
            self.seen = mark_seen(self.seen[rows], token)

    def _finish(self, best: Hypotheses, prefix: CacheState | None) -> Tensor:
        """The sequences as rows [P * n, N]. prefix: the state of a kept cache that holds the prompts alone."""
        tokens, log_probs = best.tokens.flatten(0, 1), best.log_probs
        self.x = self.x[: len(tokens)]
        self.log_probs = None if log_probs is None else list(log_probs.flatten(0, 1).unbind(1))
        if self.cache is not None and prefix is not None:
            self.cache.commit(prefix)
            self._hold(self.cache, Prompts.of_rows(tokens, best.lengths.flatten()), self.rules.returned)
        return tokens

    def _hold(self, cache: KVCache, new: Prompts, count: int) -> None:
        """Read `count` continuations [P * count, N] of each prompt into the cache that holds the prompts."""
        cache.repeat(count)
        if not new.tokens.shape[1]:
            return

        def read(part: Prompts, positions: Tensor | None, prefix: int | Tensor | None) -> Tensor:
            return self._forward(part.tokens, part.mask, cache, None, positions, prefix)

        cache.remember_ending(read_in_chunks(read, new, None, self.options.prefill_chunk_size))


def decode_loop(net: LanguageModel, options: DecodeOptions, pad_value: int) -> DecodeLoop:
    """The loop of a call with these options. Raises as `DecodeLoop` does."""
    rules = options.beams
    return DecodeLoop(net, options, pad_value) if rules is None else BeamSearch(net, options, pad_value, rules)


def _is_identity(rows: Tensor) -> bool:
    """Whether rows are 0, 1, 2, ..., where the host knows that without a sync."""
    return rows.device.type in READ_AT_ONCE and torch.equal(rows, torch.arange(len(rows)))
