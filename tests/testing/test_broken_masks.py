"""The checks of given masks reject planners that get masks wrong."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from x_positional.attention import masks, visibility
from x_positional.schemes.context import IndexFn
from x_positional.testing import Sizes
from x_positional.testing.subject import Subject
from x_positional.testing.suite import run_check


def ignored(*_: Any) -> IndexFn:
    return lambda b, h, i, j: (b >= 0) & (j >= 0) & (i >= 0)


def causal_inside(q_index: Any, kv_index: Any, prefix: Any) -> IndexFn:
    return masks.causal(q_index, kv_index)


def shifted(by: int) -> Callable[..., IndexFn]:
    rule = masks.causal_after_prefix
    return lambda q_index, kv_index, prefix: rule(q_index, kv_index, prefix + by)


def inverted(pairs: Any, kv_index: Any) -> IndexFn:
    return lambda b, h, i, j: ~pairs[b, i, kv_index[b, j].clamp(min=0)]


def transposed(pairs: Any, kv_index: Any) -> IndexFn:
    return lambda b, h, i, j: pairs[b, kv_index[b, j].clamp(min=0), i]


RULES: list[tuple[str, str, Callable[..., IndexFn], str]] = [
    ("attention_masks", "given_pairs", ignored, "a mask of pairs"),
    ("attention_masks", "given_pairs", inverted, "a mask of pairs"),
    ("attention_masks", "given_pairs", transposed, "a mask of pairs"),
    ("prefix_lm", "causal_after_prefix", ignored, "a prefix of 6"),
    ("prefix_lm", "causal_after_prefix", causal_inside, "a prefix of 6"),
    ("prefix_lm", "causal_after_prefix", shifted(1), "a prefix of 6"),
    ("prefix_lm", "causal_after_prefix", shifted(-1), "a prefix of 6"),
]


@pytest.mark.parametrize(("check", "rule", "wrong", "message"), RULES)
def test_a_wrong_rule_is_rejected(
    monkeypatch: pytest.MonkeyPatch, check: str, rule: str, wrong: Callable[..., IndexFn], message: str
):
    monkeypatch.setattr(masks, rule, wrong)
    rejected(check, message)


def rejected(check: str, message: str) -> None:
    result = run_check(check, Subject("rope", Sizes(), torch.device("cpu")))
    assert result.verdict == "fail"
    assert message in result.detail
    assert result.margin is None or result.margin >= 10


def test_a_prefix_that_counts_padding_is_rejected(monkeypatch: pytest.MonkeyPatch):
    rule = visibility.with_visibility

    def counts_slots(layout: Any, *given: Any, **options: Any) -> Any:
        found = rule(layout, *given, **options)
        before = (layout.index >= 0).int().argmax(-1)
        return found if found.prefix is None else replace(found, prefix=(found.prefix - before).clamp(min=0))

    monkeypatch.setattr("x_positional.modules.stack.with_visibility", counts_slots)
    rejected("prefix_lm", "a prefix, padding left")


def test_columns_that_count_padding_are_rejected(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(visibility, "_by_index", lambda pairs, layout: pairs)
    rejected("attention_masks", "padding left")


def test_a_prefix_cut_by_the_cache_is_noticed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(visibility, "check_starts", lambda *_, **__: None)
    rejected("prefix_lm", "in a call after the first")
