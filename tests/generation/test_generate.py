"""What generate returns: rows equal to each alone, eos, reproducible draws, filters, and all forms of prompts."""

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tests.support.generation_models import (
    GREEDY,
    NUM_TOKENS,
    SCHEMES,
    Script,
    equal,
    full_pass,
    ids,
    language_model,
    naive,
    ragged,
    until_end,
)
from x_positional import AutoregressiveWrapper, Decoder, TransformerWrapper
from x_positional.generation.sampling import top_k

STEPS = 9


@pytest.fixture(scope="module")
def wrapper() -> AutoregressiveWrapper:
    return AutoregressiveWrapper(language_model(), pad_value=3)


def count_calls(net: torch.nn.Module) -> list[int]:
    """A list that gets the number of tokens of each call of net."""
    lengths: list[int] = []
    net.register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[1]))
    return lengths


@pytest.mark.parametrize("cache_kv", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_logits_of_ragged_rows_equal_one_pass_over_each_alone(scheme: str, cache_kv: bool) -> None:
    net = language_model(scheme)
    prompts, script = ragged(1, 7, 4), ids(3, STEPS)
    forced = Script(script)
    got = AutoregressiveWrapper(net).generate(prompts, STEPS, filter_logits_fn=forced, cache_kv=cache_kv)
    assert torch.equal(got, script)
    equal(forced.logits, torch.stack([full_pass(net, *row) for row in zip(prompts, script, strict=True)]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_greedy_rows_equal_each_alone_and_uncached(scheme: str) -> None:
    net = language_model(scheme)
    wrapper, prompts = AutoregressiveWrapper(net), ragged(1, 7, 4)
    options = {"repetition_penalty": 1.5, **GREEDY}  # without a penalty, random models fall into short loops
    expected = torch.stack([naive(net, prompt, STEPS, penalty=1.5) for prompt in prompts])
    assert len({tuple(row) for row in expected.tolist()}) == 3
    assert torch.equal(wrapper.generate(prompts, STEPS, **options), expected)
    assert torch.equal(wrapper.generate(prompts, STEPS, cache_kv=False, **options), expected)
    for prompt, row in zip(prompts, expected, strict=True):
        assert torch.equal(wrapper.generate(prompt, STEPS, **options), row)


@pytest.mark.parametrize("cache_kv", [True, False])
@pytest.mark.parametrize("padding", [0, 17])
def test_prompt_lens_hide_whatever_pads_the_prompts(wrapper, padding: int, cache_kv: bool) -> None:
    prompts = ragged(6, 2, 5)
    padded = pad_sequence(prompts, batch_first=True, padding_value=padding)
    lengths = torch.tensor([6, 2, 5])
    got = wrapper.generate(padded, STEPS, prompt_lens=lengths, cache_kv=cache_kv, **GREEDY)
    assert torch.equal(got, torch.stack([naive(wrapper.net, p, STEPS) for p in prompts]))
    assert not torch.equal(got, wrapper.generate(padded, STEPS, **GREEDY))


def test_prompts_of_every_form(wrapper) -> None:
    prompt = ids(5)
    expected = naive(wrapper.net, prompt, STEPS)
    assert torch.equal(wrapper.generate(prompt, STEPS, **GREEDY), expected)
    assert torch.equal(wrapper.generate(prompt[None], STEPS, **GREEDY), expected[None])
    assert torch.equal(wrapper.generate([prompt], STEPS, **GREEDY), expected[None])
    assert torch.equal(wrapper.generate([prompt.tolist()], STEPS, **GREEDY), expected[None])
    for dtype in (torch.uint8, torch.int16, torch.int32):
        assert torch.equal(wrapper.generate(prompt.to(dtype), STEPS, repetition_penalty=1.0, **GREEDY), expected)
        assert wrapper.generate(prompt.to(dtype), 2, repetition_penalty=1.3).dtype == torch.int64


@pytest.mark.parametrize("cache_kv", [True, False])
def test_no_and_one_new_token(wrapper, cache_kv: bool) -> None:
    prompts = ids(2, 5)
    assert wrapper.generate(prompts, 0, cache_kv=cache_kv).shape == (2, 0)
    assert wrapper.generate(prompts[0], 0, cache_kv=cache_kv).shape == (0,)
    expected = torch.stack([naive(wrapper.net, p, 1) for p in prompts])
    assert torch.equal(wrapper.generate(prompts, 1, cache_kv=cache_kv, **GREEDY), expected)


@pytest.mark.parametrize("cache_kv", [True, False])
@pytest.mark.parametrize("several", [False, True])
def test_rows_are_left_alone_after_their_eos_and_decoding_stops(wrapper, several: bool, cache_kv: bool) -> None:
    prompts = ragged(4, 6, 3)
    free = wrapper.generate(prompts, 30, **GREEDY)
    eos = (int(free[0, 2]), int(free[1, 5])) if several else (int(free[0, 4]),)
    rows = [until_end(row, eos) for row in free]
    longest = max(map(len, rows))
    assert min(map(len, rows)) < longest
    expected = torch.full((3, longest), wrapper.pad_value)
    for row, tokens in zip(expected, rows, strict=True):
        row[: len(tokens)] = tokens
    given = list(eos) if several else eos[0]
    assert torch.equal(wrapper.generate(prompts, 30, given, cache_kv=cache_kv, **GREEDY), expected)


@pytest.mark.parametrize("keep", [False, True])
def test_no_model_call_after_all_rows_ended(keep: bool) -> None:
    wrapper = AutoregressiveWrapper(language_model())
    free = wrapper.generate(ids(1, 4), 20, **GREEDY)[0]
    eos = int(free[6])
    ends = len(until_end(free, (eos,)))
    calls = count_calls(wrapper.net)
    new = wrapper.generate(ids(1, 4), 20, eos, return_cache=keep, **GREEDY)
    assert (new[0] if keep else new).shape == (1, ends)
    assert calls == [4] + [1] * (ends - 1 + keep)  # a returned cache contains the eos too


def test_every_new_token_is_read_once_and_the_last_one_never() -> None:
    wrapper = AutoregressiveWrapper(language_model())
    calls = count_calls(wrapper.net)
    wrapper.generate(ragged(4, 2), 6)
    assert calls == [4, 1, 1, 1, 1, 1]


def test_a_seed_repeats_the_draw_and_a_generator_goes_on(wrapper) -> None:
    prompts = ids(2, 5)
    draw = partial(wrapper.generate, prompts, 20, temperature=1.3)
    first = draw(seed=5)
    assert torch.equal(first, draw(seed=5))
    assert not torch.equal(first, draw(seed=6))
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(first, draw(generator=generator))
    assert not torch.equal(first, draw(generator=generator))
    before = torch.get_rng_state()
    draw(seed=5)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.0},
        {"seed": 3},
        {"seed": 3, "cache_kv": False, "repetition_penalty": 1.5},
        {"seed": 3, "eos_token": [1, 2, 3, 4], "filter_logits_fn": ["top_p", "min_p"]},
    ],
)
def test_a_stream_gives_the_tokens_of_generate(wrapper, options: dict) -> None:
    prompts = ragged(3, 5)
    streamed = list(wrapper.stream(prompts, 12, **options))
    assert all(token.shape == (2,) for token in streamed)
    assert torch.equal(torch.stack(streamed, 1), wrapper.generate(prompts, 12, **options))


