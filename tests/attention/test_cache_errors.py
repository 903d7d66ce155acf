"""Caches that do not fit are refused, and a refused call leaves the cache as it was."""

import pytest
import torch

from tests.support.config_models import B, L, T, V, ids, model_of
from tests.support.rounding import assert_same
from x_positional import TransformerWrapper
from x_positional.errors import CacheError, InputError, PositionError


@pytest.fixture(scope="module")
def rope() -> TransformerWrapper:
    return model_of()


@pytest.mark.parametrize("layers", [{}, {"position": "alibi"}, {"depth": 3}, {"window": 3}, {"kv_heads": 1}], ids=str)
def test_a_cache_of_another_model(rope: TransformerWrapper, layers: dict) -> None:
    """Also of one that was built the same way: its keys come from other weights."""
    other = model_of(**layers)
    cache = other.new_cache(B)
    other(ids(), cache=cache)
    with pytest.raises(CacheError, match=r"made for another model.*new_cache\(batch_size\)"):
        rope(ids(), cache=cache)
    assert cache.span == T


def test_a_cache_of_another_batch_size(rope: TransformerWrapper) -> None:
    cache = rope.new_cache(3)
    with pytest.raises(
        CacheError, match=r"has batch_size=3, but the input has 2 rows\. Make one with new_cache\(2\), or .*reorder"
    ):
        rope(ids(), cache=cache)


def test_an_encoder_has_no_cache() -> None:
    with pytest.raises(InputError, match="an encoder is bidirectional"):
        model_of(kind="encoder").new_cache(B)


@pytest.mark.parametrize("window", [None, 3])
def test_a_full_cache_says_how_to_grow_and_loses_nothing(window: int | None) -> None:
    model, tokens = model_of(window=window), ids(length=6)
    cache = model.new_cache(B, max_len=6)
    with torch.no_grad():
        full = model(tokens)
        head = model(tokens[:, :4], cache=cache)
        if window is None:
            with pytest.raises(
                CacheError,
                match=r"full: it holds max_len=6 tokens a row, and with the new ones a row has 7.*max_len=None",
            ):
                model(ids(length=3), cache=cache)
        tail = model(tokens[:, 4:], cache=cache)
    assert_same(torch.cat([head, tail], dim=1), full)


@pytest.mark.parametrize("position", ["rope", "absolute", "cope", "forgetting"])
def test_a_refused_call_leaves_the_cache_as_it_was(position: str) -> None:
    """Every kind of refusal between two good calls: the second one goes on as if it had not been."""
    model, tokens = model_of(position), ids(length=6)
    bad_mask, two_axes = torch.ones(B, 3, dtype=torch.bool), torch.zeros(B, 2, 2)
    wrong = [
        ({"tokens": ids(length=2) + V}, InputError),
        ({"tokens": ids(length=2).float()}, InputError),
        ({"tokens": ids(3, 2)}, CacheError),
        ({"tokens": ids(length=2), "mask": bad_mask}, InputError),
        ({"tokens": ids(length=2), "positions": two_axes}, PositionError),
        ({"tokens": ids(length=2), "document_ids": torch.zeros(B, 3, dtype=torch.long)}, InputError),
        ({"tokens": ids(length=2), "context": torch.zeros(B, 3, 16)}, InputError),
    ]
    if position == "absolute":
        documents = torch.zeros(B, L + 1, dtype=torch.long)
        wrong += [
            ({"tokens": ids(length=L)}, PositionError),
            ({"tokens": ids(length=L + 1), "document_ids": documents}, PositionError),
        ]
    with torch.no_grad():
        full = model(tokens)
        for call, error in wrong:
            cache = model.new_cache(B)
            head = model(tokens[:, :4], cache=cache)
            with pytest.raises(error):
                model(**call, cache=cache)
            tail = model(tokens[:, 4:], cache=cache)
            assert_same(torch.cat([head, tail], dim=1), full)


def test_a_refusal_leaves_documents_as_they_were() -> None:
    model, tokens = model_of("absolute"), ids(length=6)
    documents = torch.tensor([[0, 0, 1, 1, 1, 1], [0, 1, 1, 1, 2, 2]])
    with torch.no_grad():
        full = model(tokens, document_ids=documents)
        cache = model.new_cache(B)
        head = model(tokens[:, :4], document_ids=documents[:, :4], cache=cache)
        with pytest.raises(PositionError, match="position"):
            model(ids(length=L), document_ids=torch.full((B, L), 5), positions=torch.arange(L) + 4, cache=cache)
        tail = model(tokens[:, 4:], document_ids=documents[:, 4:], cache=cache)
    assert_same(torch.cat([head, tail], dim=1), full)
