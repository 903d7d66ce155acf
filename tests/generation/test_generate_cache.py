"""Caches that outlive a call: continuing from them, beyond max_seq_len, and what is rejected before any computation."""

import pytest
import torch
from torch import Tensor

from tests.support.draws import in_turns
from tests.support.generation_models import (
    GREEDY,
    SCHEMES,
    UNLIMITED,
    Script,
    equal,
    full_pass,
    ids,
    language_model,
    ragged,
)
from x_positional import AutoregressiveWrapper
from x_positional.errors import CacheError, InputError, PositionError

EOS, PAD = 28, 5


def wrap(scheme: str = "rope", **flags) -> AutoregressiveWrapper:
    return AutoregressiveWrapper(language_model(scheme, **flags), pad_value=PAD)


def rows_of(*batches) -> list[tuple[Tensor, ...]]:
    return list(zip(*batches, strict=True))


def without_eos(batch: int, length: int, seed: int) -> Tensor:
    return ids(batch, length, seed=seed).clamp(max=EOS - 1)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_going_on_from_a_cache_equals_one_pass_over_everything(scheme: str) -> None:
    wrapper = wrap(scheme)
    prompt, first, new, second, third = (ids(2, n, seed=n) for n in (5, 4, 3, 6, 7))
    _, cache = wrapper.generate(prompt, 4, filter_logits_fn=Script(first), return_cache=True)
    turn, onward = Script(second), Script(third)
    wrapper.generate(new, 6, filter_logits_fn=turn, cache=cache)  # with new tokens
    wrapper.generate(None, 7, filter_logits_fn=onward, cache=cache)  # with none
    said = rows_of(prompt, first, new, second, third)
    equal(turn.logits, torch.stack([full_pass(wrapper.net, *row[:4]) for row in said]))
    equal(onward.logits, torch.stack([full_pass(wrapper.net, *row) for row in said]))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_going_on_with_ragged_prompts_after_some_rows_ended(scheme: str) -> None:
    wrapper = wrap(scheme)
    prompts, answers = ragged(2, 6, 3), without_eos(3, 7, seed=3)
    answers[0, 2], answers[2, 5] = EOS, EOS
    got, cache = wrapper.generate(prompts, 7, EOS, filter_logits_fn=Script(answers), return_cache=True)
    kept = [answers[0, :3], answers[1], answers[2, :6]]
    assert [row.tolist()[: len(k)] for row, k in zip(got, kept, strict=True)] == [k.tolist() for k in kept]
    assert got[0, 3:].tolist() == [PAD] * 4
    turns, replies = ragged(4, 1, 5, seed=20), without_eos(3, 6, seed=4)
    reply = Script(replies)
    wrapper.generate(turns, 6, EOS, filter_logits_fn=reply, cache=cache)
    onward = Script(ids(3, 3, seed=5))
    wrapper.generate(None, 3, filter_logits_fn=onward, cache=cache)
    said = rows_of(prompts, kept, turns, replies, onward.tokens)
    equal(reply.logits, torch.stack([full_pass(wrapper.net, *row[:4]) for row in said]))
    equal(onward.logits, torch.stack([full_pass(wrapper.net, *row) for row in said]))


def test_a_row_that_ended_goes_on_after_its_eos() -> None:
    wrapper = wrap()
    prompts, answers = ids(2, 5), without_eos(2, 6, seed=3)
    answers[0, 1] = EOS
    _, cache = wrapper.generate(prompts, 6, EOS, filter_logits_fn=Script(answers), return_cache=True)
    onward = Script(ids(2, 4, seed=5))
    wrapper.generate(None, 4, filter_logits_fn=onward, cache=cache)
    kept = [answers[0, :2], answers[1]]
    equal(onward.logits, torch.stack([full_pass(wrapper.net, *row) for row in rows_of(prompts, kept, onward.tokens)]))


@pytest.mark.parametrize("taken", [1, 3, 5])
def test_a_stream_leaves_in_the_cache_what_it_handed_out(taken: int) -> None:
    wrapper = wrap()
    prompts, script = ids(2, 5), ids(2, 5, seed=3)
    cache = wrapper.net.new_cache(2)
    wrapper.train()
    stream = wrapper.stream(prompts, 5, filter_logits_fn=Script(script), cache=cache)
    for _ in range(taken):
        next(stream)
    wrapper.train()
    stream.close()
    assert cache.span == 5 + taken
    onward = Script(ids(2, 4, seed=6))
    wrapper.generate(None, 4, filter_logits_fn=onward, cache=cache)
    said = rows_of(prompts, script[:, :taken], onward.tokens)
    equal(onward.logits, torch.stack([full_pass(wrapper.net.eval(), *row) for row in said]))


