"""The draw of a token against its distribution, the repetition penalty, and that no step forces a device sync."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.draws import draws
from x_positional.generation.sampling import (
    FILTERS,
    mark_seen,
    repetition_penalty,
    resolve_filters,
    sample,
    seen_tokens,
    top_k,
    top_p,
)

INF = math.inf
thorough = settings(max_examples=draws(60, 300), deadline=None)
rows = st.lists(st.one_of(st.floats(-20, 20), st.just(-INF)), min_size=1, max_size=13)


def support(logits: Tensor) -> set[int]:
    return set(logits.isfinite().nonzero().flatten().tolist())


@thorough
@given(rows, st.floats(0.1, 4), st.randoms(use_true_random=False))
def test_repetition_penalty_touches_seen_tokens_only(row: list[float], penalty: float, random) -> None:
    seen = [random.random() < 0.5 for _ in row]
    penalised = repetition_penalty(torch.tensor([row], dtype=torch.float64), torch.tensor([seen]), penalty)
    expected = [x if not s else x / penalty if x > 0 else x * penalty for x, s in zip(row, seen, strict=True)]
    assert penalised.tolist() == [expected]


def test_a_penalty_above_one_never_helps_a_seen_token() -> None:
    logits = torch.tensor([[2.0, -2.0, 0.0, 1.0]], dtype=torch.bfloat16)
    seen = torch.tensor([[True, True, False, False]])
    penalised = repetition_penalty(logits, seen, 1.2)
    assert penalised.dtype == torch.bfloat16
    assert penalised[0, 0] < 2
    assert penalised[0, 1] < -2
    assert torch.equal(repetition_penalty(logits, seen, 1.0), logits)


@thorough
@given(st.data())
def test_seen_tokens_are_those_of_the_row_without_padding(data: st.DataObject) -> None:
    batch, length, num_tokens = (data.draw(st.integers(1, top)) for top in (3, 9, 11))
    grid = st.lists(st.integers(-1, num_tokens - 1), min_size=length, max_size=length)  # -1: padding
    tokens = torch.tensor(data.draw(st.lists(grid, min_size=batch, max_size=batch)))
    seen = seen_tokens(tokens, num_tokens, mask=tokens >= 0)
    assert seen.dtype == torch.bool
    assert seen.shape == (batch, num_tokens)
    expected = [set(row) - {-1} for row in tokens.tolist()]
    assert [set(row.nonzero().flatten().tolist()) for row in seen] == expected
    new = torch.tensor(data.draw(st.lists(st.integers(0, num_tokens - 1), min_size=batch, max_size=batch)))
    assert mark_seen(seen, new) is seen
    marked = [row | {token} for row, token in zip(expected, new.tolist(), strict=True)]
    assert [set(row.nonzero().flatten().tolist()) for row in seen] == marked


def test_seen_tokens_without_a_mask_counts_every_token() -> None:
    assert seen_tokens(torch.tensor([[0, 3, 3], [1, 1, 1]]), 4).tolist() == [
        [True, False, False, True],
        [False, True, False, False],
    ]


@pytest.mark.parametrize("penalty", [0, -1.0, INF, math.nan, True, "1.2"])
def test_a_penalty_out_of_range_is_refused(penalty: object) -> None:
    with pytest.raises(ValueError, match=r"penalty=.* must be a finite number above 0\."):
        repetition_penalty(torch.zeros(1, 3), torch.zeros(1, 3, dtype=torch.bool), penalty)


@pytest.mark.parametrize(
    "seen", [torch.zeros(1, 4, dtype=torch.bool), torch.zeros(3, dtype=torch.bool), torch.zeros(1, 3)]
)
def test_marks_of_another_shape_or_dtype_are_refused(seen: Tensor) -> None:
    with pytest.raises(ValueError, match=r"logits \[1, 3\] need a bool tensor of the same shape"):
        repetition_penalty(torch.zeros(1, 3), seen, 1.2)


DRAWS = 100_000
ROW = torch.tensor([1.5, -INF, 0.0, -1.0, 0.7, -4.0, 1.4, 0.3])


def draw(temperature: float, filters=(), seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return sample(ROW.to(dtype).expand(DRAWS, -1), temperature, filters, generator)


def chi_square(tokens: Tensor, probs: Tensor) -> float:
    counts = torch.bincount(tokens, minlength=len(probs)).double()
    assert (counts[probs == 0] == 0).all(), "a token of probability zero was drawn"
    expected = probs.double()[probs > 0] * len(tokens)
    return ((counts[probs > 0] - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_draw_follows_the_softmax(temperature: float, dtype: torch.dtype) -> None:
    probs = (ROW.to(dtype).double() / temperature).softmax(-1)
    statistic = chi_square(draw(temperature, dtype=dtype), probs)
    assert statistic < 27.86  # 0.9999 quantile, 6 degrees of freedom
    assert (
        chi_square(draw(temperature, dtype=dtype), probs.roll(1).where(probs > 0, 0) + 1e-9) > 1000
    )  # the test can tell


def test_filters_see_the_logits_before_the_temperature() -> None:
    filters = resolve_filters("top_p", {"thres": 0.5})
    only = top_p(ROW[None], thres=0.5)[0]
    assert support(only) != support(top_p(ROW[None] / 3.0, thres=0.5)[0]), "the two orders must differ for this row"
    tokens = draw(3.0, filters)
    assert set(tokens.tolist()) == support(only)
    assert chi_square(tokens, (only.double() / 3.0).softmax(-1)) < 15.14  # 0.9999 quantile of 1 degree of freedom


def test_filters_run_one_after_the_other() -> None:
    calls: list[str] = []

    def first(logits: Tensor) -> Tensor:
        calls.append("first")
        return logits.index_fill(-1, torch.tensor([0]), -INF)

    def second(logits: Tensor) -> Tensor:
        calls.append("second")
        assert (logits[:, 0] == -INF).all()
        return top_k(logits, k=2)

    assert set(draw(1.0, [first, second]).tolist()) == {4, 6}
    assert calls == ["first", "second"]


def test_the_same_seed_draws_the_same_tokens() -> None:
    state = torch.get_rng_state()
    tokens = draw(1.0, seed=1)
    assert torch.equal(torch.get_rng_state(), state), "the global random numbers were used"
    assert tokens.shape == (DRAWS,)
    assert tokens.dtype == torch.int64
    assert torch.equal(tokens, draw(1.0, seed=1))
    assert not torch.equal(tokens, draw(1.0, seed=2))


def test_without_a_generator_the_global_one_is_used() -> None:
    torch.manual_seed(7)
    tokens = sample(ROW.expand(100, -1))
    torch.manual_seed(7)
    assert torch.equal(sample(ROW.expand(100, -1)), tokens)


def test_temperature_zero_is_the_largest_logit_that_the_filters_keep() -> None:
    logits = torch.randn(9, 31, generator=torch.Generator().manual_seed(8)).bfloat16()
    generator = torch.Generator().manual_seed(9)
    state = generator.get_state()
    assert torch.equal(sample(logits, 0, generator=generator), logits.argmax(-1))
    assert torch.equal(generator.get_state(), state)
    second = logits.float().topk(2).indices[:, 1]
    without = [lambda x: x.scatter(1, x.argmax(-1, keepdim=True), -INF)]
    assert torch.equal(sample(logits, 0, without), second)
    assert torch.equal(sample(logits.float(), 1e-30, without), second)  # the limit of the draw


@pytest.mark.parametrize("temperature", [1e-300, 1e-45, 1e-30])
def test_a_tiny_temperature_comes_to_the_largest_logit(temperature: float) -> None:
    logits = torch.randn(50, 31, generator=torch.Generator().manual_seed(8)) * 1e3
    assert torch.equal(sample(logits, temperature), logits.argmax(-1))


@pytest.mark.parametrize("temperature", [1e30, 1e300])
def test_a_huge_temperature_is_uniform_over_the_kept_tokens(temperature: float) -> None:
    assert chi_square(draw(temperature), ROW.isfinite() / 7) < 27.86


def test_a_clock_of_zero_cannot_draw_a_removed_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "exponential_", lambda self, **_: self.zero_())
    assert sample(torch.tensor([[-INF, 1.0, -INF, 0.0]])).tolist() == [1]


@pytest.mark.parametrize("temperature", [-0.1, INF, math.nan, None, "1", True])
def test_a_temperature_out_of_range_is_refused(temperature: object) -> None:
    with pytest.raises(ValueError, match=r"temperature=.* must be a finite number of at least 0\."):
        sample(torch.zeros(1, 3), temperature)


def test_a_filter_that_changes_the_shape_is_refused() -> None:
    with pytest.raises(ValueError, match=r"turned logits \[1, 3\] into \[1, 2\]"):
        sample(torch.zeros(1, 3), filters=[lambda logits: logits[:, :2]])


def whole_step(logits: Tensor, tokens: Tensor, filters: list) -> Tensor:
    """One step of a decode loop: marks, penalty, filters, draw."""
    seen = seen_tokens(tokens, logits.shape[-1], mask=tokens != 0)
    drawn = sample(repetition_penalty(logits, seen, 1.2), 0.8, filters)
    return sample(repetition_penalty(logits, mark_seen(seen, drawn), 1.2), 0)


@pytest.mark.parametrize("name", FILTERS)
def test_tensors_without_values_pass_through(name: str) -> None:
    logits, tokens = torch.empty(3, 50, device="meta"), torch.empty(3, 7, dtype=torch.long, device="meta")
    assert whole_step(logits, tokens, [FILTERS[name]]).shape == (3,)
    with pytest.raises(RuntimeError, match="meta"):
        whole_step(logits, tokens, [lambda x: x.clamp_max(x.max().item())])


@pytest.mark.parametrize("name", FILTERS)
def test_a_step_compiles_into_one_graph(name: str) -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(1))
    tokens = torch.randint(0, 50, (3, 7), generator=torch.Generator().manual_seed(2))
    filters = resolve_filters([name, "top_k"], {"top_k": {"k": 5}})
    compiled = torch.compile(whole_step, backend="eager", fullgraph=True)
    torch.manual_seed(3)
    expected = whole_step(logits, tokens, filters)
    torch.manual_seed(3)
    assert torch.equal(compiled(logits, tokens, filters), expected)
