"""A cache belongs to one model with the parameters that it was filled with."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.support.rounding import assert_same
from tests.support.small_models import decoder, ids
from x_positional import AutoregressiveWrapper, TransformerWrapper
from x_positional.attention.cache import KVCache
from x_positional.errors import CacheError

STALE = r"parameters of the model changed after this cache was filled.*new_cache\(2\)"
FOREIGN = "made for another model"


def filled(model: TransformerWrapper, length: int = 4) -> KVCache:
    cache = model.new_cache(2)
    with torch.no_grad():
        model(ids(2, 9)[:, :length], cache=cache)
    return cache


def goes_on(model: TransformerWrapper, cache: KVCache, start: int = 4) -> None:
    """The cache serves the model, and gives what one pass gives."""
    tokens = ids(2, 9)
    with torch.no_grad():
        assert_same(model(tokens[:, start:], cache=cache), model(tokens)[:, start:])


def refuses(model: TransformerWrapper, cache: KVCache, message: str) -> None:
    span = cache.span
    for call in (model, lambda x, cache: AutoregressiveWrapper(model).generate(x, 2, cache=cache)):
        with pytest.raises(CacheError, match=message):
            call(ids(2, 1), cache=cache)
    assert cache.span == span


def step(model: nn.Module, make: Callable[..., torch.optim.Optimizer], **options) -> None:
    optimizer = make(model.parameters(), lr=1e-3, **options)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()


class Adapter(nn.Module):
    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) * 1.5


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@torch.no_grad()
def in_place(model: TransformerWrapper) -> None:
    model.attn_layers.blocks[1].attn.to_qkv.weight[0, 0] += 1


@torch.no_grad()
def embeddings(model: TransformerWrapper) -> None:
    model.token_emb.weight.mul_(1.1)


def adapter(model: TransformerWrapper) -> None:
    attn = model.attn_layers.blocks[0].attn
    attn.to_qkv = Adapter(attn.to_qkv)


def new_parameter(model: TransformerWrapper) -> None:
    model.attn_layers.blocks[0].ff.up.weight = nn.Parameter(model.attn_layers.blocks[0].ff.up.weight + 1)


def halved(model: TransformerWrapper) -> None:
    model.half().float()


CHANGES = {
    "sgd": lambda m: step(m, torch.optim.SGD),
    "adamw": lambda m: step(m, torch.optim.AdamW, foreach=False),
    "adamw foreach": lambda m: step(m, torch.optim.AdamW, foreach=True),
    "adamw fused": lambda m: step(m, torch.optim.AdamW, fused=True),
    "load_state_dict": lambda m: m.load_state_dict(m.state_dict()),
    "assigned": lambda m: m.load_state_dict({k: v.clone() for k, v in m.state_dict().items()}, assign=True),
    "in place": in_place,
    "embeddings": embeddings,
    "a layer replaced": adapter,
    "a parameter replaced": new_parameter,
    "parametrized": lambda m: parametrize.register_parametrization(m.attn_layers.blocks[0].ff.up, "weight", Doubled()),
    "half and back": halved,
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_parameters_make_a_cache_stale(change: str) -> None:
    model = decoder()
    cache, empty = filled(model), model.new_cache(2)
    for turn in range(2):  # a second change is noticed too
        CHANGES[change](model)
        refuses(model, cache, STALE)
        refuses(model, cache, STALE)  # and stays noticed
        goes_on(model, empty, 0)
        cache, empty = filled(model), model.new_cache(2)
        goes_on(model, cache)
        cache = filled(model)
        if change in ("parametrized", "a layer replaced") and turn == 0:
            return


def test_gradients_and_modes_change_nothing() -> None:
    model = decoder()
    cache = filled(model)
    model(ids(2, 9)).sum().backward()
    model.zero_grad()
    model.train().eval()
    model.requires_grad_(False).to("cpu").float()
    goes_on(model, cache)


@pytest.mark.parametrize("filled_first", [True, False])
def test_a_copy_of_the_model_is_another_one(filled_first: bool) -> None:
    model = decoder("t5")
    cache = filled(model) if filled_first else None
    twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), copy.deepcopy(copy.deepcopy(model))]
    twins += [torch.optim.swa_utils.AveragedModel(model).module]
    cache = filled(model) if cache is None else cache
    for twin in twins:
        refuses(twin, cache, FOREIGN)
        goes_on(twin, filled(twin))
        refuses(model, filled(twin), FOREIGN)
    goes_on(model, cache)


COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda x: pickle.loads(pickle.dumps(x))}


@pytest.mark.parametrize("first", ["model", "cache"])
@pytest.mark.parametrize("how", COPIES)
def test_a_model_and_its_cache_stay_together(how: str, first: str) -> None:
    model = decoder("dynamic", window=3)
    cache = filled(model)
    pair = (model, cache) if first == "model" else (cache, model)
    found = COPIES[how](pair)
    twin, held = found if first == "model" else found[::-1]
    refuses(model, held, FOREIGN)
    refuses(twin, cache, FOREIGN)
    again, copied = COPIES[how]((twin, held))
    goes_on(again, copied)
    goes_on(twin, held)
    goes_on(model, cache)
    stale = filled(twin)
    in_place(twin)
    refuses(twin, stale, STALE)


@pytest.mark.parametrize("how", COPIES)
def test_a_stale_cache_stays_stale_in_a_copy(how: str) -> None:
    model = decoder()
    cache = filled(model)
    in_place(model)
    twin, held = COPIES[how]((model, cache))
    refuses(twin, held, STALE)
    twin, held = COPIES[how]((model, filled(model)))
    in_place(twin)
    refuses(twin, held, STALE)


@pytest.mark.parametrize("copies", [copy.copy, copy.deepcopy, *COPIES.values()][:3])
@pytest.mark.parametrize("window", [None, 3])
def test_a_copy_of_a_cache_is_independent_of_it(copies: Callable, window: int | None) -> None:
    """One branch for each continuation of a prefix."""
    model = decoder("alibi", window=window)
    cache = filled(model)
    branch = copies(cache)
    with torch.no_grad():
        for token in ids(2, 3).split(1, 1):
            model(token, cache=branch)
    goes_on(model, cache)
    in_place(model)
    refuses(model, branch, STALE)


def test_a_shallow_copy_of_the_model_has_the_same_parameters() -> None:
    model = decoder()
    cache = filled(model)
    goes_on(copy.copy(model), cache)


def test_layers_share_the_cache_with_their_model() -> None:
    """Embeddings of the model count for a cache that the model has filled, and not for one that the layers have filled."""
    model = decoder()
    cache = model.new_cache(2)
    with torch.no_grad():
        model.attn_layers(torch.randn(2, 3, 24), cache=cache)
        embeddings(model)
        model(ids(2, 2), cache=cache)
        embeddings(model)
        refuses(model, cache, STALE)
        model.attn_layers(torch.randn(2, 1, 24), cache=cache)


def test_weights_that_change_while_a_stream_runs() -> None:
    model = decoder()
    stream = AutoregressiveWrapper(model.train()).stream(ids(2, 4), 5, temperature=0.0)
    next(stream)
    in_place(model)
    with pytest.raises(CacheError, match=STALE):
        next(stream)


def test_a_cache_returned_in_training_mode_notices_the_next_step() -> None:
    model = decoder().train()
    wrapper = AutoregressiveWrapper(model)
    _, cache = wrapper.generate(ids(2, 4), 3, return_cache=True)
    wrapper.generate(None, 1, cache=cache)
    step(model, torch.optim.SGD)
    with pytest.raises(CacheError, match=STALE):
        wrapper.generate(None, 1, cache=cache)


def test_a_cache_on_another_device() -> None:
    cache = decoder().to("meta").new_cache(2)
    model = decoder()
    cache.owner = model.attn_layers.identity
    with pytest.raises(CacheError, match="this cache is on meta, but the input is on cpu"):
        model(ids(2, 3), cache=cache)


@pytest.mark.parametrize("cached", [False, True])
def test_a_model_is_freed_without_the_garbage_collector(cached: bool) -> None:
    """Its parameters are what fills the memory of a device."""
    gc.collect()
    gc.disable()
    try:
        model = decoder("rope")
        if cached:
            filled(model)
        alive = weakref.ref(model)
        del model
        assert alive() is None
    finally:
        gc.enable()