def test_a_cache_goes_on_for_chosen_rows() -> None:
    wrapper = wrap("alibi")
    prompts, script = ids(3, 5), ids(3, 4, seed=3)
    _, cache = wrapper.generate(prompts, 4, filter_logits_fn=Script(script), return_cache=True)
    cache.reorder(torch.tensor([2, 0]))
    onward = Script(ids(2, 4, seed=5))
    wrapper.generate(None, 4, filter_logits_fn=onward, cache=cache)
    said = rows_of(prompts[[2, 0]], script[[2, 0]], onward.tokens)
    equal(onward.logits, torch.stack([full_pass(wrapper.net, *row) for row in said]))


@pytest.mark.parametrize(("scheme", "restrict", "cache_kv"), in_turns(UNLIMITED, [True, False], [True, False]))
def test_past_max_seq_len(scheme: str, restrict: bool, cache_kv: bool) -> None:
    wrapper, limit = wrap(scheme, max_seq_len=8), 8
    prompts, script = ragged(3, 11, 6), ids(3, 15, seed=3)
    forced = Script(script)
    wrapper.generate(prompts, 15, filter_logits_fn=forced, restrict_to_max_seq_len=restrict, cache_kv=cache_kv)
    whole = torch.stack([full_pass(wrapper.net, *row) for row in rows_of(prompts, script)])
    windowed = torch.stack([full_pass(wrapper.net, *row, window=limit) for row in rows_of(prompts, script)])
    assert (whole - windowed).abs().max() > 1e-3
    equal(forced.logits, windowed if restrict else whole)


@pytest.mark.parametrize("scheme", UNLIMITED)
def test_going_on_from_a_cache_past_max_seq_len(scheme: str) -> None:
    wrapper = wrap(scheme, max_seq_len=8)
    prompts, script, more = ragged(2, 5), ids(2, 3, seed=3), ids(2, 9, seed=4)
    _, cache = wrapper.generate(prompts, 3, filter_logits_fn=Script(script), return_cache=True)  # not past it yet
    onward = Script(more)
    wrapper.generate(None, 9, filter_logits_fn=onward, cache=cache)
    equal(onward.logits, torch.stack([full_pass(wrapper.net, *r, window=8) for r in rows_of(prompts, script, more)]))


def test_a_models_own_window_stays_when_max_seq_len_is_passed() -> None:
    wrapper = wrap("rope", max_seq_len=8, window=5)
    prompt, script = ids(2, 6), ids(2, 9, seed=3)
    forced = Script(script)
    wrapper.generate(prompt, 9, filter_logits_fn=forced)
    equal(forced.logits, torch.stack([full_pass(wrapper.net, *row) for row in rows_of(prompt, script)]))


@pytest.mark.parametrize("restrict", [True, False])
def test_a_table_refuses_to_be_passed_and_serves_up_to_its_last_row(restrict: bool) -> None:
    wrapper = wrap("absolute", max_seq_len=9)
    calls = []
    wrapper.net.register_forward_pre_hook(lambda module, args: calls.append(1))
    with pytest.raises(InputError, match=r"max_seq_len=9.*Generate fewer tokens, or use a scheme without a table"):
        wrapper.generate(ids(2, 5), 6, restrict_to_max_seq_len=restrict)
    with pytest.raises(InputError, match="10 tokens"):
        wrapper.generate(ids(2, 5), 5, restrict_to_max_seq_len=restrict, return_cache=True)
    assert not calls
    wrapper.generate(ids(2, 5), 5, restrict_to_max_seq_len=restrict)  # the tenth token is drawn and never fed
    _, cache = wrapper.generate(ids(2, 5), 4, restrict_to_max_seq_len=restrict, return_cache=True)
    with pytest.raises(InputError, match="positions end at 9"):
        wrapper.generate(ids(2, 1), 1, restrict_to_max_seq_len=restrict, cache=cache)


