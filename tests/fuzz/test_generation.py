"""Random calls of `generate` over one cache, with its operations between them: equal to full passes over each row alone."""

import random
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.draws import draws
from tests.support.generation_models import NUM_TOKENS, language_model
from x_positional import AutoregressiveWrapper, TransformerWrapper, XPositionalError
from x_positional.testing.checks_generation import search

DRAWS = draws(30, 1500)
Rows = list[list[int]]


class BrokenError(Exception):
    """What a callback raises."""


@pytest.fixture(scope="module")
def models() -> list[TransformerWrapper]:
    kinds: list[tuple[str, dict[str, Any]]] = [("rope", {}), ("alibi", {}), ("cope", {}), ("forgetting", {"window": 5})]
    return [language_model(name, depth=1, max_seq_len=64, **options) for name, options in kinds]


def options_of(rng: random.Random, rows: int) -> dict[str, Any]:
    """Arguments of one call that draws nothing at random."""
    options: dict[str, Any] = {"temperature": 0.0}
    if rng.random() < 0.4:
        options["num_beams"] = rng.choice([2, 3])
        options["num_return_sequences"] = rng.randint(1, options["num_beams"]) if rows < 3 else 1
    if rng.random() < 0.3:
        options["prefill_chunk_size"] = rng.randint(1, 3)
    return options | ({"eos_token": [3, 5, 7, 11]} if rng.random() < 0.4 else {})


def continued(net: TransformerWrapper, row: list[int], steps: int, options: dict[str, Any]) -> Rows:
    """The new tokens of each sequence that continues a row, by full passes."""
    eos = set(options.get("eos_token", ()))

    def predict(sequences: Rows) -> Tensor:
        return net(torch.tensor([row + new for new in sequences]))[:, -1].log_softmax(-1)

    if "num_beams" in options:
        found = search(predict, steps, options["num_beams"], eos=eos)
        return [sequence.tokens for sequence in found[: options["num_return_sequences"]]]
    new: list[int] = []
    while len(new) < steps and not eos & set(new[-1:]):
        new.append(int(predict([new]).argmax()))
    return [new]


def changed(rng: random.Random, cache: Any, rows: Rows) -> Rows:
    """The rows after an operation of the cache, or as they were if it is refused."""
    choice, lengths = rng.choice(["crop", "rows", "repeat", "reorder"]), [len(row) for row in rows]
    try:
        if choice == "crop":
            length = rng.randint(-min(lengths) - 1, max(lengths) + 1)
            cache.crop(length)
            return [row[: length if length >= 0 else len(row) + length] for row in rows]
        if choice == "rows":
            kept = [rng.randint(0, length) for length in lengths]
            cache.crop(kept)
            return [row[:length] for row, length in zip(rows, kept, strict=True)]
        if choice == "repeat" and len(rows) < 3:
            cache.repeat(2)
            return [row for row in rows for _ in range(2)]
        if choice == "reorder":
            numbers = [rng.randrange(len(rows)) for _ in range(rng.randint(1, 3))]
            cache.reorder(numbers)
            return [rows[i] for i in numbers]
    except XPositionalError:
        return rows
    return rows


def fails(wrapper: AutoregressiveWrapper, prompts: Rows, steps: int, options: dict[str, Any], cache: Any) -> None:
    """A call whose callback raises."""

    def broken(tokens: Tensor) -> bool:
        raise BrokenError

    with pytest.raises(BrokenError):
        wrapper.generate(prompts, steps, cache=cache, stopping_criteria=broken, **options)


@torch.no_grad()
def case(net: TransformerWrapper, seed: int) -> str:
    """Several calls over one cache."""
    rng, wrapper = random.Random(seed), AutoregressiveWrapper(net)
    rows: Rows = [[] for _ in range(rng.randint(1, 2))]
    cache = net.new_cache(len(rows))
    for _ in range(3):
        options, steps = options_of(rng, len(rows)), rng.randint(1, 4)
        prompts = [[rng.randrange(NUM_TOKENS) for _ in range(rng.randint(1, 5))] for _ in rows]
        if max(map(len, rows)) + 5 + steps > net.max_seq_len:
            break
        if rng.random() < 0.2:
            fails(wrapper, prompts, steps, options, cache)
        found = wrapper.generate(prompts, steps, cache=cache, **options)
        read = [row + prompt for row, prompt in zip(rows, prompts, strict=True)]
        want = [(row, new) for row in read for new in continued(net, row, steps, options)]
        assert [got[: len(new)] for got, (_, new) in zip(found.tolist(), want, strict=True)] == [n for _, n in want]
        rows = changed(rng, cache, [row + new for row, new in want])
        assert torch.as_tensor(cache.starts()).expand(len(rows)).tolist() == [len(row) for row in rows]
    return "emptied" if not all(rows) else "ended"


def test_calls_over_one_cache_equal_full_passes(models) -> None:
    outcomes: Counter[str] = Counter()
    for seed in range(DRAWS):
        try:
            outcomes[case(models[seed % len(models)], seed)] += 1
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
    assert outcomes["ended"] > DRAWS / 2, outcomes
