"""Logits processors and stopping criteria: what they are called with, what they change, and what they may return."""

import math

import pytest
import torch
from torch import Tensor

from tests.support.generation_models import GREEDY, equal, full_pass, ids, language_model, ragged
from x_positional import AutoregressiveWrapper, PromptLookup
from x_positional.errors import ArgumentError, InputError, SamplingError


@pytest.fixture(scope="module")
def wrapper() -> AutoregressiveWrapper:
    return AutoregressiveWrapper(language_model(), pad_value=5)


def test_processors_see_the_new_tokens_and_the_logits_of_the_model(wrapper) -> None:
    prompts, seen = ragged(3, 6), []

    def note(tokens: Tensor, logits: Tensor) -> Tensor:
        seen.append((tokens.clone(), logits.clone()))
        return logits

    tokens = wrapper.generate(prompts, 4, seed=1, logits_processors=note)
    assert [tokens[:, :n].tolist() for n in range(4)] == [given.tolist() for given, _ in seen]
    for i, prompt in enumerate(prompts):
        equal(torch.stack([logits[i] for _, logits in seen]), full_pass(wrapper.net, prompt, tokens[i]))
    assert torch.equal(wrapper.generate(prompts, 4, seed=1), tokens)


def test_processors_come_after_the_penalty_in_order_and_before_filters_and_temperature(wrapper) -> None:
    order = []

    def ban(tokens: Tensor, logits: Tensor) -> Tensor:
        order.append("ban")
        return logits.scatter(1, tokens, -math.inf)

    def raise_ten(tokens: Tensor, logits: Tensor) -> Tensor:
        order.append("raise")
        assert (logits.gather(1, tokens) == -math.inf).all()
        return logits.index_add(1, torch.tensor([10]), torch.full((len(logits), 1), 40.0).double())

    def last(logits: Tensor) -> Tensor:
        order.append("filter")
        return logits

    tokens = wrapper.generate(
        ids(2, 4),
        5,
        temperature=1e-3,
        logits_processors=[ban, raise_ten],
        filter_logits_fn=last,
        repetition_penalty=1.5,
    )
    assert order == ["ban", "raise", "filter"] * 5
    assert (tokens[:, 0] == 10).all()
    assert all(len(set(row)) == 5 for row in tokens.tolist())


def test_a_processor_may_write_in_place_and_log_probs_stay_those_of_the_model(wrapper) -> None:
    prompt = ids(4)

    def only_seven(tokens: Tensor, logits: Tensor) -> Tensor:
        return logits.fill_(-math.inf).index_fill_(1, torch.tensor([7]), 0.0)

    tokens, log_probs = wrapper.generate(prompt, 3, logits_processors=only_seven, return_log_probs=True)
    assert tokens.tolist() == [7, 7, 7]
    equal(log_probs, full_pass(wrapper.net, prompt, tokens).log_softmax(-1)[:, 7])


def test_criteria_end_rows_like_an_eos(wrapper) -> None:
    prompts = ragged(3, 6, 2)
    free = wrapper.generate(prompts, 8, seed=1)
    wanted = torch.tensor([2, 5, 3])

    def at_length(tokens: Tensor) -> Tensor:
        return tokens.shape[1] == wanted

    got, cache = wrapper.generate(prompts, 8, seed=1, stopping_criteria=at_length, return_cache=True)
    assert got.shape == (3, 5)
    for row, plain, length in zip(got, free, wanted.tolist(), strict=True):
        assert row.tolist() == plain[:length].tolist() + [5] * (5 - length)
    assert cache.starts().tolist() == [3 + 2, 6 + 5, 2 + 3]
    whole = [torch.cat([p, row[:n]]) for p, row, n in zip(prompts, got, wanted.tolist(), strict=True)]
    assert torch.equal(wrapper.generate(None, 3, cache=cache, **GREEDY), wrapper.generate(whole, 3, **GREEDY))
    streamed = list(wrapper.stream(prompts, 8, seed=1, stopping_criteria=at_length))
    assert torch.equal(torch.stack(streamed, 1), got)
    log_probs = wrapper.generate(prompts, 8, seed=1, stopping_criteria=at_length, return_log_probs=True)[1]
    assert torch.equal(log_probs != 0, torch.arange(5) < wanted[:, None])


