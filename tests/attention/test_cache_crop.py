"""crop: a cache keeps the first tokens of its rows, and continues as if the others had never been read."""

import pytest
import torch
from torch import Tensor

from tests.support.generation_models import SCHEMES, equal, ids, language_model
from x_positional.attention.cache import KVCache
from x_positional.errors import ArgumentError, CacheError

RIGHT = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])


def plain(net, rows: list[Tensor], more: Tensor, **options) -> Tensor:
    """The logits of `more` [B N], each row read alone after its own tokens."""
    return torch.cat(
        [net(torch.cat([row, new])[None], **options)[:, -len(new) :] for row, new in zip(rows, more, strict=True)]
    )


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_a_cropped_cache_continues_as_if_the_tokens_had_not_been_read(scheme: str) -> None:
    net, kept, wrong, right = language_model(scheme), ids(2, 7), ids(2, 5, seed=3), ids(2, 6, seed=4)
    for mask in (torch.ones_like(RIGHT), RIGHT):
        cache = net.new_cache(2)
        net(kept, mask=mask, cache=cache)
        for count in (5, 3, 1):
            net(wrong[:, :count], cache=cache)
            assert cache.crop(-count) is cache
        net(right[:, :2], cache=cache)
        net(wrong[:, :3], cache=cache)
        cache.crop(mask.sum(1) + 2)
        rows = [torch.cat([row[:n], new]) for row, new, n in zip(kept, right[:, :2], mask.sum(1).tolist(), strict=True)]
        twin = cache.copy().crop(5)  # the shorter row has 6 tokens or 9, so both lose some
        equal(net(right[:, 2:], cache=cache), plain(net, rows, right[:, 2:]))
        equal(net(right[:, 2:], cache=twin), plain(net, [row[:5] for row in rows], right[:, 2:]))


@pytest.mark.parametrize("lengths", [[0, 3, 9], [9, 9, 8], [0, 0, 1], [4, 4, 4], [0, 0, 0], 0, 9, 4, -9, -2])
@pytest.mark.parametrize("kind", ["growing", "static", "int8", "window"])
@torch.no_grad()
def test_each_row_keeps_its_own_length(lengths: list[int] | int, kind: str) -> None:
    net, tokens, more = language_model("rope"), ids(3, 9), ids(3, 4, seed=2)
    options = {"static": {"max_len": 13}, "int8": {"dtype": torch.int8}, "window": {"window": 10}}.get(kind, {})
    cache = net.new_cache(3, **options)
    net(tokens, cache=cache)
    cache.crop(torch.tensor(lengths))
    left = [lengths % 10 if lengths >= 0 else 9 + lengths] * 3 if isinstance(lengths, int) else lengths
    assert cache.longest() == max(left)
    alone = []
    for row, new, length in zip(tokens, more, left, strict=True):
        single = net.new_cache(1, **options)
        if length:
            net(row[None, :length], cache=single)
        alone.append(net(new[None], cache=single))
    equal(net(more, cache=cache), torch.cat(alone))


@torch.no_grad()
def test_positions_continue_after_the_largest_that_is_left() -> None:
    """Positions were given for the dropped tokens too, in any order."""
    line = 3 * torch.randperm(8, generator=torch.Generator().manual_seed(0))[None]
    grid = torch.randint(0, 20, (1, 8, 2), generator=torch.Generator().manual_seed(1))
    for scheme, positions in (("rope", line), ("alibi", line.expand(2, -1)), ("axial", grid), ("rope", 0.5 + line)):
        net, tokens, right = language_model(scheme), ids(2, 8), ids(2, 3, seed=4)
        places = {} if not positions.is_floating_point() else {"positions": torch.tensor([[30.5, 31, 40]])}
        for length in (0, 1, 3, 5, 7):
            caches = [net.new_cache(2), net.new_cache(2)]
            net(tokens[:, :2], cache=caches[0])
            net(tokens[:, 2:], positions=positions[:, 2:], cache=caches[0])
            caches[0].crop(length)
            if length:
                net(tokens[:, : min(2, length)], cache=caches[1])
            if length > 2:
                net(tokens[:, 2:length], positions=positions[:, 2:length], cache=caches[1])
            equal(net(right, **places, cache=caches[0]), net(right, **places, cache=caches[1]))