def test_filters_by_name_function_and_list(wrapper) -> None:
    prompts, greedy = ids(3, 5), wrapper.generate(ids(3, 5), STEPS, **GREEDY)
    likeliest: list[dict] = [
        {"filter_kwargs": {"k": 1}},
        {"filter_logits_fn": "top_p", "filter_kwargs": {"thres": 0.0}},
        {"filter_logits_fn": partial(top_k, k=1)},
        {"filter_logits_fn": ["min_p", "top_k"], "filter_kwargs": {"top_k": {"k": 1}}},
        {"filter_logits_fn": ["top_k", "typical"], "filter_kwargs": [{"k": 1}, None]},
        {"filter_logits_fn": ["top_a", "min_p"], "filter_kwargs": [None, {"min_p": 1.0}]},
    ]
    for options in likeliest:
        assert torch.equal(wrapper.generate(prompts, STEPS, seed=1, **options), greedy), options
    free = wrapper.generate(prompts, 40, seed=1, filter_logits_fn=None, temperature=3.0)
    assert free.unique().numel() > NUM_TOKENS * 0.8


def test_a_filter_of_ones_own_sees_logits_of_every_step(wrapper) -> None:
    shapes = []

    def only_even(logits: Tensor) -> Tensor:
        shapes.append(tuple(logits.shape))
        odd = torch.arange(logits.shape[-1]) % 2 == 1
        return logits.masked_fill(odd, float("-inf"))

    new = wrapper.generate(ids(2, 5), 25, seed=1, filter_logits_fn=only_even, temperature=2.0)
    assert (new % 2 == 0).all()
    assert shapes == [(2, NUM_TOKENS)] * 25


