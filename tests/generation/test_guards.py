"""Logits from which no token can be drawn raise with step and row, and arguments of a wrong type are refused by name."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.support.generation_models import GREEDY, NUM_TOKENS, ids, language_model
from x_positional import AutoregressiveWrapper, SamplingError
from x_positional.errors import InputError, XPositionalError
from x_positional.generation.sampling import resolve_filters, typical


@pytest.fixture(scope="module")
def wrapper() -> AutoregressiveWrapper:
    return AutoregressiveWrapper(language_model("rope"))


@pytest.fixture(params=["cpu", "accelerator"])
def device_kind(request, monkeypatch) -> str:
    """Decoding as on a CPU, and as on a device whose values the host has to wait for."""
    if request.param == "accelerator":
        monkeypatch.setattr("x_positional.generation.sampling.READ_AT_ONCE", ())
    return request.param


class Spoil:
    """A filter that sets the logits of one row at one step to a value."""

    def __init__(self, step: int, row: int, value: float):
        self.step, self.row, self.value, self.calls = step, row, value, 0

    def __call__(self, logits: Tensor) -> Tensor:
        spoilt = logits.clone()
        if self.calls == self.step:
            spoilt[self.row] = self.value
        self.calls += 1
        return spoilt


@pytest.mark.parametrize("options", [GREEDY, {"seed": 0}, {"seed": 0, "eos_token": NUM_TOKENS - 1}])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        (math.nan, "the logits of row 1 at step 2 contain NaN"),
        (-math.inf, "no token is left for row 1 at step 2"),
        (math.inf, "a logit of row 1 at step 2 is infinite"),
    ],
)
def test_logits_without_a_token_raise_with_step_and_row(wrapper, device_kind, options, value, message) -> None:
    for verb in ("generate", "stream"):
        with pytest.raises(SamplingError, match=message):
            list(getattr(wrapper, verb)(ids(3, 4), 5, filter_logits_fn=Spoil(2, 1, value), **options))
    unspoilt = wrapper.generate(ids(3, 4), 5, filter_logits_fn=Spoil(9, 1, value), **options)
    assert torch.equal(unspoilt, wrapper.generate(ids(3, 4), 5, filter_logits_fn=[], **options))


def test_on_a_cpu_the_token_of_a_bad_step_is_never_handed_out(wrapper) -> None:
    stream, seen = wrapper.stream(ids(2, 4), 5, filter_logits_fn=Spoil(3, 0, math.nan)), []
    with pytest.raises(SamplingError, match="step 3"):
        seen.extend(iter(stream))
    assert len(seen) == 3 or not seen  # extend keeps none, or all before the error


@pytest.mark.parametrize("options", [GREEDY, {"seed": 0}, {"seed": 0, "filter_logits_fn": "top_p"}])
def test_nan_weights_are_named(device_kind, options) -> None:
    net = language_model("rope")
    with torch.no_grad():
        net.attn_layers.blocks[0].ff.down.weight[0, 0] = math.nan
    with pytest.raises(SamplingError, match="row 0 at step 0 contain NaN"):
        AutoregressiveWrapper(net).generate(ids(2, 4), 5, **options)


def test_a_callers_filter_counts_at_temperature_zero(wrapper) -> None:
    prompt = ids(1, 4)
    banned = int(wrapper.generate(prompt, 1, **GREEDY))

    def ban(logits: Tensor) -> Tensor:
        return logits.index_fill(-1, torch.tensor([banned]), -math.inf)

    for filters in (ban, [ban, "top_k"], ["top_k", ban]):
        drawn = wrapper.generate(prompt, 8, filter_logits_fn=filters, **GREEDY)
        assert banned not in drawn
    free = wrapper.net(prompt)[0, -1]
    assert int(wrapper.generate(prompt, 1, filter_logits_fn=ban, **GREEDY)) == int(free.topk(2).indices[1])
    with torch.no_grad():
        best = typical(free[None], mass=0.05).argmax()
    only = wrapper.generate(prompt, 1, filter_logits_fn="typical", filter_kwargs={"mass": 0.05}, **GREEDY)
    assert int(only) == int(best)


def test_filters_that_keep_the_largest_do_not_run_at_temperature_zero(wrapper, monkeypatch) -> None:
    monkeypatch.setattr(
        "x_positional.generation.decoding.draw", lambda logits, t, filters, g: pytest.fail(str(filters))
    )
    for name in ("top_k", "top_p", "min_p", "top_a", ["top_k", "top_p"]):
        with pytest.raises(pytest.fail.Exception, match=r"\[\]"):
            wrapper.generate(ids(1, 3), 1, filter_logits_fn=name, **GREEDY)
    assert len(resolve_filters("top_k")) == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seq_len": 1.5}, r"seq_len=1.5 must be an integer of at least 0"),
        ({"seq_len": True}, r"seq_len=True must be an integer"),
        ({"seq_len": "4"}, r"seq_len='4' must be an integer"),
        ({"seq_len": None}, r"seq_len=None must be an integer"),
        ({"seed": "a"}, r"seed='a' must be an integer"),
        ({"seed": 1.0}, r"seed=1.0 must be an integer"),
        ({"seed": True}, r"seed=True must be an integer"),
        ({"seed": 2**64}, r"seed=18446744073709551616 must be an integer"),
        ({"eos_token": "a"}, r"eos_token must be a tensor, a numpy array or a list of numbers"),
        ({"eos_token": True}, r"eos_token=True must be one or several ids"),
        ({"eos_token": {"a": 1}}, r"eos_token must be a tensor"),
        ({"eos_token": [[1], [2, 3]]}, r"eos_token must be a tensor"),
        ({"prompt_lens": torch.tensor([3, 3, 3])}, r"prompt_lens must be 2 integers, one per row; these are \[3\]"),
        ({"prompt_lens": [3]}, r"prompt_lens must be 2 integers, one per row; these are \[1\]"),
        ({"prompt_lens": torch.tensor([True, True])}, r"prompt_lens must be 2 integers.*torch.bool"),
        ({"prompt_lens": "ab"}, r"prompt_lens must be a tensor"),
        ({"restrict_to_max_seq_len": "no"}, r"restrict_to_max_seq_len='no' must be a bool"),
        ({"cache_kv": 0}, r"cache_kv=0 must be a bool"),
        ({"cache": True}, r"cache=True must be a cache from model.new_cache"),
        ({"cache": torch.nn.Identity()}, r"cache=Identity must be a cache"),
        ({"contrast": torch.nn.Identity()}, r"contrast=Identity must be ContrastWith"),
        ({"speculate": torch.nn.Identity()}, r"speculate=Identity must be PromptLookup"),
        ({"generator": 7}, r"generator=7 must be a torch.Generator"),
        ({"temperature": "hot"}, r"temperature='hot' must be a finite number"),
        ({"temperature": 10**400}, r"must be a finite number"),
        ({"filter_kwargs": {"k": NUM_TOKENS + 1}}, r"top_k: k=30 exceeds the vocabulary of 29 tokens"),
        ({"filter_logits_fn": lambda logits: None}, r"returned NoneType; a filter must return the logits"),
        ({"context": [[1.0]]}, r"this stack has no cross-attention"),
        ({"positions": "abc"}, r"positions must be a tensor"),
    ],
)
@pytest.mark.parametrize("verb", ["generate", "stream"])
def test_arguments_of_a_wrong_type_are_refused_by_name(wrapper, verb, options, message) -> None:
    with pytest.raises(XPositionalError, match=message):
        list(getattr(wrapper, verb)(ids(2, 3), **{"seq_len": 4, **options}))


def test_return_cache_must_be_a_bool(wrapper) -> None:
    with pytest.raises(InputError, match="return_cache='yes' must be a bool"):
        wrapper.generate(ids(2, 3), 4, return_cache="yes")


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("abc", "prompts must be a tensor"),
        ({"a": 1}, "prompts must be a tensor"),
        (5, r"prompts must be \[tokens\]"),
        (["ab", "c"], r"prompts\[0\] must be a tensor"),
        ([[1, 2], None], r"prompts\[1\] must be a tensor"),
        (ids(2, 3).to_sparse(), "prompts must be a dense tensor"),
        (np.array([1.5, 2.5]), "integer ids"),
    ],
)
def test_prompts_of_a_wrong_type_are_refused(wrapper, prompts, message) -> None:
    with pytest.raises(InputError, match=message):
        wrapper.generate(prompts, 2)


def test_lists_and_arrays_are_prompts(wrapper) -> None:
    row, batch = ids(5), ids(2, 5)
    one, two = wrapper.generate(row, 6, **GREEDY), wrapper.generate(batch, 6, **GREEDY)
    assert torch.equal(wrapper.generate(row.tolist(), 6, **GREEDY), one)
    assert torch.equal(wrapper.generate(row.numpy(), 6, **GREEDY), one)
    assert torch.equal(wrapper.generate(batch.tolist(), 6, **GREEDY), two)
    assert torch.equal(wrapper.generate(batch.numpy().astype(np.uint16), 6, **GREEDY), two)
    ragged = wrapper.generate([row[:3], row], 6, **GREEDY)
    padded = torch.stack([torch.cat([row[:3], row[:2]]), row])
    for lengths in (torch.tensor([3, 5]), [3, 5], np.array([3, 5])):
        assert torch.equal(wrapper.generate(padded, 6, prompt_lens=lengths, **GREEDY), ragged)
