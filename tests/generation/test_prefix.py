"""A prefix that is read once: every call that continues a copy of its cache equals reading the prefix in each row."""

import pytest
import torch
from torch import Tensor

from tests.support.generation_models import GREEDY, SCHEMES, Script, equal, full_pass, ids, language_model, ragged
from tests.support.length_scalings import dynamic
from x_positional import AutoregressiveWrapper
from x_positional.attention.cache import KVCache
from x_positional.errors import ArgumentError, CacheError, InputError, PositionError


def wrap(scheme="rope", **flags) -> AutoregressiveWrapper:
    return AutoregressiveWrapper(language_model(scheme, **flags))


def forced(wrapper: AutoregressiveWrapper, prompts, script: Tensor, **options) -> Tensor:
    seen = Script(script)
    wrapper.generate(prompts, script.shape[1], filter_logits_fn=seen, **options)
    return seen.logits


def continued(wrapper: AutoregressiveWrapper, prefix: Tensor, prompts, script: Tensor, window: int | None = None):
    """The logits of full passes over prefix, prompt and script of each row."""
    rows = zip(prompts, script, strict=True)
    return torch.stack([full_pass(wrapper.net, prefix, *row, window=window) for row in rows])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_batch_continues_a_prefix_that_was_read_once(scheme: str) -> None:
    wrapper, common, prompts, script = wrap(scheme), ids(9), ragged(4, 1, 6), ids(3, 5, seed=5)
    prefix = wrapper.prefill(common, prefill_chunk_size=4)
    assert (prefix.batch_size, prefix.span) == (1, 9)
    read = []
    wrapper.net.register_forward_pre_hook(lambda _, args: read.append(args[0].numel()))
    got = forced(wrapper, prompts, script, cache=prefix.copy().repeat(3))
    assert read == [3 * 6] + [3] * 5  # the prompts and the new tokens, not the prefix
    equal(got, continued(wrapper, common, prompts, script))


@pytest.mark.parametrize("window", [None, 6])
def test_copies_and_their_prefix_do_not_disturb_each_other(window: int | None) -> None:
    wrapper, common = wrap(window=window, max_seq_len=64), ids(9)
    prefix = wrapper.prefill(common)
    twin, rows = prefix.copy(), prefix.copy().repeat(2)
    turns = [(ragged(7, 3, seed=4), ids(2, 5, seed=5), rows), (ids(1, 8, seed=6), ids(1, 5, seed=7), twin)]
    turns += [
        (ids(1, 2, seed=8), ids(1, 9, seed=9), prefix.copy().repeat(1)),
        (ids(1, 5, seed=3), ids(1, 9, seed=2), prefix),
    ]
    streams, scripts = [], []
    for prompts, script, cache in turns:
        scripts.append(Script(script))
        streams.append(wrapper.stream(prompts, script.shape[1], filter_logits_fn=scripts[-1], cache=cache))
    while streams:  # a token of each in turn
        streams = [stream for stream in streams if next(stream, None) is not None]
    for seen, (prompts, script, _) in zip(scripts, turns, strict=True):
        equal(seen.logits, continued(wrapper, common, prompts, script))


def test_samples_of_one_prompt() -> None:
    wrapper, prompt = wrap("alibi"), ids(9)
    prefix = wrapper.prefill(prompt)
    for options in (GREEDY, {"seed": 4}):
        want = wrapper.generate(prompt.expand(4, -1), 8, **options)
        assert torch.equal(wrapper.generate(None, 8, cache=prefix.copy().repeat(4), **options), want)
        assert torch.equal(
            wrapper.generate(None, 8, cache=prefix.copy(), **GREEDY)[0], wrapper.generate(prompt, 8, **GREEDY)
        )


def test_several_prefixes_in_one_cache() -> None:
    wrapper, commons, prompts, script = wrap("t5"), ragged(9, 4), ragged(2, 5, 3, seed=8), ids(3, 4, seed=5)
    cache = wrapper.prefill(commons).copy()
    cache.reorder([1, 0, 1])
    rows = zip([commons[1], commons[0], commons[1]], prompts, script, strict=True)
    equal(forced(wrapper, prompts, script, cache=cache), torch.stack([full_pass(wrapper.net, *row) for row in rows]))