def test_the_default_filter_keeps_a_tenth_of_the_tokens(wrapper) -> None:
    prompt = ids(1, 5)
    with torch.no_grad():
        likeliest = wrapper.net(prompt)[0, -1].topk(3).indices.tolist()
    drawn = {int(wrapper.generate(prompt, 1, seed=seed, temperature=5.0)) for seed in range(60)}
    assert drawn == set(likeliest)


@pytest.mark.parametrize("cache_kv", [True, False])
def test_repetition_penalty_counts_prompt_and_new_tokens_of_each_row(wrapper, cache_kv: bool) -> None:
    prompts = ragged(5, 2)
    got = wrapper.generate(prompts, 15, repetition_penalty=1.8, cache_kv=cache_kv, **GREEDY)
    expected = torch.stack([naive(wrapper.net, p, 15, penalty=1.8) for p in prompts])
    assert torch.equal(got, expected)
    assert not torch.equal(got, wrapper.generate(prompts, 15, **GREEDY))


def test_float32_and_bfloat16_models_decode_as_without_a_cache() -> None:
    for dtype, agreeing in ((torch.float32, 1.0), (torch.bfloat16, 0.8)):
        wrapper = AutoregressiveWrapper(language_model().to(dtype))
        prompts = ragged(3, 8, 5)
        first_steps = wrapper.generate(prompts, 6, **GREEDY)
        uncached = wrapper.generate(prompts, 6, cache_kv=False, **GREEDY)
        assert (first_steps == uncached).double().mean() >= agreeing, dtype
        _, cache = wrapper.generate(prompts, 2, return_cache=True)
        assert {t.dtype for layer in cache.state.layers for t in layer if t is not None} == {dtype}


@pytest.fixture
def dropping() -> AutoregressiveWrapper:
    """In training mode, with dropout everywhere and one block in eval mode."""
    layers = Decoder(dim=26, depth=2, heads=2, attn_dim_head=10, position="rope", attn_dropout=0.4, ff_dropout=0.4)
    wrapper = AutoregressiveWrapper(TransformerWrapper(num_tokens=NUM_TOKENS, max_seq_len=48, attn_layers=layers))
    wrapper.train()
    wrapper.net.attn_layers.blocks[1].eval()
    return wrapper


def modes(module: torch.nn.Module) -> list[bool]:
    return [part.training for part in module.modules()]


def test_the_mode_of_every_part_stays(dropping) -> None:
    before = modes(dropping)
    assert 0 < sum(before) < len(before)
    first = dropping.generate(ids(2, 4), STEPS, **GREEDY)
    assert torch.equal(first, dropping.generate(ids(2, 4), STEPS, **GREEDY))  # dropout was off
    assert modes(dropping) == before

    def broken(logits: Tensor) -> Tensor:
        raise RuntimeError("from the filter")

    with pytest.raises(RuntimeError, match="from the filter"):
        dropping.generate(ids(2, 4), STEPS, filter_logits_fn=broken)
    assert modes(dropping) == before
    stream = dropping.stream(ids(2, 4), STEPS)
    assert modes(dropping) == before  # nothing runs before the first token is asked for
    next(stream)
    assert modes(dropping) == before
    stream.close()
    assert modes(dropping) == before
    for _ in dropping.stream(ids(2, 4), STEPS):
        break
    assert modes(dropping) == before


def test_training_between_two_tokens_of_a_stream_does_not_drop_out(dropping) -> None:
    expected = dropping.generate(ids(2, 4), STEPS, **GREEDY)
    streamed = []
    for token in dropping.stream(ids(2, 4), STEPS, **GREEDY):
        streamed.append(token)
        dropping.train()
    assert torch.equal(torch.stack(streamed, 1), expected)


def test_gradients_stay_on_for_the_caller_of_a_stream(wrapper) -> None:
    for token in wrapper.stream(ids(2, 4), 3):
        assert torch.is_grad_enabled()
        assert not token.requires_grad
    assert not wrapper.generate(ids(2, 4), 3).requires_grad
