"""Each logits filter against a slow plain-Python oracle: the exact set of kept tokens."""

import inspect
import math
from itertools import pairwise

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.draws import draws
from x_positional.generation.sampling import FILTERS, min_p, top_a, top_k, top_p, typical

INF = math.inf
SAFE = 1e-9  # rows whose kept set depends on less than this are skipped: float64 rounding would decide

continuous = st.floats(-20, 20)
tied = st.integers(-6, 6).map(lambda n: n / 2)
removed = st.just(-INF)
rows = st.one_of(
    st.lists(values, min_size=1, max_size=13).filter(lambda row: max(row) > -INF)
    for values in (continuous, tied, st.one_of(tied, removed), st.one_of(continuous, removed))
)
unit = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.1, 0.5, 0.9, 1.0]))
thorough = settings(max_examples=draws(60, 300), deadline=None)


def kept(logits: Tensor) -> list[set[int]]:
    return [set(row.isfinite().nonzero().flatten().tolist()) for row in logits]


def probabilities(row: list[float]) -> list[float]:
    weights = [math.exp(x - max(row)) for x in row]
    return [w / math.fsum(weights) for w in weights]


def fewest(row: list[float], scores: list[float], mass: float) -> set[int]:
    """Tokens in order of score until they sum to the mass, and those that tie with the last."""
    alive = [i for i in range(len(row)) if row[i] > -INF]
    if mass == 1:
        return set(alive)
    probs, held, last = probabilities(row), 0.0, INF
    for i in sorted(alive, key=lambda i: scores[i]):
        last = scores[i]
        held += probs[i]
        assume(mass == 0 or abs(held - mass) > SAFE)
        if held >= mass:
            break
    return {i for i in alive if scores[i] <= last}


def check(row: list[float], filtered: Tensor, expected: set[int]) -> None:
    assert filtered.shape == (1, len(row))
    assert expected, "the oracle itself removed everything"
    assert kept(filtered) == [expected]
    assert all(filtered[0, i].item() == (row[i] if i in expected else -INF) for i in range(len(row)))


def batch_of_one(row: list[float]) -> Tensor:
    return torch.tensor([row], dtype=torch.float64)


@thorough
@given(rows, st.integers(1, 16))
def test_top_k_keeps_the_k_largest_and_their_ties(row: list[float], k: int) -> None:
    least = sorted(row, reverse=True)[min(k, len(row)) - 1]
    check(row, top_k(batch_of_one(row), k=k), {i for i, x in enumerate(row) if x >= least and x > -INF})


@thorough
@given(rows, unit)
def test_top_k_without_k_takes_a_fraction_rounded_up(row: list[float], fraction: float) -> None:
    count = max(1, math.ceil(fraction * len(row)))
    assert torch.equal(top_k(batch_of_one(row), frac_num_tokens=fraction), top_k(batch_of_one(row), k=count))


@thorough
@given(rows, unit)
@example([20.0, -20.0], 1.0)  # a rounded sum is 1 before the last token
def test_top_p_keeps_the_smallest_set_with_the_mass(row: list[float], thres: float) -> None:
    check(row, top_p(batch_of_one(row), thres=thres), fewest(row, [-x for x in row], thres))


@thorough
@given(rows, unit)
def test_min_p_keeps_a_share_of_the_largest_probability(row: list[float], share: float) -> None:
    probs = probabilities(row)
    assume(share in (0, 1) or all(abs(x - max(row) - math.log(share)) > SAFE for x in row))
    expected = {
        i for i, x in enumerate(row) if x > -INF and (x == max(row) or share == 0 or probs[i] > share * max(probs))
    }
    check(row, min_p(batch_of_one(row), min_p=share), expected)


@thorough
@given(rows, st.one_of(st.floats(0, 6), st.just(2.0)), st.one_of(unit, st.just(0.02)))
def test_top_a_limit_follows_the_largest_probability(row: list[float], power: float, ratio: float) -> None:
    probs = probabilities(row)
    limit = max(probs) ** power * ratio
    assume(limit == 0 or all(p == 0 or abs(math.log(p / limit)) > SAFE for p in probs if p != max(probs)))
    expected = {i for i, x in enumerate(row) if x > -INF and (x == max(row) or ratio == 0 or probs[i] >= limit)}
    check(row, top_a(batch_of_one(row), min_p_pow=power, min_p_ratio=ratio), expected)


