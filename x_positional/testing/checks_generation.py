"""Generation compared with a computation by hand that keeps nothing between steps.

T prompt tokens, N new tokens, R sequences, V vocabulary.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import TransformerWrapper
from x_positional.testing.expect import SAFETY, Expect
from x_positional.testing.subject import Subject

WIDTH, STEPS, LENGTHS = 3, 3, (5, 2)
"""Beams, new tokens, and the lengths of the prompts."""
UNIT64 = 2.0**-53
"""Unit roundoff of float64."""

Predict = Callable[[list[list[int]]], Tensor]
"""R sequences of new tokens, equally long -> log-probabilities [R V] of the token after each."""


@dataclass(frozen=True)
class Found:
    """A finished sequence of a beam search."""

    score: float
    """The sum of its log-probabilities over its length ** length_penalty."""
    tokens: list[int]
    log_probs: list[float]


def search(
    predict: Predict,
    steps: int,
    width: int,
    *,
    eos: Collection[int] = (),
    length_penalty: float = 1.0,
    early_stopping: bool | str = False,
    stops: Callable[[list[int]], bool] = lambda tokens: False,
) -> list[Found]:
    """The finished sequences of a beam search for one prompt, best first, by the definition: lists, and no cache."""
    running, finished = [Found(0.0, [], [])], []
    for length in range(1, steps + 1):
        log_probs = predict([beam.tokens for beam in running])
        sums = torch.tensor([beam.score for beam in running]).to(log_probs)[:, None] + log_probs
        best, places = sums.flatten().topk(min(max(2, 1 + len(eos)) * width, sums.numel()))
        candidates = []
        for score, place in zip(best.tolist(), places.tolist(), strict=True):
            row, token = divmod(place, sums.shape[1])
            parent, log_prob = running[row], float(log_probs[row, token])
            candidates.append(Found(score, [*parent.tokens, token], [*parent.log_probs, log_prob]))
        ends = [length == steps or c.tokens[-1] in eos or stops(c.tokens) for c in candidates]
        finished += [
            Found(c.score / length**length_penalty, c.tokens, c.log_probs)
            for c, end in zip(candidates[:width], ends, strict=False)
            if end
        ]
        finished = sorted(finished, key=lambda f: f.score, reverse=True)[:width]
        running = [c for c, end in zip(candidates, ends, strict=True) if not end][:width]
        reach = steps if early_stopping == "never" and length_penalty > 0 else length
        full = len(finished) == width
        if not running or (
            full and (early_stopping is True or running[0].score / reach**length_penalty <= finished[-1].score)
        ):
            break
    return finished


def whole_pass(model: TransformerWrapper, prompt: Tensor, steps: int = STEPS) -> Predict:
    """Log-probabilities after a prompt [T], by one pass over all tokens of each sequence, which `steps` tokens will have.

    `steps` is for schemes that depend on the final length, which they read from a cache: theirs is empty before each pass.
    """
    final = any(scheme.takes_final_length for scheme in model.attn_layers.position_schemes)

    def predict(sequences: list[list[int]]) -> Tensor:
        rows, new = len(sequences), torch.tensor(sequences, dtype=torch.long, device=prompt.device)
        tokens = torch.cat([prompt.expand(rows, -1), new], 1)
        lengths = torch.full((rows,), len(prompt) + steps, device=prompt.device) if final else None
        cache = model.new_cache(rows, final_lengths=lengths) if final else None
        return model(tokens, cache=cache)[:, -1].log_softmax(-1)

    return predict


def as_rows(found: Sequence[Found], device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Tokens [R N] and log-probabilities [R N], filled with 0 after the end."""
    width = max(len(f.tokens) for f in found)
    tokens = torch.tensor([f.tokens + [0] * (width - len(f.tokens)) for f in found], device=device)
    log_probs = [f.log_probs + [0.0] * (width - len(f.log_probs)) for f in found]
    return tokens, torch.tensor(log_probs, device=device, dtype=dtype)


@torch.no_grad()
def beams(subject: Subject, expect: Expect) -> None:
    """Beam search of ragged prompts with a cache finds, in float64, the sequences and log-probabilities of a beam search of each
    prompt alone that passes whole sequences."""
    subject.need_decoder()
    model = subject.exact("decoder")
    prompts = [row[:n] for row, n in zip(subject.tokens(max(LENGTHS), batch=len(LENGTHS)), LENGTHS, strict=True)]
    eos = [int(row[0]) for row in subject.tokens(1, batch=4, seed=5)]
    tokens, log_probs = AutoregressiveWrapper(model).generate(
        prompts, STEPS, eos, num_beams=WIDTH, num_return_sequences=WIDTH, early_stopping="never", return_log_probs=True
    )
    found = [
        search(whole_pass(model, prompt), STEPS, WIDTH, eos=set(eos), early_stopping="never") for prompt in prompts
    ]
    want, scores = as_rows([sequence for each in found for sequence in each], tokens.device, log_probs.dtype)
    bound = SAFETY * UNIT64 * subject.terms(max(LENGTHS) + STEPS) * max(1.0, float(scores.abs().max()))
    expect.that(torch.equal(tokens, want), f"beam search found {tokens.tolist()}, and by hand {want.tolist()}.")
    expect.equal(log_probs, scores, "log-probabilities of the beams", bound)