def test_xpos_refuses_to_leave_its_range() -> None:
    wrapper = AutoregressiveWrapper(language_model({"kind": "xpos", "scale_base": 1.0}, max_seq_len=20))
    limit = wrapper.net.attn_layers.position_schemes[0].limit
    assert limit is not None
    with pytest.raises(InputError, match=f"positions end at {limit}"):
        wrapper.generate(ids(1, 5), limit, restrict_to_max_seq_len=False)


def test_caches_of_ones_own_static_sliding_and_of_another_dtype() -> None:
    wrapper = wrap()
    net = wrapper.net
    prompts, script = ragged(4, 7), ids(2, 6, seed=3)
    expected = torch.stack([full_pass(net, *row) for row in rows_of(prompts, script)])
    for dtype, bound in ((None, 1e-9), (torch.float32, 1e-5), (torch.bfloat16, 0.2)):
        cache, forced = net.new_cache(2, max_len=13, dtype=dtype), Script(script)
        wrapper.generate(prompts, 6, filter_logits_fn=forced, cache=cache)
        assert cache.state.layers[0][0].dtype == (dtype or torch.float64)
        equal(forced.logits, expected, bound)
        difference = (forced.logits - expected).abs().max()
        assert dtype is None or difference > bound / 1e4  # the cache is really that coarse
    sliding, forced = net.new_cache(2, window=5), Script(script)
    wrapper.generate(prompts, 6, filter_logits_fn=forced, cache=sliding)
    equal(forced.logits, torch.stack([full_pass(net, *row, window=5) for row in rows_of(prompts, script)]))


def test_what_a_cache_cannot_do_is_said_before_anything_is_computed() -> None:
    wrapper, calls = wrap(max_seq_len=16), []
    net = wrapper.net
    _, used = wrapper.generate(ids(2, 4), 3, return_cache=True)
    net(ids(2, 1), cache=used)
    net.register_forward_pre_hook(lambda module, args: calls.append(1))
    with pytest.raises(CacheError, match=r"max_len=9.*a row comes to 10"):
        wrapper.generate(ids(2, 4), 6, cache=net.new_cache(2, max_len=9))
    with pytest.raises(InputError, match=r"beyond max_seq_len=16.*window=16.*restrict_to_max_seq_len=False"):
        wrapper.generate(ids(2, 4), 13, cache=net.new_cache(2))
    with pytest.raises(InputError, match="came from elsewhere"):
        wrapper.generate(None, 3, cache=used)
    with pytest.raises(InputError, match="this cache is empty"):
        wrapper.generate(None, 3, cache=net.new_cache(2))
    with pytest.raises(InputError, match=r"none was given.*cache="):
        wrapper.generate(None, 3)
    for options in ({"return_cache": True}, {"cache": net.new_cache(2)}):
        with pytest.raises(InputError, match="need cache_kv=True"):
            wrapper.generate(ids(2, 4), 3, cache_kv=False, **options)
    assert not calls
    with pytest.raises(CacheError, match="has batch_size=3, but the input has 2 rows"):
        wrapper.generate(ids(2, 4), 3, cache=net.new_cache(3))
    with pytest.raises(CacheError, match="made for another model"):
        wrapper.generate(ids(2, 4), 3, cache=language_model().new_cache(2))


def test_a_growing_cache_passes_max_seq_len_when_told_to_keep_everything() -> None:
    wrapper = wrap("t5", max_seq_len=16)
    cache, forced = wrapper.net.new_cache(2), Script(ids(2, 20, seed=3))
    prompts = ids(2, 4)
    wrapper.generate(prompts, 20, filter_logits_fn=forced, cache=cache, restrict_to_max_seq_len=False)
    equal(forced.logits, torch.stack([full_pass(wrapper.net, *row) for row in rows_of(prompts, forced.tokens)]))


def test_a_learned_table_says_so_when_the_model_itself_is_asked_for_too_much() -> None:
    net = language_model("absolute", max_seq_len=9)
    with pytest.raises(PositionError, match=r"position 9 is out of range.*9 rows.*larger max_seq_len"):
        net(ids(1, 10))
    greedy = AutoregressiveWrapper(net).generate(ids(1, 5), 5, **GREEDY)
    assert greedy.shape == (1, 5)