def test_a_prefix_continues_past_max_seq_len_as_generate_does() -> None:
    wrapper, common, prompts, script = wrap(max_seq_len=8), ids(11), ragged(2, 3), ids(2, 4, seed=5)
    got = forced(wrapper, prompts, script, cache=wrapper.prefill(common).copy().repeat(2))
    equal(got, continued(wrapper, common, prompts, script, window=8))
    whole = wrapper.prefill(common, cache=wrapper.net.new_cache(1)).copy().repeat(2)
    got = forced(wrapper, prompts, script, cache=whole, restrict_to_max_seq_len=False)
    equal(got, continued(wrapper, common, prompts, script))


def test_positions_and_context_go_into_the_prefix() -> None:
    wrapper, common, prompts, script = wrap(cross_attend=True), ids(5), ragged(2, 4), ids(2, 4, seed=5)
    context = torch.randn(1, 6, 26, generator=torch.Generator().manual_seed(0)).double()
    options = {"context": context, "context_mask": torch.arange(6)[None] < 4}
    prefix = wrapper.prefill(common, positions=2 * torch.arange(5)[None], **options)
    got = forced(wrapper, prompts, script, cache=prefix.copy().repeat(2))
    for row, prompt in enumerate(prompts):
        tokens = torch.cat([common, prompt, script[row]])[None]
        places = torch.cat([2 * torch.arange(5), 9 + torch.arange(tokens.shape[1] - 5)])[None]
        with torch.no_grad():
            equal(got[row], wrapper.net(tokens, positions=places, **options)[0, -5:-1])


def test_frequencies_of_the_length_follow_the_rules_of_caches() -> None:
    recompute, fixed = (
        wrap({"kind": "rope", "scaling": scaling}, max_seq_len=20)
        for scaling in (dynamic(length_policy="recompute"), dynamic())
    )
    with pytest.raises(PositionError, match="changes the keys of earlier tokens"):
        recompute.prefill(ids(5))
    common, prompts, script = ids(5), ragged(2, 4), ids(2, 4, seed=5)
    for cache, length in ((None, 20), (fixed.net.new_cache(1, final_lengths=torch.tensor([13])), 13)):
        named = wrap({"kind": "rope", "scaling": dynamic(length=length)}, max_seq_len=20)
        got = forced(fixed, prompts, script, cache=fixed.prefill(common, cache=cache).copy().repeat(2))
        equal(got, continued(named, common, prompts, script))


def test_what_a_failed_call_left_is_not_copied() -> None:
    wrapper, common, prompts, script = wrap(), ids(5), ragged(2, 4), ids(2, 4, seed=5)
    prefix = wrapper.prefill(common)
    broken = wrapper.net.attn_layers.blocks[1].register_forward_hook(lambda *_: torch.tensor(1 / 0))
    with pytest.raises(ZeroDivisionError):
        wrapper.net(ids(1, 3), cache=prefix)
    broken.remove()
    for layer in prefix.state.layers:
        for stored in layer[:2]:
            stored[:, :, 5:] = float("nan")
    equal(forced(wrapper, prompts, script, cache=prefix.copy().repeat(2)), continued(wrapper, common, prompts, script))


def test_what_cannot_be_repeated_or_read_is_refused() -> None:
    wrapper = wrap()
    cache = wrapper.prefill(ragged(2, 4, 3))
    assert cache.copy().repeat(3).batch_size == 9
    with pytest.raises(CacheError, match="batch_size=3, but the input has 2 rows"):
        wrapper.generate(ids(2, 2), 2, cache=cache)
    for count in (0, -1, 1.5, True):
        with pytest.raises(ArgumentError, match=r"n=.* must be an integer of at least 1"):
            cache.repeat(count)
    with pytest.raises(InputError, match="prompts=None continues from a cache"):
        wrapper.prefill(None)
    with pytest.raises(CacheError, match="made for another model"):
        wrapper.prefill(ids(3), cache=language_model().new_cache(1))
    with pytest.raises(CacheError, match="made for another model"):
        wrap("rope").generate(ids(3, 2), 2, cache=wrapper.prefill(ids(3)).copy().repeat(3))
    assert isinstance(wrapper.prefill(ids(3), cache=wrapper.net.new_cache(1, max_len=4)), KVCache)
    with pytest.raises(CacheError, match="max_len=2"):
        wrapper.prefill(ids(3), cache=wrapper.net.new_cache(1, max_len=2))
