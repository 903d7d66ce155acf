"""Caches: what they hold, when they grow, and what they refuse."""

import pytest
import torch

from tests.support.rounding import assert_same
from tests.support.small_models import decoder, ids
from x_positional.errors import CacheError, InputError


@torch.no_grad()
def test_padding_takes_no_room_in_a_static_cache() -> None:
    net, cache = decoder(), None
    cache = net.new_cache(2, max_len=9)
    lengths, rows = torch.zeros(2, dtype=torch.long), [[], []]
    for turn in ([3, 1], [1, 3], [2, 3], [3, 1]):  # widths 3, 3, 3, 3: twelve with padding, nine and eight without
        tokens = ids(2, max(turn)) + sum(turn) % 2
        mask = torch.arange(max(turn)) < torch.tensor(turn)[:, None]
        got = net(tokens % 13, mask=mask, cache=cache)
        for row in range(2):
            rows[row] += (tokens[row][mask[row]] % 13).tolist()
            alone = net(torch.tensor([rows[row]]))[0, -turn[row] :]
            assert_same(got[row][mask[row]], alone)
        lengths += torch.tensor(turn)
    assert cache.longest() == int(lengths.max()) == 9
    with pytest.raises(CacheError, match="max_len=9 tokens a row, and with the new ones a row has 10"):
        net(ids(2, 1), cache=cache)


@torch.no_grad()
@pytest.mark.parametrize("position", ["rope", "forgetting"])
@pytest.mark.parametrize("flags", [{}, {"attn_softclamp_logits": True}])
def test_a_long_chunk_of_padding_fills_nothing(position: str, flags: dict[str, bool]) -> None:
    """As in left-padded rows that are read in chunks."""
    net = decoder(position=position, **flags)
    tokens, mask = ids(2, 75), torch.arange(75).expand(2, -1) >= torch.tensor([[70], [71]])
    cache = net.new_cache(2)
    assert net(tokens[:, :70], mask=mask[:, :70], cache=cache).isfinite().all()
    assert_same(net(tokens[:, 70:], mask=mask[:, 70:], cache=cache)[mask[:, 70:]], net(tokens, mask=mask)[mask])


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
def test_a_sliding_cache_grows_up_to_its_window(padded: bool) -> None:
    net = decoder(window=150)
    tokens, cache = ids(2, 290), net.new_cache(2)
    full, sizes, at = net(tokens), [], 0
    for chunk in (1, 62, 2, 1, 63, 20, 1, 1, 100, 39):
        new = tokens[:, at : at + chunk]
        mask = None
        if padded:
            new, mask = torch.nn.functional.pad(new, (1, 0)), torch.arange(chunk + 1).expand(2, -1) > 0
        got = net(new, mask=mask, cache=cache)[:, -chunk:]
        assert_same(got, full[:, at : at + chunk])
        sizes.append(cache.nbytes() // (2 * 2 * 2 * 3 * 8 * 4))
        at += chunk
    assert sizes[0] <= 70
    assert sizes[-1] <= 152


@torch.no_grad()
def test_a_cache_keeps_to_the_context_it_has_seen() -> None:
    net = decoder(cross_attend=True)
    context, tokens = torch.randn(2, 5, 24), ids(2, 4)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()
    want, cache = net(tokens, context=context, context_mask=mask), net.new_cache(2)
    net(tokens[:, :2], context=context, context_mask=mask, cache=cache)
    for again in ({"context": context}, {"context": context.clone(), "context_mask": mask.clone()}):
        got = net(tokens[:, 2:3], **again, cache=cache)
        assert_same(got, net(tokens[:, :3], context=context, context_mask=mask)[:, 2:])
        cache = net.new_cache(2)
        net(tokens[:, :2], context=context, context_mask=mask, cache=cache)
    for name, other in {
        "context": {"context": context + 1},
        "context_mask": {"context": context, "context_mask": ~mask},
        "context_positions": {"context_positions": torch.arange(5)},
    }.items():
        with pytest.raises(InputError, match=f"keys of a different {name}"):
            net(tokens[:, 2:3], **other, cache=cache)
    with pytest.raises(
        InputError, match="context_mask is on meta, but this cache holds the keys of a context_mask on cpu"
    ):
        net(tokens[:, 2:3], context=context, context_mask=mask.to("meta"), cache=cache)
    got = net(tokens[:, 2:], cache=cache)
    assert_same(got, want[:, 2:])


@torch.no_grad()
def test_rows_take_their_context_along() -> None:
    net = decoder(cross_attend=True)
    context, tokens, rows = torch.randn(3, 5, 24), ids(3, 4), torch.tensor([2, 0])
    mask = torch.arange(5) < torch.tensor([[5], [2], [3]])
    cache = net.new_cache(3)
    net(tokens[:, :3], context=context, context_mask=mask, cache=cache)
    cache.reorder(rows)
    got = net(tokens[rows, 3:], cache=cache)
    want = net(tokens[rows], context=context[rows], context_mask=mask[rows])[:, 3:]
    assert_same(got, want)
