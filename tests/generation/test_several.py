"""Several sequences per prompt, and the log-probabilities of new tokens under the model."""

import math

import pytest
import torch
from torch import Tensor

from tests.support.generation_models import Script, equal, full_pass, ids, language_model, ragged
from tests.support.length_scalings import TRAINED, dynamic
from x_positional import AutoregressiveWrapper, DraftModel, PromptLookup, TransformerWrapper
from x_positional.errors import InputError

EOS = [3, 7, 11, 12, 19]


def wrap(position="rope", **flags) -> AutoregressiveWrapper:
    return AutoregressiveWrapper(language_model(position, **flags))


def scored(net: TransformerWrapper, prompt: Tensor, row: Tensor) -> Tensor:
    """The log-probabilities [N] of a row, by one pass over everything; 0 after its end."""
    ends = [i for i, token in enumerate(row.tolist()) if token in EOS]
    length = ends[0] + 1 if ends else len(row)
    found = full_pass(net, prompt, row).log_softmax(-1).gather(1, row[:, None])[:, 0]
    return found.masked_fill(torch.arange(len(row)) >= length, 0.0)


@pytest.mark.parametrize("scheme", ["rope", "t5", "forgetting"])
def test_sequences_of_a_prompt_are_rows_of_a_batch_that_repeats_it(scheme: str) -> None:
    wrapper, prompts = wrap(scheme), ragged(3, 6)
    repeated = [prompt for prompt in prompts for _ in range(3)]
    for options in ({}, {"eos_token": EOS}, {"cache_kv": False}, {"repetition_penalty": 1.3, "prefill_chunk_size": 2}):
        got = wrapper.generate(prompts, 6, seed=1, num_return_sequences=3, **options)
        assert torch.equal(got, wrapper.generate(repeated, 6, seed=1, **options))
        steps = list(wrapper.stream(prompts, 6, seed=1, num_return_sequences=3, **options))
        assert torch.equal(torch.stack(steps, 1), got)
    assert got[:3].unique(dim=0).shape[0] > 1


def test_the_prompt_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    wrapper, rows = wrap(), []
    forward = TransformerWrapper.forward

    def noted(self, tokens: Tensor, *args, **options):
        rows.append(tuple(tokens.shape))
        return forward(self, tokens, *args, **options)

    monkeypatch.setattr(TransformerWrapper, "forward", noted)
    assert wrapper.generate(ids(2, 7), 4, num_return_sequences=5).shape == (10, 4)
    assert rows == [(2, 7), (10, 1), (10, 1), (10, 1)]
    assert wrapper.generate(ids(7), 4, num_return_sequences=5).shape == (5, 4)
    assert wrapper.generate(ids(7), 0, num_return_sequences=5).shape == (5, 0)


def test_the_cache_has_a_row_for_each_sequence() -> None:
    wrapper, prompts = wrap(), ragged(3, 6)
    first, cache = wrapper.generate(prompts, 5, EOS, seed=1, num_return_sequences=2, return_cache=True)
    repeated = [prompt for prompt in prompts for _ in range(2)]
    _, want = wrapper.generate(repeated, 5, EOS, seed=1, return_cache=True)
    assert cache.batch_size == 4
    assert torch.equal(cache.starts(), want.starts())
    turn = torch.arange(4)[:, None]
    more = wrapper.generate(turn, 4, temperature=0.0, cache=cache)
    assert torch.equal(more, wrapper.generate(turn, 4, temperature=0.0, cache=want))
    assert first.shape == (4, 5)
    prefix = wrapper.prefill(prompts)
    samples = wrapper.generate(None, 5, seed=1, cache=prefix, num_return_sequences=2)
    assert torch.equal(samples, wrapper.generate(repeated, 5, seed=1))


