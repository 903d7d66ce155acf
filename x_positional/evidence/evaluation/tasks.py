"""The tasks of the length-generalisation papers: inputs with one right answer, drawn from a seed.

A row is `begin input separator answer end padding`. The answer and `end` are targets, so a model must also know where to stop. Each
position of the answer is scored given the right ones before it.

Shapes: B rows, T tokens.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from x_positional.errors import ArgumentError, did_you_mean
from x_positional.modules.cross_entropy import NO_TARGET

BEGIN, SEPARATOR, END = 0, 1, 2
FIRST_SYMBOL = 3
Random = np.random.Generator
Drawn = tuple[list[int], list[int]]
"""Input and answer, as symbols counted from 0."""


@dataclass(frozen=True)
class Task:
    """How one row is drawn."""

    name: str
    summary: str
    """What is asked, in a few words."""
    paper: str
    """Where the task comes from."""
    example: str
    """A row of input length 4: `input > answer`, symbols as letters or numbers."""
    draw: Callable[[int, Random, int], Drawn]
    """(length, generator, number of symbols) -> input and answer."""
    symbols: Callable[[int], int] = lambda longest: 16
    """The number of symbols for rows of up to this length."""

    def num_tokens(self, longest: int) -> int:
        """Vocabulary size for rows of up to this length."""
        return FIRST_SYMBOL + self.symbols(longest)


@dataclass(frozen=True)
class TaskRows:
    """Rows of one or several input lengths, padded on the right with `end`, which are no targets."""

    tokens: Tensor
    """[B T]."""
    labels: Tensor
    """[B T]: the answer and `end`; NO_TARGET elsewhere."""


def _symbols(length: int, random: Random, symbols: int) -> list[int]:
    return random.integers(0, symbols, size=length).tolist()


def _copy(length: int, random: Random, symbols: int) -> Drawn:
    word = _symbols(length, random, symbols)
    return word, word


def _one_symbol(length: int, random: Random, symbols: int) -> Drawn:
    word = _symbols(1, random, symbols) * length
    return word, word


def _repeat(length: int, random: Random, symbols: int) -> Drawn:
    word = _symbols(length, random, symbols)
    return word, word + word


def _reverse(length: int, random: Random, symbols: int) -> Drawn:
    word = _symbols(length, random, symbols)
    return word, word[::-1]


def _counting(length: int, random: Random, symbols: int) -> Drawn:
    first = int(random.integers(0, symbols - length + 1))
    return [first, first + length - 1], list(range(first, first + length))


def _first_occurrence(length: int, random: Random, symbols: int) -> Drawn:
    word = _symbols(length, random, symbols)
    query = word[int(random.integers(0, length - 1))] if length > 1 else word[0]
    follows = word.index(query) + 1
    return [*word, query], [word[min(follows, length - 1)]]


TASKS = {
    task.name: task
    for task in (
        Task(
            "copy",
            "write the input once more",
            "Kazemnejad et al. 2023, arXiv:2305.19466, third variant of copy; Jelassi et al. 2024, arXiv:2402.01032",
            "c a a b > c a a b",
            _copy,
        ),
        Task(
            "one_symbol",
            "write the input once more, which is one symbol over and over: count it",
            "Kazemnejad et al. 2023, arXiv:2305.19466, first variant of copy",
            "b b b b > b b b b",
            _one_symbol,
        ),
        Task(
            "repeat",
            "write the input twice",
            "Kazemnejad et al. 2023, arXiv:2305.19466, third variant of copy, 2x, without its separator; duplicate string in "
            "Ruoss et al. 2023, arXiv:2305.16843",
            "c a a b > c a a b c a a b",
            _repeat,
        ),
        Task(
            "reverse",
            "write the input backwards",
            "Kazemnejad et al. 2023, arXiv:2305.19466, first variant of reverse; reverse string in Ruoss et al. 2023, "
            "arXiv:2305.16843",
            "c a a b > b a a c",
            _reverse,
        ),
        Task(
            "counting",
            "count from one number to another; the length is that of the answer",
            "Zhou et al. 2023, arXiv:2310.16028",
            "5 8 > 5 6 7 8",
            _counting,
            symbols=lambda longest: 2 * longest,
        ),
        Task(
            "first_occurrence",
            "which symbol follows the first occurrence of the last one",
            "associative recall (Arora et al. 2023, arXiv:2312.04927) with repeated keys, of which the first one counts",
            "c a d a | a > d",
            _first_occurrence,
        ),
    )
}
"""Every task by name."""


def named_tasks(names: Sequence[str]) -> tuple[Task, ...]:
    """The tasks with these names. Raises ArgumentError with every unknown one."""
    unknown = [name for name in names if name not in TASKS]
    if unknown:
        found = "; ".join(f"unknown task {name!r}: {did_you_mean(name, TASKS)}" for name in unknown)
        raise ArgumentError(found)
    return tuple(TASKS[name] for name in names)


def task_rows(task: Task, lengths: Sequence[int], longest: int, random: Random) -> TaskRows:
    """One row for each input length. longest: fixes the vocabulary, see `Task.num_tokens`. Raises ArgumentError."""
    if not lengths or min(lengths) < 1 or max(lengths) > longest:
        raise ArgumentError(f"lengths={list(lengths)} must be from 1 to longest={longest}, and at least one.")
    drawn = [task.draw(length, random, task.symbols(longest)) for length in lengths]
    width = 3 + max(len(given) + len(answer) for given, answer in drawn)
    tokens = torch.full((len(drawn), width), END)
    labels = torch.full((len(drawn), width), NO_TARGET)
    for row, (given, answer) in enumerate(drawn):
        asked = [BEGIN, *(FIRST_SYMBOL + symbol for symbol in given), SEPARATOR]
        right = [*(FIRST_SYMBOL + symbol for symbol in answer), END]
        tokens[row, : len(asked) + len(right)] = torch.tensor(asked + right)
        labels[row, len(asked) : len(asked) + len(right)] = torch.tensor(right)
    return TaskRows(tokens, labels)