def test_any_of_several_criteria_and_an_eos_end_a_row(wrapper) -> None:
    prompt = ids(2, 4)
    free = wrapper.generate(prompt, 8, **GREEDY)
    eos = int(free[0, 5])
    first = free[0].tolist().index(eos)
    for criteria in (
        [lambda t: t.shape[1] >= 7, lambda t: torch.tensor(t.shape[1] >= 4)],
        (lambda t: t.shape[1] >= 4,),
        lambda t: torch.full((2,), t.shape[1] >= 4),
    ):
        got = wrapper.generate(prompt, 8, eos, stopping_criteria=criteria, **GREEDY)
        assert got.shape == (2, 4)
        assert got[0].tolist()[: first + 1] == free[0].tolist()[: min(first + 1, 4)]


def test_criteria_with_speculation(wrapper) -> None:
    prompt = torch.tensor([1, 2, 3, 1, 2, 3, 1, 2])
    lookup = PromptLookup(tokens=4)
    options = {"stopping_criteria": lambda tokens: tokens.shape[1] == 6, **GREEDY}
    want, cache = wrapper.generate(prompt, 12, return_cache=True, **options)
    got, kept = wrapper.generate(prompt, 12, speculate=lookup, return_cache=True, **options)
    assert torch.equal(got, want)
    assert kept.span == cache.span == 14


def test_a_cache_is_as_before_when_a_function_fails(wrapper) -> None:
    cache = wrapper.prefill(ids(2, 4))

    def fails(tokens: Tensor, logits: Tensor) -> Tensor:
        if tokens.shape[1] == 2:
            raise KeyError("of the caller")
        return logits

    with pytest.raises(KeyError, match="of the caller"):
        wrapper.generate(ids(2, 3), 5, cache=cache, num_return_sequences=2, logits_processors=fails)
    assert (cache.span, cache.batch_size) == (4, 2)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, r"returned NoneType; it must return the logits \[2, 29\] on cpu"),
        (torch.zeros(2, 29, dtype=torch.long), "returned torch.int64"),
        (torch.zeros(2, 28), r"returned \[2, 28\] on cpu for logits \[2, 29\] on cpu"),
        (torch.zeros(2, 29, device="meta"), r"\[2, 29\] on meta"),
    ],
)
def test_what_a_processor_may_not_return(wrapper, found, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        wrapper.generate(ids(2, 4), 3, logits_processors=lambda tokens, logits: found)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (None, r"returned None; it must return a bool, or a bool tensor \[2\]"),
        (1, "returned 1;"),
        (torch.tensor([0, 1]), r"returned torch.int64 of shape \[2\]"),
        (torch.tensor([True]), r"returned torch.bool of shape \[1\]"),
        (torch.zeros(2, 1, dtype=torch.bool), r"of shape \[2, 1\]"),
    ],
)
def test_what_a_criterion_may_not_return(wrapper, found, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        wrapper.generate(ids(2, 4), 3, stopping_criteria=lambda tokens: found)


def test_nan_and_nothing_left_are_errors(wrapper) -> None:
    with pytest.raises(SamplingError, match=r"row 0 at step 0 contain NaN.*logits processor"):
        wrapper.generate(ids(2, 4), 3, logits_processors=lambda _, logits: logits * math.nan)
    with pytest.raises(SamplingError, match=r"no token is left for row 0.*logits_processors"):
        wrapper.generate(ids(2, 4), 3, logits_processors=lambda _, logits: logits - math.inf)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"logits_processors": 3}, r"logits_processors=3 must be a function or a list of functions; 3 is not callable"),
        ({"stopping_criteria": [bool, "end"]}, "'end' is not callable"),
        (
            {"logits_processors": lambda t, x: x, "speculate": PromptLookup()},
            "speculate= and logits_processors= cannot",
        ),
    ],
)
def test_what_is_refused(wrapper, options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrapper.generate(ids(4), 3, **options)