def test_sequences_with_a_context_positions_and_keys_that_change() -> None:
    wrapper, prompts = wrap(cross_attend=True), ragged(3, 6)
    context = torch.randn(2, 7, 26, generator=torch.Generator().manual_seed(1)).double()
    mask = torch.arange(7) < torch.tensor([[7], [4]])
    each = {"context": context.repeat_interleave(2, 0), "context_mask": mask.repeat_interleave(2, 0)}
    repeated = [prompt for prompt in prompts for _ in range(2)]
    for options in ({}, {"cache_kv": False}):
        got = wrapper.generate(
            prompts, 5, seed=1, context=context, context_mask=mask, num_return_sequences=2, **options
        )
        assert torch.equal(got, wrapper.generate(repeated, 5, seed=1, **each, **options))
    wrapper = wrap({"kind": "rope", "scaling": dynamic(length_policy="recompute")})
    prompt, positions = ids(2, TRAINED - 3), torch.arange(TRAINED - 3).expand(2, -1) * torch.tensor([[1], [2]])
    got = wrapper.generate(prompt, 6, seed=1, positions=positions, num_return_sequences=2)
    both = prompt.repeat_interleave(2, 0), positions.repeat_interleave(2, 0)
    assert torch.equal(got, wrapper.generate(both[0], 6, seed=1, positions=both[1]))


@pytest.mark.parametrize("scheme", ["rope", "alibi", "forgetting"])
@pytest.mark.parametrize("cache_kv", [True, False])
def test_log_probs_are_those_of_a_full_pass(scheme: str, cache_kv: bool) -> None:
    wrapper, prompts = wrap(scheme), ragged(3, 6)
    options = {"temperature": 0.7, "filter_logits_fn": "top_p", "repetition_penalty": 1.2, "cache_kv": cache_kv}
    tokens, log_probs = wrapper.generate(
        prompts, 7, EOS, seed=2, num_return_sequences=2, return_log_probs=True, **options
    )
    assert torch.equal(tokens, wrapper.generate(prompts, 7, EOS, seed=2, num_return_sequences=2, **options))
    repeated = [prompt for prompt in prompts for _ in range(2)]
    want = torch.stack([scored(wrapper.net, prompt, row) for prompt, row in zip(repeated, tokens, strict=True)])
    equal(log_probs, want)
    assert (log_probs == 0).any(), "no row ended, so padding is not tested"


def test_log_probs_of_forced_tokens_and_of_one_prompt() -> None:
    """What the filters and processors make of the logits does not matter."""
    wrapper, prompt, answer = wrap(), ids(5), ids(1, 6, seed=9)
    tokens, log_probs, cache = wrapper.generate(
        prompt, 6, filter_logits_fn=Script(answer), return_log_probs=True, return_cache=True
    )
    assert torch.equal(tokens, answer[0])
    equal(log_probs, full_pass(wrapper.net, prompt, answer[0]).log_softmax(-1).gather(1, answer[0, :, None])[:, 0])
    assert cache.span == 11
    none = wrapper.generate(prompt, 0, return_log_probs=True)[1]
    assert none.shape == (0,)
    assert none.dtype == torch.float64


def test_log_probs_in_half_precision_are_float32() -> None:
    wrapper = AutoregressiveWrapper(language_model().bfloat16())
    _, log_probs = wrapper.generate(ids(2, 5), 3, return_log_probs=True)
    assert log_probs.dtype == torch.float32
    assert (log_probs < 0).all()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_log_probs_of_speculation(temperature: float) -> None:
    wrapper, prompt = wrap(), torch.tensor([1, 2, 3, 1, 2, 3, 1, 2])
    for how in (PromptLookup(tokens=3), DraftModel(language_model(seed=0), tokens=3)):
        for eos in (None, EOS):
            options = {"temperature": temperature, "seed": 3, "speculate": how}
            tokens, log_probs = wrapper.generate(prompt, 12, eos, return_log_probs=True, **options)
            row = full_pass(wrapper.net, prompt, tokens).log_softmax(-1).gather(1, tokens[:, None])[:, 0]
            equal(log_probs, row)
    assert how.report.accepted > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return_sequences": 0}, "num_return_sequences=0 must be an integer of at least 1"),
        (
            {"num_return_sequences": 2, "temperature": 0.0},
            "num_return_sequences=2 with temperature=0 would return equal",
        ),
        ({"num_return_sequences": 2, "speculate": PromptLookup()}, "there are 2 rows"),
        ({"return_log_probs": 1}, "return_log_probs=1 must be a bool"),
        ({"num_return_sequences": math.inf}, "num_return_sequences=inf must be an integer"),
    ],
)
def test_what_is_refused(options: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        wrap().generate(ids(4), 4, **options)
