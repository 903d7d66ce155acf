"""Speculative decoding: one pass judges several proposed tokens, so that the result has the distribution of single draws.

Leviathan et al. 2023 (arXiv:2211.17192, algorithm 1); Chen et al. 2023 (arXiv:2302.01318). One sequence at a time.
K proposed tokens, M model dim, V vocabulary.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from x_positional.attention.cache import KVCache
from x_positional.generation.proposals import (
    DraftModel,
    DraftProposals,
    LookupProposals,
    PromptLookup,
    Proposal,
    SpeculationReport,
)
from x_positional.generation.sampling import (
    FILTERS,
    LogitsFilter,
    log_probabilities,
    race_times,
    repetition_penalty,
    usable_temperature,
)
from x_positional.generation.step.graph import Drawn
from x_positional.schemes.base import lowest_limit
from x_positional.schemes.precision import widened

Speculate = PromptLookup | DraftModel

_log = logging.getLogger(__name__)


def distribution(logits: Tensor, temperature: float, filters: Sequence[LogitsFilter]) -> tuple[Tensor, Tensor]:
    """Logits [N V] -> the probabilities that `sampling.draw` has [N V], and the largest filtered logits [N]."""
    for keep in filters:
        logits = keep(logits)
    if temperature == 0:
        largest, tokens = logits.max(-1)
        return torch.nn.functional.one_hot(tokens, logits.shape[-1]).to(logits.dtype), largest
    wide = widened(logits)
    largest = wide.amax(-1, keepdim=True)
    return ((wide - largest) / usable_temperature(temperature, logits.dtype)).softmax(-1), largest[:, 0]


def acceptance(probs: Tensor, proposal: Proposal) -> Tensor:
    """Probabilities [K+1 V] of the model -> the probability [K] that each proposed token is accepted after those before it."""
    rows = torch.arange(len(proposal.tokens), device=probs.device)
    wanted = probs[rows, proposal.tokens]
    if proposal.probs is None:
        return wanted
    return (wanted / proposal.probs[rows, proposal.tokens]).clamp(max=1.0)


def remainder(probs: Tensor, proposal: Proposal, accepted: int) -> Tensor:
    """The weights [V] of the token after the accepted ones: max(0, p - q) where a token was rejected, otherwise p."""
    p = probs[accepted]
    if accepted == len(proposal.tokens):
        return p
    if proposal.probs is None:
        rest = p.index_fill(0, proposal.tokens[accepted : accepted + 1], 0.0)
    else:
        rest = (p - proposal.probs[accepted]).clamp(min=0.0)
    return torch.where(rest.sum() > 0, rest, p)  # a rejection without a rest is due to rounding


def pick(weights: Tensor, generator: torch.Generator | None, *, greedy: bool) -> Tensor:
    """Weights [N V] -> a token drawn from each row [N]; the largest with `greedy`, which draws no random numbers."""
    return (weights if greedy else weights / race_times(weights, generator)).argmax(-1)


class Speculation:
    """The passes of one call, after the prompt is in the cache.

    Args:
        how: where proposals come from.
        cache: of the sequence, one row.
        sequence: the tokens of this call so far.
        total: tokens that the cache may come to.
        temperature: of the draw.
        filters: of the draw, by name.
        generator: of the draw; None is torch's global one.
        penalty: the repetition penalty.
        chunk: tokens that a draft model reads at a time; None reads the prompt at once.
        log_probs: compute the log-probabilities of new tokens.
    """

    def __init__(
        self,
        how: Speculate,
        cache: KVCache,
        sequence: Sequence[int],
        total: int,
        temperature: float,
        filters: Sequence[LogitsFilter],
        generator: torch.Generator | None,
        *,
        penalty: float = 1.0,
        chunk: int | None = None,
        log_probs: bool = False,
    ):
        self.how, self.cache, self.sequence, self.penalty = how, cache, list(sequence), penalty
        self.generator, self.greedy = generator, temperature == 0
        self.distribution = partial(distribution, temperature=temperature, filters=filters)
        self.pick = partial(pick, generator=generator, greedy=self.greedy)
        self.report = how.report = SpeculationReport()
        self.keeps_log_probs = log_probs
        self.log_probs: Sequence[Tensor] = ()  # [1] each, under the model, of the tokens of the last pass
        if isinstance(how, DraftModel):
            self.proposals = DraftProposals(how.net, total, self.distribution, self.pick, cache.device, chunk)
        else:
            self.proposals = LookupProposals(how.ngram, cache.device)

    def next(self, net: Any, token: Tensor, room: int, seen: Tensor | None) -> list[Drawn]:
        """Feed a token and proposals after it, and keep what is accepted.

        Args:
            net: the model, in eval mode.
            token: [1] the last one, which no pass has read.
            room: how many tokens may follow it, at least 1.
            seen: [1 V] bool for the repetition penalty, this token included.

        Returns:
            The next tokens and their largest logits, [1] each. The cache holds all but the last one.
        """
        if not self.report.passes:
            self.sequence += token.tolist()
        proposal = self._propose(min(self.how.tokens, room - 1))
        given = torch.cat([token, proposal.tokens])
        logits = model = net.logits(net(given[None], cache=self.cache, return_embeddings=True, checked=True)[0])
        if seen is not None:
            logits = repetition_penalty(logits, _seen_by_row(seen, proposal.tokens), self.penalty)
        probs, largest = self.distribution(logits)
        accepted = self._accepted(probs, proposal)
        count = len(proposal.tokens)
        if accepted < count:
            self.cache.crop(accepted - count)
        new = torch.cat([proposal.tokens[:accepted], self.pick(remainder(probs, proposal, accepted)[None])])
        if self.keeps_log_probs:
            found = log_probabilities(model[: len(new)])
            self.log_probs = found.gather(1, new[:, None])[:, 0].split(1)
        self.sequence += new.tolist()
        report = self.report
        report.passes, report.proposed = report.passes + 1, report.proposed + count
        report.accepted, report.tokens = report.accepted + accepted, report.tokens + len(new)
        return list(zip(new.split(1), largest.split(1), strict=False))

    def _propose(self, count: int) -> Proposal:
        if count:
            return self.proposals.propose(self.sequence, count)
        return Proposal(torch.empty(0, dtype=torch.long, device=self.cache.device), None)

    def _accepted(self, probs: Tensor, proposal: Proposal) -> int:
        """How many of the proposed tokens are accepted. Forces a device sync."""
        chances = acceptance(probs, proposal)
        if not len(chances):
            return 0
        bar = torch.full_like(chances, 0.5) if self.greedy else torch.empty_like(chances)
        bar = bar if self.greedy else bar.uniform_(generator=self.generator)
        return int((bar < chances).long().cumprod(0).sum())

    def finish(self) -> None:
        """Log what was accepted."""
        _log.info("speculative decoding: %s.", self.report)


def _seen_by_row(seen: Tensor, proposed: Tensor) -> Tensor:
    """[1 V] bool -> [K+1 V]: row i has also seen the first i proposed tokens."""
    rows = torch.nn.functional.one_hot(proposed, seen.shape[1]).cumsum(0).bool()
    return torch.cat([seen, seen | rows])


def speculation_problems(
    how: Speculate, net: Any, cache: KVCache | None, batch: int, total: int, filters: Sequence[LogitsFilter]
) -> Iterator[str]:
    """Why a call cannot speculate."""
    if batch > 1:
        yield f"there are {batch} rows, which would accept different numbers of tokens. Generate one row a call"
    if cache is None:
        yield "cache_kv=False recomputes the whole sequence for every token"
    elif overwrites(cache, total):
        yield (
            f"the sequence comes to {total} tokens, beyond a window of the model or the cache, so keys that a rejected token "
            "overwrites would be needed again. Generate fewer tokens, or pass restrict_to_max_seq_len=False if the model has no "
            "window of its own"
        )
    if any(not isinstance(keep, partial) or keep.func not in FILTERS.values() for keep in filters):
        yield f"filter_logits_fn is a function, but only {', '.join(FILTERS)} are applied to several tokens at once"
    if isinstance(how, DraftModel):
        yield from _draft_problems(how.net, net, cache, total)


def _draft_problems(draft: Any, net: Any, cache: KVCache | None, total: int) -> Iterator[str]:
    if draft.num_tokens != net.num_tokens:
        yield f"the draft model has {draft.num_tokens} tokens in its vocabulary, the model {net.num_tokens}"
    devices = [next(model.parameters()).device for model in (draft, net)]
    if devices[0] != devices[1]:
        yield f"the draft model is on {devices[0]}, the model on {devices[1]}. Move one of them"
    if cache is not None and cache.state.span:
        yield "the cache holds tokens that a draft model has not read. Use PromptLookup, or pass the whole sequence"
    layers = draft.attn_layers
    limit = lowest_limit(layers.position_schemes)
    if limit is not None and total > limit:
        yield f"the sequence comes to {total} tokens, but positions of the draft model end at {limit}"
    if layers.cross is not None:
        yield "the draft model has cross-attention, and its context is not known"
    elif all(scheme.capabilities().kv_cacheable for scheme in layers.position_schemes):
        if overwrites(draft.new_cache(1, max_len=total), total):
            yield f"the sequence comes to {total} tokens, beyond a window of the draft model"
    else:
        yield "keys of the draft model depend on the length of the sequence, so it has no cache"


def overwrites(cache: KVCache, total: int) -> bool:
    """Whether `total` tokens a row overwrite slots of the cache."""
    return any(window.drops(total) for window in cache.windows)
