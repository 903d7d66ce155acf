"""Beam search: the most probable continuations of each prompt that a bounded search finds. Nothing is drawn.

Definition and defaults are those of transformers: a step extends K beams per prompt, candidates that end are ranked by the sum of
their log-probabilities over length ** length_penalty, and the best K others are extended again. Prompts do not affect each other.

B prompts, K beams per prompt, C candidates per prompt, N new tokens so far, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from x_positional.errors import SamplingError

EarlyStopping = bool | Literal["never"]


@dataclass(frozen=True)
class BeamRules:
    """The options of a beam search."""

    width: int
    """K."""
    returned: int
    """How many sequences per prompt are returned, at most K."""
    steps: int
    """Tokens of a sequence, at most."""
    length_penalty: float = 1.0
    """Exponent of the length that the sum of log-probabilities is divided by."""
    early_stopping: EarlyStopping = False
    """When a prompt with K finished sequences is done; see `BeamOptions`."""

    def normalized(self, sums: Tensor, length: int) -> Tensor:
        """Sums of log-probabilities -> scores of sequences of this length."""
        return sums / float(length) ** self.length_penalty


@dataclass(frozen=True)
class Hypotheses:
    """Sequences of each prompt, and their scores."""

    scores: Tensor
    """[B K]: sums of log-probabilities, normalized once a sequence is finished; -inf where there is no sequence."""
    tokens: Tensor
    """[B K N] int64, padded after the end of a finished sequence."""
    log_probs: Tensor | None
    """[B K N] of each token, 0 after the end; None where they were not asked for."""
    lengths: Tensor
    """[B K] tokens of each sequence."""

    def select(self, chosen: Tensor, scores: Tensor) -> "Hypotheses":
        """Those with numbers [B K'], with new scores [B K']."""
        where = chosen[..., None].expand(-1, -1, self.tokens.shape[-1])
        log_probs = None if self.log_probs is None else self.log_probs.gather(1, where)
        return Hypotheses(scores, self.tokens.gather(1, where), log_probs, self.lengths.gather(1, chosen))

    def extended(self, token: Tensor, log_prob: Tensor | None, grown: int) -> "Hypotheses":
        """One more token [B K] each, with its log-probability. grown: 1 where it counts, 0 for padding."""
        tokens = torch.cat([self.tokens, token[..., None]], -1)
        log_probs = self.log_probs
        if log_probs is not None and log_prob is not None:
            log_probs = torch.cat([log_probs, log_prob[..., None]], -1)
        return Hypotheses(self.scores, tokens, log_probs, self.lengths + grown)


def _none(batch: int, width: int, dtype: torch.dtype, device: torch.device, *, log_probs: bool) -> Hypotheses:
    """Empty sequences with the score -inf."""
    scores = torch.full((batch, width), -math.inf, dtype=dtype, device=device)
    tokens = torch.empty(batch, width, 0, dtype=torch.long, device=device)
    none = torch.empty(batch, width, 0, dtype=dtype, device=device) if log_probs else None
    return Hypotheses(scores, tokens, none, torch.zeros_like(scores, dtype=torch.long))


class Beams:
    """The running and the finished sequences of one search.

    Args:
        rules: of the search.
        batch: prompts.
        dtype: of scores.
        device: of all tensors.
        ends: how many ids end a sequence, so that enough candidates are left that do not.
        pad_value: fills finished sequences.
        log_probs: keep the log-probability of each token.
    """

    def __init__(
        self,
        rules: BeamRules,
        batch: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        ends: int,
        pad_value: int,
        log_probs: bool,
    ):
        self.rules, self.pad_value, self.candidates = rules, pad_value, max(2, 1 + ends) * rules.width
        none = _none(batch, rules.width, dtype, device, log_probs=log_probs)
        scores = none.scores.clone()
        scores[:, 0] = 0.0  # the beams of a prompt are alike at first, so one of them is extended
        self.running, self.finished = none.select(torch.zeros_like(none.lengths), scores), none
        self.done = torch.zeros(batch, dtype=torch.bool, device=device)
        self.length = 0

    @property
    def alive(self) -> Tensor:
        """[B*K] bool: the rows whose logits matter."""
        return (self.running.scores.isfinite() & ~self.done[:, None]).flatten()

    @property
    def tokens(self) -> Tensor:
        """[B*K N] of each row so far."""
        return self.running.tokens.flatten(0, 1)

    def step(self, log_probs: Tensor, model: Tensor | None, ends: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        """Extend every beam by one token.

        Args:
            log_probs: [B*K V] of the next token after each row.
            model: [B*K V] the log-probabilities to report; None where they are not asked for.
            ends: (sequences [B*C N]) -> [B*C] bool: which of them end with their last token.

        Returns:
            The row [B*K] that each new row continues, and its next token [B*K].
        """
        batch, width = self.running.scores.shape
        vocabulary = log_probs.shape[-1]
        sums = self.running.scores[..., None] + log_probs.view(batch, width, vocabulary)
        sums = sums.masked_fill(~self.alive.view(batch, width, 1), -math.inf)  # -inf plus NaN is NaN
        best, flat = sums.flatten(1).topk(min(self.candidates, width * vocabulary))
        parent, token = flat // vocabulary, flat % vocabulary
        chosen = None if model is None else model.view(batch, -1).gather(1, flat)
        candidates = self.running.select(parent, best).extended(token, chosen, 1)
        self.length += 1
        ending = ends(candidates.tokens.flatten(0, 1)).view_as(best) | (self.length == self.rules.steps)
        self._finish(candidates, ending)
        scores, kept = best.masked_fill(ending, -math.inf).topk(width)
        self.running = candidates.select(kept, scores)
        self._note_done()
        rows = torch.arange(batch, device=parent.device)[:, None] * width + parent.gather(1, kept)
        return rows.flatten(), token.gather(1, kept).flatten()

    def _finish(self, candidates: Hypotheses, ending: Tensor) -> None:
        """Rank candidates [B C] that end among the finished ones; only the first K candidates count."""
        width = self.rules.width
        found = ending & ~self.done[:, None] & (torch.arange(ending.shape[1], device=ending.device) < width)
        scores = self.rules.normalized(candidates.scores, self.length).masked_fill(~found, -math.inf)
        pad = torch.full_like(self.finished.lengths, self.pad_value)
        held = self.finished.extended(pad, torch.zeros_like(self.finished.scores), 0)
        merged = _joined(held, candidates)
        best, kept = torch.cat([held.scores, scores], 1).topk(width)
        self.finished = merged.select(kept, best)

    def _note_done(self) -> None:
        """Prompts that no running beam can improve, by transformers' rule: `BeamOptions.early_stopping`."""
        rules = self.rules
        bounded = rules.early_stopping == "never" and rules.length_penalty > 0
        best = rules.normalized(self.running.scores[:, 0], rules.steps if bounded else self.length)
        full = self.finished.scores.isfinite().all(1)
        improves = True if rules.early_stopping is True else best <= self.finished.scores[:, -1]
        self.done = self.done | (full & improves) | (self.running.scores[:, 0] == -math.inf)

    def best(self) -> Hypotheses:
        """The best finished sequences [B n N], cut after the longest one. Forces a device sync.

        Raises:
            SamplingError: a prompt has fewer sequences than are returned.
        """
        n = self.rules.returned
        if not bool(self.finished.scores[:, :n].isfinite().all()):
            row = int(self.finished.scores[:, n - 1].isfinite().logical_not().nonzero()[0])
            count = int(self.finished.scores[row].isfinite().sum())
            raise SamplingError(
                f"beam search found {count} different sequences for prompt {row}, and num_return_sequences={n}. Generate "
                "longer sequences, or return fewer."
            )
        found, longest = self.finished, int(self.finished.lengths[:, :n].max()) if self.length else 0
        log_probs = None if found.log_probs is None else found.log_probs[:, :n, :longest]
        return Hypotheses(found.scores[:, :n], found.tokens[:, :n, :longest], log_probs, found.lengths[:, :n])


def _joined(a: Hypotheses, b: Hypotheses) -> Hypotheses:
    """The sequences of both, for each prompt."""
    log_probs = None
    if a.log_probs is not None and b.log_probs is not None:
        log_probs = torch.cat([a.log_probs, b.log_probs], 1)
    lengths = torch.cat([a.lengths, b.lengths], 1)
    return Hypotheses(torch.cat([a.scores, b.scores], 1), torch.cat([a.tokens, b.tokens], 1), log_probs, lengths)