@torch.no_grad()
def test_positions_given_to_a_cache_with_tokens_continue_after_the_largest_of_both() -> None:
    net, tokens = language_model("rope"), ids(1, 8)
    cache = net.new_cache(1)
    net(tokens[:, :5], cache=cache)
    net(tokens[:, 5:7], positions=torch.tensor([[0, 1]]), cache=cache)
    want = net(tokens, positions=torch.tensor([[0, 1, 2, 3, 4, 0, 1, 5]]))[:, 7:]
    equal(net(tokens[:, 7:], cache=cache), want)


@torch.no_grad()
def test_rows_keep_their_context_when_a_cache_is_emptied() -> None:
    net, tokens = language_model(cross_attend=True), ids(2, 6)
    context = torch.randn(2, 5, 26, generator=torch.Generator().manual_seed(0)).double()
    cache = net.new_cache(2)
    net(
        ids(2, 4, seed=9),
        context=context,
        context_mask=torch.tensor([[True] * 5, [True] * 2 + [False] * 3]),
        cache=cache,
    )
    cache.crop(0)
    mask = torch.arange(5) < torch.tensor([[5], [2]])
    equal(net(tokens, cache=cache), net(tokens, context=context, context_mask=mask))


@pytest.mark.parametrize("scheme", ["rope", "cope", "forgetting"])
@torch.no_grad()
def test_a_window_that_is_not_full_yet_is_cropped_and_a_full_one_refuses(scheme: str) -> None:
    net, tokens = language_model(scheme, window=6), ids(1, 9)
    cache = net.new_cache(1)
    net(tokens[:, :6], cache=cache)
    cache.crop(-2)
    equal(net(tokens[:, 4:], cache=cache), net(tokens)[:, 4:])
    with pytest.raises(CacheError, match="the 9 tokens of a row exceed a window, whose cache keeps 6"):
        cache.crop(8)
    assert cache.crop(9).span == 9
    equal(net(tokens[:, :2], cache=cache), net(torch.cat([tokens, tokens[:, :2]], 1))[:, 9:])


@torch.no_grad()
def test_only_rows_that_lose_tokens_need_what_a_ring_overwrote() -> None:
    net, tokens, more = language_model(window=6, keep_first=1), ids(2, 9), ids(2, 3, seed=4)
    cache = net.new_cache(2)
    net(tokens, mask=torch.arange(9) < torch.tensor([[9], [5]]), cache=cache)
    with pytest.raises(CacheError, match="the 9 tokens of a row exceed a window"):
        cache.copy().crop([8, 2])
    cache.crop([9, 2])
    equal(net(more, cache=cache), plain(net, [tokens[0], tokens[1, :2]], more))


@torch.no_grad()
def test_rows_are_emptied_after_a_ring_overwrote_their_first_tokens() -> None:
    net, tokens, more = language_model(window=6, keep_first=1), ids(2, 9), ids(2, 8, seed=4)
    for length in (0, [0, 0], [0, 9], [9, 0]):
        cache = net.new_cache(2)
        net(tokens, cache=cache)
        cache.crop(length)
        left = [length] * 2 if isinstance(length, int) else length
        want = plain(net, [row[:n] for row, n in zip(tokens, left, strict=True)], more)
        equal(torch.cat([net(part, cache=cache) for part in more.split(3, 1)], 1), want)


@torch.no_grad()
def test_what_a_failed_step_overwrote_is_not_shown_again() -> None:
    net, tokens = language_model(window=6), ids(1, 7)
    cache = net.new_cache(1)
    net(tokens[:, :6], cache=cache)
    broken = net.attn_layers.blocks[1].register_forward_hook(lambda *_: torch.tensor(1 / 0))
    with pytest.raises(ZeroDivisionError):
        net(tokens[:, 6:], cache=cache)
    broken.remove()
    with pytest.raises(CacheError, match="copy\\(\\) the cache before"):
        cache.crop(5)
    equal(net(tokens[:, 6:], cache=cache), net(tokens)[:, 6:])


