"""Where speculative decoding takes its proposals from: earlier text, or a smaller model.

K proposed tokens, M model dim, V vocabulary.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from x_positional.attention.cache import KVCache
from x_positional.attention.cache_rows import whole_number
from x_positional.errors import InputError
from x_positional.generation.eval_mode import in_eval_mode
from x_positional.generation.prefill import read_in_chunks
from x_positional.generation.prompts import Prompts
from x_positional.generation.sampling import LogitsGuard

Distribution = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Logits [N V] -> the probabilities that tokens are drawn with [N V], and the largest filtered logits [N]."""
Pick = Callable[[Tensor], Tensor]
"""Weights [N V] -> a token drawn from each row [N]."""


@dataclass
class SpeculationReport:
    """What one call of `generate` or `stream` proposed and accepted, so far."""

    passes: int = 0
    """Forward passes of the model after the prompt."""
    proposed: int = 0
    """Tokens that were proposed."""
    accepted: int = 0
    """Proposed tokens that were accepted."""
    tokens: int = 0
    """New tokens of these passes: the accepted ones, and one that the model draws in each pass."""

    @property
    def acceptance_rate(self) -> float:
        """Accepted tokens per proposed token; 0 without proposals."""
        return self.accepted / self.proposed if self.proposed else 0.0

    @property
    def tokens_per_pass(self) -> float:
        """New tokens per forward pass of the model; 1 is decoding without speculation."""
        return self.tokens / self.passes if self.passes else 0.0

    def __str__(self) -> str:
        return (
            f"{self.accepted} of {self.proposed} proposed tokens accepted ({self.acceptance_rate:.0%}), "
            f"{self.tokens_per_pass:.2f} tokens per pass"
        )


class PromptLookup:
    """Proposals copied from the sequence itself: what followed the latest earlier occurrence of its last tokens.

    It pays where the answer repeats the prompt, as in summaries, edits and code. Tokens that only a cache holds are not searched.

    Args:
        tokens: the most tokens to propose per pass.
        ngram: how many last tokens have to occur earlier; shorter matches, down to one token, are tried after longer ones.

    Raises:
        ArgumentError: a number that is not a positive integer.
    """

    def __init__(self, tokens: int = 8, ngram: int = 3):
        self.tokens, self.ngram = whole_number("tokens", tokens), whole_number("ngram", ngram)
        self.report = SpeculationReport()
        """Of the last call that used this object."""


class DraftModel:
    """Proposals drawn from a smaller model with the same vocabulary, with the temperature and filters of the call.

    Args:
        net: a `TransformerWrapper` of a Decoder, on the device of the model.
        tokens: the most tokens to propose per pass.

    Raises:
        ArgumentError: tokens is not a positive integer.
        InputError: net is not a language model.
    """

    def __init__(self, net: Any, tokens: int = 4):
        self.net, self.tokens = net, whole_number("tokens", tokens)
        if getattr(net, "num_tokens", None) is None or not getattr(net, "has_head", False):
            raise InputError(
                f"a draft model must be a TransformerWrapper with logits; got {type(net).__name__}. Of an AutoregressiveWrapper "
                "pass .net."
            )
        self.report = SpeculationReport()
        """Of the last call that used this object."""


@dataclass(frozen=True)
class Proposal:
    """Tokens that may follow."""

    tokens: Tensor
    """[K] int64."""
    probs: Tensor | None
    """[K V] the probabilities that they were drawn with; None where they were certain."""


class LookupProposals:
    """Proposals of `PromptLookup` for one sequence.

    Args:
        ngram: the longest match.
        device: of the proposals.
    """

    def __init__(self, ngram: int, device: torch.device):
        self.ngram, self.device = ngram, device
        self.followed_at: dict[tuple[int, ...], int] = {}
        """Where the token after the latest occurrence of each n-gram is."""
        self.indexed = 0  # n-grams that end before this place are in the table

    def propose(self, sequence: Sequence[int], count: int) -> Proposal:
        """At most `count` tokens that may follow a sequence, which continues that of the call before."""
        for end in range(max(self.indexed, 1), len(sequence)):
            for n in range(1, min(self.ngram, end) + 1):
                self.followed_at[tuple(sequence[end - n : end])] = end
        self.indexed = len(sequence)
        for n in range(min(self.ngram, len(sequence)), 0, -1):
            place = self.followed_at.get(tuple(sequence[-n:]))
            if place is not None:
                found = sequence[place : place + count]
                return Proposal(torch.tensor(found, dtype=torch.long, device=self.device), None)
        return Proposal(torch.empty(0, dtype=torch.long, device=self.device), None)


class DraftProposals:
    """Proposals of `DraftModel` for one sequence, which it reads into a cache of its own.

    Args:
        net: the draft model.
        total: tokens that the sequence may come to.
        distribution: from the draft's logits.
        pick: draws from it.
        device: of the model and the draft.
        chunk: tokens to read at a time; None reads the prompt at once.
    """

    def __init__(
        self, net: Any, total: int, distribution: Distribution, pick: Pick, device: torch.device, chunk: int | None
    ):
        self.net, self.distribution, self.pick, self.device = in_eval_mode(net), distribution, pick, device
        self.chunk = chunk
        self.cache: KVCache = self.net.new_cache(1, max_len=total)
        self.held: list[int] = []
        """What the cache holds of the sequence, unless a token was rejected."""
        self.agreed = 0  # tokens of the sequence at the last call, which stay
        self.guard = LogitsGuard(device)

    def propose(self, sequence: Sequence[int], count: int) -> Proposal:
        """`count` tokens drawn by the draft after a sequence, which continues that of the call before."""
        agreed = min(self.agreed, len(self.held))
        while agreed < min(len(self.held), len(sequence) - 1) and self.held[agreed] == sequence[agreed]:
            agreed += 1
        if rejected := len(self.held) - agreed:
            self.cache.crop(-rejected)
        new = torch.tensor([sequence[agreed:]], dtype=torch.long, device=self.device)
        tokens, probs = [], []
        for _ in range(count):
            row, largest = self.distribution(self.net.logits(self._read(new)))
            self.guard.add(largest)
            tokens.append(self.pick(row))
            probs.append(row)
            new = tokens[-1][:, None]
        self.guard.finish()
        proposal = Proposal(torch.cat(tokens), torch.cat(probs))
        self.held, self.agreed = [*sequence, *proposal.tokens[:-1].tolist()], len(sequence)
        return proposal

    def _read(self, tokens: Tensor) -> Tensor:
        """Tokens [1 N] -> the hidden state [1 M] of the last one."""

        def read(part: Prompts, positions: Tensor | None) -> Tensor:
            return self.net(part.tokens, cache=self.cache, return_embeddings=True, checked=True)  # type: ignore[no-any-return]

        return read_in_chunks(read, Prompts(tokens, None, single=True), None, self.chunk)
