"""The tasks: one right answer, rows that depend on the seed alone, and targets that are the answer and its end."""

import numpy as np
import pytest

from x_positional.errors import ArgumentError
from x_positional.evidence.evaluation.tasks import (
    BEGIN,
    END,
    FIRST_SYMBOL,
    SEPARATOR,
    TASKS,
    named_tasks,
    task_rows,
)
from x_positional.modules.cross_entropy import NO_TARGET


def _first(given: list[int]) -> list[int]:
    *word, query = given
    for place, symbol in enumerate(word):
        if symbol == query:
            return [word[min(place + 1, len(word) - 1)]]
    raise AssertionError("the query must occur")


ANSWERS = {
    "copy": lambda given: given,
    "one_symbol": lambda given: [given[0]] * len(given),
    "repeat": lambda given: given * 2,
    "reverse": lambda given: [given[-1 - i] for i in range(len(given))],
    "counting": lambda given: list(range(given[0], given[1] + 1)),
    "first_occurrence": _first,
}


def test_every_task_has_a_reference():
    assert set(ANSWERS) == set(TASKS)


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize("length", [1, 2, 7, 40])
def test_answers_are_right_and_end(name: str, length: int):
    task = TASKS[name]
    rows = task_rows(task, [length] * 20, 40, np.random.default_rng(length))
    assert rows.tokens.max() < task.num_tokens(40)
    for tokens, labels in zip(rows.tokens.tolist(), rows.labels.tolist(), strict=True):
        split = tokens.index(SEPARATOR)
        assert tokens[0] == BEGIN
        given = [token - FIRST_SYMBOL for token in tokens[1:split]]
        right = [FIRST_SYMBOL + symbol for symbol in ANSWERS[name](given)] + [END]
        assert tokens[split + 1 : split + 1 + len(right)] == right
        assert labels == [NO_TARGET] * (split + 1) + right


@pytest.mark.parametrize("name", TASKS)
def test_padding_is_no_target(name: str):
    rows = task_rows(TASKS[name], [3, 9], 12, np.random.default_rng(0))
    assert (rows.labels != NO_TARGET).sum(1).tolist() == [
        len(ANSWERS[name]([t - FIRST_SYMBOL for t in row[1 : row.index(SEPARATOR)]])) + 1
        for row in rows.tokens.tolist()
    ]


def test_rows_depend_on_the_seed_alone():
    one, same, other = (task_rows(TASKS["copy"], [8] * 4, 8, np.random.default_rng(s)).tokens for s in (3, 3, 4))
    assert one.equal(same)
    assert not one.equal(other)


@pytest.mark.parametrize("lengths", [[], [0], [9]])
def test_lengths_that_do_not_fit_are_refused(lengths: list[int]):
    with pytest.raises(ArgumentError, match="longest=8"):
        task_rows(TASKS["copy"], lengths, 8, np.random.default_rng(0))


def test_an_unknown_task_is_refused_with_the_nearest_name():
    with pytest.raises(ArgumentError, match="unknown task 'revers': did you mean 'reverse'"):
        named_tasks(["copy", "revers"])