@torch.no_grad()
def test_rows_are_repeated_side_by_side() -> None:
    net, tokens, more = language_model("cope", cross_attend=True), ids(2, 5), ids(6, 4, seed=2)
    context = torch.randn(2, 5, 26, generator=torch.Generator().manual_seed(0)).double()
    cache = net.new_cache(2)
    net(tokens, context=context, cache=cache)
    want = {"context": context.repeat_interleave(3, 0)}
    got = net(more, cache=cache.copy().repeat(3))
    equal(got, net(torch.cat([tokens.repeat_interleave(3, 0), more], 1), **want)[:, 5:])
    assert cache.repeat(1) is cache
    assert cache.batch_size == 2
    assert cache.reorder([1, 0]) is cache


def test_a_cache_changed_in_inference_mode_goes_on_outside_of_it() -> None:
    net, tokens = language_model(), ids(2, 8)
    changes = (
        lambda cache: cache.crop([5, 6]),
        lambda cache: cache.crop(6).repeat(1),
        lambda cache: cache.reorder([0, 1]).crop(6),
        lambda cache: cache.copy().crop(6),
    )
    for change in changes:
        cache = net.new_cache(2)
        with torch.no_grad():
            net(tokens[:, :7], cache=cache)
        with torch.inference_mode():
            cache = change(cache)
        with torch.no_grad():
            got, left = net(tokens[:, 7:], cache=cache), [cache.longest() - 1] * 2
            left = [5, 6] if change is changes[0] else left
            equal(got, plain(net, [row[:n] for row, n in zip(tokens, left, strict=True)], tokens[:, 7:]))


@torch.no_grad()
def test_gradients_do_not_reach_what_was_dropped() -> None:
    net, tokens = language_model(), ids(1, 6)
    with torch.enable_grad():
        x = net.token_emb.weight
        cache = net.new_cache(1)
        net(tokens, cache=cache)
        net(tokens[:, :2], cache=cache.crop(3)).sum().backward()
        got, x.grad = x.grad.clone(), None
        net(torch.cat([tokens[:, :3], tokens[:, :2]], 1))[:, 3:].sum().backward()
        equal(got, x.grad)


def cache_of(net, tokens: Tensor, **options) -> KVCache:
    cache = net.new_cache(len(tokens))
    net(tokens, cache=cache, **options)
    return cache


@torch.no_grad()
def test_what_cannot_be_cropped_is_refused() -> None:
    net = language_model()
    cache, rows = cache_of(net, ids(1, 4)), cache_of(net, ids(2, 4), mask=torch.tensor([[1, 1, 1, 0], [1] * 4]).bool())
    with pytest.raises(CacheError, match=r"crop\(5\): a row of this cache holds only 4 tokens"):
        cache.crop(5)
    with pytest.raises(CacheError, match=r"crop\(-4\) drops 4 tokens, but a row of this cache holds only 3"):
        rows.crop(-4)
    with pytest.raises(CacheError, match=r"crop\(\[4, 4\]\): row 0 of this cache holds only 3 tokens"):
        rows.crop([4, 4])
    with pytest.raises(ArgumentError, match=r"length=\[2, -1\]: row 1 cannot keep -1 tokens"):
        rows.crop([2, -1])
    for length in (1.5, True, None, "4", torch.tensor([1.0, 2.0]), [1, [2]]):
        with pytest.raises(ArgumentError, match=r"length=.* must be an integer, or 2 integers, one for each row"):
            rows.crop(length)
    with pytest.raises(ArgumentError, match=r"length=\[1, 2, 3\] must be"):
        rows.crop([1, 2, 3])
    packed = cache_of(net, ids(1, 4), document_ids=torch.tensor([[0, 0, 1, 1]]))
    with pytest.raises(CacheError, match=r"crop\(3\): this cache holds packed documents"):
        packed.crop(3)
    assert (cache.span, rows.span, packed.crop(4).span) == (4, 4, 4)
