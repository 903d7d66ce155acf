"""drop_last: a cache forgets its last tokens, and continues as if they had never been read."""

import pytest
import torch

from tests.support.generation_models import SCHEMES, equal, ids, language_model
from x_positional.errors import ArgumentError, CacheError


@pytest.mark.parametrize("scheme", SCHEMES)
@torch.no_grad()
def test_a_shortened_cache_continues_as_if_the_tokens_had_not_been_read(scheme: str) -> None:
    net, kept, wrong, right = language_model(scheme), ids(2, 7), ids(2, 5, seed=3), ids(2, 6, seed=4)
    masks = torch.ones(2, 7, dtype=torch.bool), torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    for mask in masks:
        cache = net.new_cache(2)
        net(kept, mask=mask, cache=cache)
        for count in (5, 3, 1):
            net(wrong[:, :count], cache=cache)
            cache.drop_last(count)
        net(right[:, :2], cache=cache)
        net(wrong[:, :3], cache=cache)
        cache.drop_last(3)
        whole = torch.cat([mask, torch.ones_like(right, dtype=torch.bool)], 1)
        want = net(torch.cat([kept, right], 1), mask=whole)[:, 9:]
        equal(net(right[:, 2:], cache=cache), want)


@torch.no_grad()
def test_positions_that_were_given_continue_where_they_were() -> None:
    for scheme, positions in (("rope", 3 * torch.arange(5)[None]), ("axial", torch.arange(10).view(1, 5, 2))):
        net, kept, wrong, right = language_model(scheme), ids(1, 5), ids(1, 4, seed=3), ids(1, 3, seed=4)
        caches = [net.new_cache(1), net.new_cache(1)]
        for cache in caches:
            net(kept, positions=positions, cache=cache)
        net(wrong, cache=caches[0])
        caches[0].drop_last(4)
        equal(net(right, cache=caches[0]), net(right, cache=caches[1]))


@torch.no_grad()
def test_a_window_that_is_not_full_yet_forgets_tokens_and_a_full_one_refuses() -> None:
    net, tokens = language_model(window=6), ids(1, 9)
    cache = net.new_cache(1)
    net(tokens[:, :6], cache=cache)
    cache.drop_last(2)
    equal(net(tokens[:, 4:], cache=cache), net(tokens)[:, 4:])
    with pytest.raises(CacheError, match="the 9 tokens of this cache exceed a window"):
        cache.drop_last(1)
    equal(net(tokens[:, :2], cache=cache), net(torch.cat([tokens, tokens[:, :2]], 1))[:, 9:])


def test_what_cannot_be_dropped_is_refused() -> None:
    net = language_model()
    cache = net.new_cache(1)
    net(ids(1, 4), cache=cache)
    with pytest.raises(CacheError, match=r"drop_last\(5\): this cache holds only 4 tokens"):
        cache.drop_last(5)
    for count in (0, -1, 1.5):
        with pytest.raises(ArgumentError, match=r"count=.* must be an integer of at least 1"):
            cache.drop_last(count)
    packed = net.new_cache(1)
    net(ids(1, 4), document_ids=torch.tensor([[0, 0, 1, 1]]), cache=packed)
    with pytest.raises(CacheError, match="holds packed documents"):
        packed.drop_last(1)
    assert (cache.span, packed.span) == (4, 4)
