"""The cost of one new token: no device sync, no copy of what grows, no second computation of old keys."""

from collections import Counter
from itertools import pairwise

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.draws import in_turns
from tests.support.generation_models import NUM_TOKENS, SCHEMES, UNLIMITED, ids, language_model, ragged
from x_positional import AutoregressiveWrapper
from x_positional.attention.planner import IN_ADVANCE

LOOKS = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "nonzero_static",
    "masked_select",
    "_unique2",
    "unique_dim",
    "bincount",
    "lift_fresh",
}
"""Operations that make the host wait for a device: reading a value, or `torch.tensor(...)`, which copies one there."""
STEPS = 24


class Watch(TorchDispatchMode):
    """Counts operations, reads of values, and the elements that concatenations produce."""

    def __init__(self):
        super().__init__()
        self.operations: Counter[str] = Counter()
        self.looks, self.joined = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.split("::")[1]
        self.operations[name] += 1
        picks_by_mask = name == "index" and any(i is not None and i.dtype == torch.bool for i in args[1])
        self.looks += name in LOOKS or picks_by_mask or (name == "repeat_interleave" and isinstance(args[0], Tensor))
        out = func(*args, **(kwargs or {}))
        if name in ("cat", "stack"):
            self.joined += out.numel()
        return out


@pytest.fixture
def no_lists(monkeypatch):
    """Fails on ways to read values that no operation shows."""

    def refuse(*_):
        raise AssertionError("decoding read the values of a tensor")

    for name in ("tolist", "numpy", "__array__", "cpu"):
        monkeypatch.setattr(Tensor, name, refuse)


@pytest.fixture
def accelerator(monkeypatch):
    """Decodes as on a device whose values the host has to wait for."""
    monkeypatch.setattr("x_positional.generation.sampling.READ_AT_ONCE", ())


def watched(start) -> list[Watch]:
    """One Watch per token; the first also covers everything before it."""
    seen, stream = [], None
    while True:
        with Watch() as watch:
            try:
                stream = stream or start()
                next(stream)
            except StopIteration:
                return seen
        seen.append(watch)


OPTIONS = {"seed": 1, "filter_logits_fn": ["top_k", "top_p", "min_p", "top_a", "typical"], "repetition_penalty": 1.2}


@pytest.mark.parametrize(("scheme", "lengths"), in_turns(SCHEMES, [(5, 5), (2, 7)]))
def test_decoding_never_looks_at_values(scheme: str, lengths: tuple[int, int], no_lists, accelerator) -> None:
    wrapper = AutoregressiveWrapper(language_model(scheme))
    steps = watched(lambda: wrapper.stream(ragged(*lengths), STEPS, **OPTIONS))
    assert len(steps) == STEPS
    assert steps[0].looks > 0  # the ids of the prompt are checked once
    assert [step.looks for step in steps[1:]] == [0] * (STEPS - 1)


def test_an_end_is_looked_for_once_a_token(no_lists, accelerator) -> None:
    wrapper = AutoregressiveWrapper(language_model())
    steps = watched(lambda: wrapper.stream(ids(2, 5), STEPS, [NUM_TOKENS - 1], **OPTIONS))
    assert len(steps) > 3
    assert {step.looks for step in steps[1:]} == {1}


def test_on_a_cpu_the_logits_are_looked_at_once_a_token() -> None:
    wrapper = AutoregressiveWrapper(language_model())
    assert {step.looks for step in watched(lambda: wrapper.stream(ids(2, 5), STEPS, **OPTIONS))[1:]} == {1}


@pytest.mark.parametrize(("scheme", "lengths", "max_seq_len"), in_turns(UNLIMITED, [(5, 5), (2, 7)], [48, 9]))
def test_each_token_costs_the_same_operations_and_joins_nothing_that_grows(
    scheme: str, max_seq_len: int, lengths: tuple[int, int]
) -> None:
    wrapper = AutoregressiveWrapper(language_model(scheme, max_seq_len=max_seq_len))
    steps = watched(lambda: wrapper.stream(ragged(*lengths), STEPS, seed=1))
    late = steps[-6:]  # past max_seq_len the ring is full by then
    assert len({sum(step.operations.values()) for step in late}) == 1
    assert len({step.joined for step in late}) == 1
    if max_seq_len > STEPS + 7:
        assert steps[4].joined == late[0].joined
        assert steps[4].operations == late[0].operations


