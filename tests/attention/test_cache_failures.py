"""A call that fails leaves the cache as it was, and arguments that make no cache are refused."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.support.generation_models import SCHEMES, Script, full_pass
from tests.support.rounding import assert_same
from tests.support.small_models import decoder, ids
from x_positional import AutoregressiveWrapper, ContinuousTransformerWrapper, Decoder, TransformerWrapper
from x_positional.attention.cache import KVCache
from x_positional.errors import ArgumentError, CacheError

CACHEABLE = SCHEMES
CHUNKS = (3, 1, 4, 1, 1, 2, 6, 1)
"""Chunk sizes that fill a ring of 5 slots, go around it token by token, and overwrite all of it at once."""
LENGTH = sum(CHUNKS)
LATENT = {"attn": {"mla": {"kv_rank": 5, "rope_dim": 4, "value_dim": 3}}, "position": {"kind": "rope", "dim": 4}}


class Stop(BaseException):
    """Like KeyboardInterrupt, no Exception."""


@contextmanager
def failing(module: nn.Module, *, after: bool = False, poison: list[nn.Module] | None = None) -> Iterator[None]:
    """The module raises before (or after) its forward; the outputs of `poison` are NaN until then."""

    def stop(*_: object) -> None:
        raise Stop

    handles = [module.register_forward_hook(stop) if after else module.register_forward_pre_hook(stop)]
    handles += [part.register_forward_hook(lambda m, i, out: out * float("nan")) for part in poison or []]
    try:
        with pytest.raises(Stop):
            yield
    finally:
        for handle in handles:
            handle.remove()


KINDS: dict[str, tuple[dict, Callable[[TransformerWrapper], KVCache]]] = {
    "growing": ({}, lambda m: m.new_cache(3)),
    "static": ({}, lambda m: m.new_cache(3, max_len=LENGTH + 1)),
    "ring": ({"window": 5}, lambda m: m.new_cache(3)),
    "sliding": ({}, lambda m: m.new_cache(3, window=5)),
    "chunks": ({"chunk": 5}, lambda m: m.new_cache(3)),
    "keep_first": ({"window": 5, "keep_first": 2}, lambda m: m.new_cache(3)),
    "pattern": (
        {"pattern": [{"position": "rope", "window": 5}, {"position": "alibi"}], "position": None},
        lambda m: m.new_cache(3),
    ),
    "latent": (LATENT, lambda m: m.new_cache(3)),
    "latent ring": ({**LATENT, "window": 5}, lambda m: m.new_cache(3)),
}


def places(model: TransformerWrapper) -> list[tuple[nn.Module, bool]]:
    """Where a pass fails: in the last layer after its keys were written, in the logits, and after everything."""
    last = model.attn_layers.blocks[-1]
    return [(last.ff, False), (last.attn.to_out, True), (model.to_logits, False), (model, True)]


def check_retries(model: TransformerWrapper, cache: KVCache, padded: bool) -> None:
    """Every chunk fails once, somewhere else each time, and then gives what it gives without a failure."""
    tokens, at, got = ids(3, LENGTH), 0, []
    sliding = cache.windows != tuple(kind.window for kind in model.attn_layers.kinds)
    full = model(tokens, cache=model.new_cache(3, window=5)) if sliding else model(tokens)
    for turn, chunk in enumerate(CHUNKS):
        new, mask = tokens[:, at : at + chunk], None
        if padded:
            new, mask = nn.functional.pad(new, (1, 0)), torch.arange(chunk + 1).expand(3, -1) > 0
        module, after = places(model)[turn % 4]
        span, size = cache.span, cache.nbytes()
        with failing(module, after=after):
            model(new, mask=mask, cache=cache)
        assert (cache.span, cache.nbytes()) == (span, size)
        with failing(module, after=after):  # another one in between, with other tokens and of another length
            model(ids(3, 2), cache=cache)
        got.append(model(new, mask=mask, cache=cache)[:, -chunk:])
        at += chunk
    assert_same(torch.cat(got, 1), full)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("scheme", CACHEABLE)
def test_every_scheme_can_try_a_chunk_again(scheme: str, padded: bool) -> None:
    model = decoder(scheme, window=5)
    check_retries(model, model.new_cache(3), padded)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_cache_can_try_a_chunk_again(kind: str, padded: bool) -> None:
    flags, make = KINDS[kind]
    model = decoder(**{"position": "rope", **flags})
    check_retries(model, make(model), padded)


@torch.no_grad()
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("window", [None, 4])
def test_what_a_failed_pass_computed_never_leaks(window: int | None, padded: bool) -> None:
    """NaN in unused slots would: a hidden key has no weight, but 0 * NaN is NaN."""
    model, tokens = decoder("rope", window=window), ids(2, 13)
    full, cache, got = model(tokens), model.new_cache(2), []
    for start, stop in ((0, 3), (3, 9), (9, 10), (10, 13)):
        mask = torch.arange(5) < torch.tensor([[5], [1]]) if padded else None
        with failing(model, after=True, poison=[block.attn.to_qkv for block in model.attn_layers.blocks]):
            model(ids(2, 5), mask=mask, cache=cache)
        with failing(model, after=True, poison=[block.attn.to_qkv for block in model.attn_layers.blocks]):
            model(ids(2, 1), cache=cache)
        new = nn.functional.pad(tokens[:, start:stop], (2, 0)) if padded else tokens[:, start:stop]
        mask = torch.arange(new.shape[1]).expand(2, -1) > 1 if padded else None
        got.append(model(new, mask=mask, cache=cache)[:, start - stop :])
    assert_same(torch.cat(got, 1), full)


@torch.no_grad()
def test_context_keys_of_a_failed_pass_are_dropped() -> None:
    model, tokens = decoder(cross_attend=True), ids(2, 6)
    context, other = torch.randn(2, 5, 24), torch.randn(2, 7, 24)
    cache = model.new_cache(2)
    for module in (model.attn_layers.blocks[1].cross.to_q, model.to_logits, model):
        with failing(module, after=True):
            model(tokens[:, :4], context=other, cache=cache)
    got = [model(tokens[:, :4], context=context, cache=cache), model(tokens[:, 4:], cache=cache)]
    assert_same(torch.cat(got, 1), model(tokens, context=context))


@torch.no_grad()
def test_layers_alone_and_continuous_inputs() -> None:
    torch.manual_seed(0)
    layers = Decoder(dim=24, depth=2, heads=3, head_dim=8, position="rope").eval()
    model = ContinuousTransformerWrapper(attn_layers=Decoder(dim=24, depth=2, heads=3, head_dim=8), dim_in=5, dim_out=7)
    for net, width in ((layers, 24), (model.eval(), 5)):
        x = torch.randn(2, 9, width)
        full, cache, got = net(x), net.new_cache(2), []
        for part in x.split(4, 1):
            with failing(net, after=True):
                net(part, cache=cache)
            got.append(net(part, cache=cache))
        assert_same(torch.cat(got, 1), full)


@pytest.mark.parametrize("kind", ["growing", "ring", "keep_first", "latent ring"])
@pytest.mark.parametrize("ragged", [False, True])
def test_generate_that_fails_leaves_the_cache_as_it_was(kind: str, ragged: bool) -> None:
    flags, make = KINDS[kind]
    model = decoder(**{"position": "rope", **flags}).double()
    wrapper, script = AutoregressiveWrapper(model), Script(ids(3, 4))
    cache, prompts = make(model), ([ids(4), ids(6), ids(5)] if ragged else ids(3, 6))
    _, cache = wrapper.generate(prompts, 2, filter_logits_fn=Script(ids(3, 2)), cache=cache, return_cache=True)
    span, calls = cache.span, []

    def stop(logits: Tensor) -> Tensor:
        calls.append(1)
        if len(calls) == 9:
            raise Stop
        return logits

    with pytest.raises(Stop):
        wrapper.generate(ids(3, 3), 12, filter_logits_fn=stop, cache=cache)
    assert cache.span == span
    wrapper.generate(None, 4, filter_logits_fn=script, cache=cache)
    plain = Script(ids(3, 4))
    fresh = make(model)
    wrapper.generate(prompts, 2, filter_logits_fn=Script(ids(3, 2)), cache=fresh)
    wrapper.generate(None, 4, filter_logits_fn=plain, cache=fresh)
    torch.testing.assert_close(script.logits, plain.logits, atol=1e-12, rtol=0)
    if kind == "growing" and not ragged:
        rows = zip(prompts, ids(3, 2), ids(3, 4), strict=True)
        torch.testing.assert_close(
            script.logits, torch.stack([full_pass(model, *row) for row in rows]), atol=1e-9, rtol=0
        )


BAD_ROWS = [
    (torch.tensor([True, False, True]), "bool mask"),
    (torch.tensor([0, 3]), r"rows=\[0, 3\] must be from 0 to 2"),
    (torch.tensor([-1, 0]), r"must be from 0 to 2"),
    (torch.tensor([0.0, 1.0]), "list of integers"),
    (torch.tensor([[0, 1]]), "list of integers"),
    (torch.tensor(1), "list of integers"),
    ([], "at least one"),
    ("ab", "must be integers"),
    (None, "must be integers"),
]


@torch.no_grad()
@pytest.mark.parametrize(("rows", "message"), BAD_ROWS, ids=[str(rows) for rows, _ in BAD_ROWS])
def test_reorder_refuses_what_is_no_row(rows, message: str) -> None:
    model, tokens = decoder(), ids(3, 9)
    cache, mask = model.new_cache(3), torch.ones(3, 5, dtype=torch.bool)
    mask[0, 0] = False
    model(tokens[:, :5], mask=mask, cache=cache)
    before = cache.state
    with pytest.raises(CacheError, match=message):
        cache.reorder(rows)
    assert cache.state is before
    whole = torch.cat([mask, torch.ones(3, 4, dtype=torch.bool)], 1)
    assert_same(model(tokens[:, 5:], cache=cache), model(tokens, mask=whole)[:, 5:])


@torch.no_grad()
@pytest.mark.parametrize(
    "rows", [[1, 1], (0,), np.array([2, 0]), torch.tensor([2, 1, 0, 2], dtype=torch.int32)], ids=str
)
def test_reorder_takes_any_list_of_rows(rows) -> None:
    model, tokens = decoder(), ids(3, 9)
    cache = model.new_cache(3)
    model(tokens[:, :5], cache=cache)
    cache.reorder(rows)
    picked = torch.as_tensor(rows).long()
    assert cache.batch_size == len(rows)
    assert_same(model(tokens[picked, 5:], cache=cache), model(tokens[picked])[:, 5:])


@torch.no_grad()
def test_one_prompt_becomes_several_rows() -> None:
    model, tokens = decoder(cross_attend=True), ids(3, 9)
    tokens[:, :5], context = tokens[0, :5], torch.randn(1, 4, 24)
    cache = model.new_cache(1)
    model(tokens[:1, :5], context=context, cache=cache)
    cache.reorder([0, 0, 0])
    assert_same(model(tokens[:, 5:], cache=cache), model(tokens, context=context.expand(3, -1, -1))[:, 5:])


BAD_SIZES = [
    ({"batch_size": 0}, "batch_size=0 must be an integer of at least 1"),
    ({"batch_size": -2}, "batch_size=-2"),
    ({"batch_size": True}, "batch_size=True"),
    ({"batch_size": 2.0}, "batch_size=2.0"),
    ({"batch_size": "2"}, "batch_size='2'"),
    ({"max_len": 0}, "max_len=0"),
    ({"max_len": -1}, "max_len=-1"),
    ({"max_len": 1.5}, "max_len=1.5"),
    ({"window": 0}, "window=0"),
    ({"window": -3}, "window=-3"),
    ({"window": True}, "window=True"),
    ({"window": 4, "keep_first": -1}, "keep_first=-1 must be an integer of at least 0"),
    ({"window": 4, "keep_first": False}, "keep_first=False"),
    ({"dtype": torch.int16}, "dtype=torch.int16 cannot store keys"),
    ({"dtype": torch.bool}, "dtype=torch.bool"),
    ({"dtype": torch.complex64}, "dtype=torch.complex64"),
    ({"dtype": "float16"}, "dtype='float16'"),
]


@pytest.mark.parametrize(("given", "message"), BAD_SIZES, ids=[str(given) for given, _ in BAD_SIZES])
def test_sizes_that_make_no_cache(given: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        decoder().new_cache(**{"batch_size": 2, **given})


def test_sizes_may_be_numpy_integers() -> None:
    cache = decoder().new_cache(np.int64(2), max_len=np.int32(7))
    assert (cache.batch_size, cache.max_len) == (2, 7)
