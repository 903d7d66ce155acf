"""Passkey retrieval: a number hidden in filler text, to be repeated exactly (Mohtashami and Jaggi 2023, arXiv:2305.16300).

Prompts have up to the length's tokens with room for the answer, and the number stands at several depths. Answers are greedy,
through the cache. The numbers depend on the seed alone, so every length and depth hides the same ones.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from x_positional.errors import ArgumentError, UserError
from x_positional.evidence.evaluation.results import PasskeyScore
from x_positional.evidence.evaluation.scoring import reasons
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import TransformerWrapper
from x_positional.progress import Track, silent

TASK = (
    "There is an important info hidden inside a lot of irrelevant text. Find it and memorize it. "
    "I will quiz you about the important information there.\n"
)
FILLER = "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.\n"
KEY = "The pass key is {key}. Remember it. {key} is the pass key.\n"
QUESTION = "What is the pass key? The pass key is"


class Codec(Protocol):
    """Text to ids, with the tokens that begin every text, and back."""

    def encode(self, text: str) -> Sequence[int]: ...

    def decode(self, ids: Sequence[int]) -> str: ...


@dataclass(frozen=True)
class PasskeySettings:
    """Which numbers are hidden, and where."""

    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    """Where the number stands: 0 is the start of the filler, 1 its end."""
    trials: int = 3
    """Numbers at each length and depth."""
    digits: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        if self.trials < 1 or self.digits < 1 or not all(0 <= depth <= 1 for depth in self.depths):
            raise ArgumentError(
                f"trials={self.trials} and digits={self.digits} must be at least 1, and depths={self.depths} between 0 and 1"
            )

    def key(self, trial: int) -> str:
        """The number of a trial."""
        return str(random.Random(f"{self.seed} {trial}").randrange(10 ** (self.digits - 1), 10**self.digits))


def passkey_scores(
    model: TransformerWrapper,
    codec: Codec,
    lengths: Sequence[int],
    settings: PasskeySettings,
    *,
    track: Track = silent,
) -> tuple[PasskeyScore, ...]:
    """How often the number was repeated, by length and depth.

    A length at which the model cannot run, or that has no room for the task, has a reason in place of trials.

    Args:
        model: A decoder with logits.
        codec: Its tokenizer.
        lengths: Tokens of prompt and answer, at most.
        settings: Depths, trials and the seed.
        track: Shows progress. Each of its items is a prompt of every length.
    """
    sampler, device = AutoregressiveWrapper(model), next(model.parameters()).device
    right: dict[tuple[int, float], int] = {(length, depth): 0 for length in lengths for depth in settings.depths}
    refused: dict[int, str] = {}
    prompts = [(trial, depth) for trial in range(settings.trials) for depth in settings.depths]
    for trial, depth in track(prompts, "passkey retrieval"):
        key = settings.key(trial)
        for length in lengths:
            if length in refused:
                continue
            try:
                ids, room = passkey_prompt(codec, length, depth, key)
                found = _answer(sampler, codec, torch.tensor(ids, device=device), room)
            except UserError as reason:
                refused[length] = str(reason)
                continue
            right[length, depth] += found == key
    return tuple(_score(at, right[at], settings.trials, refused.get(at[0])) for at in right)


def _score(at: tuple[int, float], correct: int, trials: int, reason: str | None) -> PasskeyScore:
    length, depth = at
    if reason is not None:
        return PasskeyScore(length=length, depth=depth, reason=reason)
    return PasskeyScore(length=length, depth=depth, correct=correct, trials=trials)


def passkey_prompt(codec: Codec, length: int, depth: float, key: str) -> tuple[list[int], int]:
    """The longest prompt that leaves room for the answer, and that room in tokens. Raises UserError where none fits."""
    whole, question = _prompt(0, depth, key), len(codec.encode(_prompt(0, depth, key)))
    room = max(1, len(codec.encode(f"{whole} {key}.")) - question)
    sample = 16
    each = (len(codec.encode(_prompt(sample, depth, key))) - question) / sample
    count = int((length - room - question) / each) + 1
    for fillers in range(count, -1, -1):
        ids = list(codec.encode(_prompt(fillers, depth, key)))
        if len(ids) + room <= length:
            return ids, room
    raise UserError(f"{length} tokens have no room for the task, which takes {question + room}")


def _prompt(fillers: int, depth: float, key: str) -> str:
    before = round(depth * fillers)
    return TASK + FILLER * before + KEY.format(key=key) + FILLER * (fillers - before) + QUESTION


def _answer(sampler: AutoregressiveWrapper, codec: Codec, prompt: torch.Tensor, room: int) -> str | None:
    """The first number of the continuation; None where it does not begin with one."""
    with reasons(), torch.inference_mode():
        new = sampler.generate(prompt, room, temperature=0.0, restrict_to_max_seq_len=False, compile=False)
    found = re.match(r"\s*(\d+)", codec.decode(new.tolist()))
    return None if found is None else found[1]