@pytest.mark.parametrize("lengths", [(5, 5), (2, 7)])
def test_a_cache_of_known_size_is_allocated_once(lengths: tuple[int, int]) -> None:
    wrapper = AutoregressiveWrapper(language_model())
    cache = wrapper.net.new_cache(2, max_len=max(lengths) + 40)
    places = set()
    for _ in wrapper.stream(ragged(*lengths), 40, cache=cache):
        places.add((cache.state.layers[0][0].data_ptr(), cache.nbytes()))
    assert len(places) == 1


def test_a_growing_cache_doubles() -> None:
    wrapper = AutoregressiveWrapper(language_model(max_seq_len=600))
    cache = wrapper.net.new_cache(1)
    sizes = [cache.nbytes() for _ in wrapper.stream(ids(1, 5), 400, cache=cache)]
    assert sizes == sorted(sizes)
    distinct = sorted(set(sizes))
    assert 3 <= len(distinct) <= 5
    assert all(1.7 < after / before < 2.1 for before, after in pairwise(distinct))


def test_generate_makes_a_cache_of_the_final_size() -> None:
    wrapper = AutoregressiveWrapper(language_model(max_seq_len=600))
    made = []
    new_cache = wrapper.net.new_cache

    def noted(*args, **kwargs):
        made.append(new_cache(*args, **kwargs))
        return made[-1]

    wrapper.net.new_cache = noted
    wrapper.generate(ids(2, 5), 200)
    assert [cache.max_len for cache in made] == [204]
    assert made[0].state.layers[0][0].shape[2] in (204, 205)


def test_old_keys_are_not_rotated_again(monkeypatch) -> None:
    wrapper = AutoregressiveWrapper(language_model())
    scheme = wrapper.net.attn_layers.position_schemes[0]
    lengths = {"k": [], "tables": []}
    rotate_k, tables = scheme.rotate_k, scheme.tables
    monkeypatch.setattr(scheme, "rotate_k", lambda k, t: lengths["k"].append(k.shape[2]) or rotate_k(k, t))
    monkeypatch.setattr(scheme, "tables", lambda p: lengths["tables"].append(p.shape[1]) or tables(p))
    wrapper.generate(ids(2, 5), 8)
    assert lengths == {"k": [5, 5] + [1, 1] * 7, "tables": [5, IN_ADVANCE]}


@pytest.mark.parametrize("lengths", [(5, 5), (2, 7)])
@pytest.mark.parametrize("scheme", ["alibi", "t5", "dynamic"])
def test_a_bias_of_distance_is_not_computed_again_for_each_token(scheme: str, lengths, monkeypatch) -> None:
    wrapper = AutoregressiveWrapper(language_model(scheme))
    held = wrapper.net.attn_layers.position_schemes[0]
    calls, of_distance = [], held.of_distance
    monkeypatch.setattr(held, "of_distance", lambda d: calls.append(d.shape) or of_distance(d))
    wrapper.generate(ragged(*lengths), 40)
    assert len(calls) <= 2


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="only CUDA reports host syncs")
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("lengths", [(5, 5), (2, 7)])
def test_on_cuda_the_host_never_waits_for_a_token(scheme: str, lengths: tuple[int, int]) -> None:
    wrapper = AutoregressiveWrapper(language_model(scheme).float().cuda())
    stream = wrapper.stream(ragged(*lengths), STEPS, **OPTIONS)
    tokens = [next(stream)]
    try:
        torch.cuda.set_sync_debug_mode("error")
        tokens += [next(stream) for _ in range(STEPS - 1)]  # the logits are checked at the end
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(torch.stack(tokens, 1), wrapper.generate(ragged(*lengths), STEPS, **OPTIONS))