@thorough
@given(rows, unit)
@example([20.0, -20.0], 1.0)  # a rounded sum is 1 before the last token
def test_typical_keeps_what_surprises_as_expected(row: list[float], mass: float) -> None:
    probs = probabilities(row)
    entropy = -math.fsum(p * math.log(p) for p in probs if p > 0)
    distance = {x: INF if x == -INF else abs(entropy + x - max(row) + math.log(max(probs))) for x in row}
    ordered = sorted(distance.values())
    assume(all(b - a > SAFE for a, b in pairwise(ordered)))  # different logits, the same distance
    check(row, typical(batch_of_one(row), mass=mass), fewest(row, [distance[x] for x in row], mass))


def test_the_nucleus_ends_where_the_mass_is_reached_exactly() -> None:
    logits = torch.tensor([[0.0, -math.log(2), -math.log(2)]], dtype=torch.float64)
    assert logits.softmax(-1)[0, 0] == 0.5
    assert kept(top_p(logits, thres=0.5)) == [{0}]


def test_typical_may_remove_the_likeliest_token() -> None:
    logits = torch.tensor([[0.3, 0.07, 0.07, 0.07, 0.07, 0.07, 0.07, 0.07, 0.07, 0.07, 0.07]]).log()
    assert kept(typical(logits, mass=0.5)) == [set(range(1, 11))]


@pytest.mark.parametrize("name", FILTERS)
def test_rows_are_filtered_apart(name: str) -> None:
    logits = torch.randn(5, 83, generator=torch.Generator().manual_seed(3)) * torch.tensor([[0.1], [1], [2], [4], [9]])
    whole = FILTERS[name](logits)
    assert torch.equal(whole, torch.cat([FILTERS[name](row) for row in logits.split(1)]))
    assert len({len(row) for row in kept(whole)}) > 1 or name == "top_k"


@pytest.mark.parametrize("name", FILTERS)
def test_the_input_is_left_as_it_was(name: str) -> None:
    logits = 3 * torch.randn(3, 41, generator=torch.Generator().manual_seed(4))
    before = logits.clone()
    assert kept(FILTERS[name](logits)) != kept(before)
    assert torch.equal(logits, before)


SETTINGS = [
    (top_k, {"k": 40}),
    (top_k, {"frac_num_tokens": 0.03}),
    (top_p, {"thres": 0.9}),
    (top_p, {"thres": 0.999}),
    (min_p, {"min_p": 0.03}),
    (top_a, {"min_p_pow": 1.5, "min_p_ratio": 0.3}),
    (typical, {"mass": 0.9}),
    (typical, {"mass": 0.4}),
]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("filter_fn", "options"), SETTINGS)
def test_half_precision_is_judged_in_float32(filter_fn, options: dict, dtype: torch.dtype) -> None:
    logits = (3 * torch.randn(16, 4099, generator=torch.Generator().manual_seed(5))).to(dtype)
    filtered = filter_fn(logits, **options)
    assert filtered.dtype == dtype
    assert kept(filtered) == kept(filter_fn(logits.float(), **options))
    assert torch.equal(filtered[filtered.isfinite()], logits[filtered.isfinite()])


@pytest.mark.parametrize("name", ["top_k", "top_p", "min_p", "top_a"])
def test_defaults_and_results_are_those_of_x_transformers(name: str) -> None:
    wrapper = pytest.importorskip("x_transformers.autoregressive_wrapper", reason="compares with x-transformers")
    theirs = wrapper.FILTER_LOGITS_FN[name]
    defaults = {p.name: p.default for p in inspect.signature(theirs).parameters.values()}
    assert {p.name: p.default for p in inspect.signature(FILTERS[name]).parameters.values()} == defaults
    logits = 2 * torch.randn(32, 1001, generator=torch.Generator().manual_seed(6))
    assert all(row.unique().numel() == 1001 for row in logits), "a tie is where the two differ on purpose"
    assert torch.equal(FILTERS[name](logits), theirs(logits.clone()))
