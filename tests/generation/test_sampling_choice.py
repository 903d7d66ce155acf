"""Logits filters by name, as functions or as a list of both, and the messages of invalid choices."""

import math

import pytest
import torch
from torch import Tensor

from x_positional.generation.sampling import FILTERS, min_p, resolve_filters, top_a, top_k, top_p, typical

LOGITS = torch.randn(4, 60, generator=torch.Generator().manual_seed(11))


def applied(*arguments: object) -> Tensor:
    logits = LOGITS
    for keep in resolve_filters(*arguments):
        logits = keep(logits)
    return logits


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((None,), LOGITS),
        ((None, {}), LOGITS),
        (([], {}), LOGITS),
        (([], []), LOGITS),
        (("top_k", {}), top_k(LOGITS)),
        (("top_k", None), top_k(LOGITS)),
        (("top_k", {"k": 7}), top_k(LOGITS, k=7)),
        ((top_p, {"thres": 0.3}), top_p(LOGITS, thres=0.3)),
        ((lambda logits: logits * 2, {}), LOGITS * 2),
        ((lambda logits, factor: logits * factor, {"factor": 3}), LOGITS * 3),
        ((lambda logits, **options: logits * options["factor"], {"factor": 3}), LOGITS * 3),
        ((torch.relu, {}), LOGITS.relu()),
        ((["top_k", "top_p"],), top_p(top_k(LOGITS))),
        ((("top_k", "top_p"), {"top_p": {"thres": 0.2}}), top_p(top_k(LOGITS), thres=0.2)),
        ((["top_k", "typical"], [{"k": 9}, {"mass": 0.3}]), typical(top_k(LOGITS, k=9), mass=0.3)),
        ((["top_k", lambda logits: logits + 1], [{"k": 9}, None]), top_k(LOGITS, k=9) + 1),
        (([lambda logits: logits + 1, "top_k"], {"top_k": {"k": 9}}), top_k(LOGITS, k=9) + 1),
    ],
)
def test_every_spelling_of_the_choice(arguments: tuple, expected: Tensor) -> None:
    assert torch.equal(applied(*arguments), expected)


def test_a_registered_filter_is_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FILTERS, "double", lambda logits: logits * 2)
    assert torch.equal(applied("double"), LOGITS * 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("top_q", {}), "unknown filter 'top_q'; did you mean 'top_p'?"),
        ((3, {}), "3 is not a filter; pass a function or one of top_k, top_p, min_p, top_a, typical"),
        (("nucleus", {}), "unknown filter 'nucleus'; there are: min_p, top_a, top_k, top_p, typical"),
        ((None, {"k": 3}), "None is not a filter; pass"),
        (("top_p", {"treshold": 0.9}), "top_p has no option 'treshold'"),
        (("top_p", {"thresh": 0.9}), "top_p has no option 'thresh'; did you mean 'thres'?"),
        ((top_k, {"n": 3}), "top_k has no option 'n'; there are: frac_num_tokens, k"),
        ((lambda logits: logits, {"n": 3}), "has no option 'n'; it has none"),
        ((lambda logits, n: logits, {}), "needs the option 'n'"),
        (("top_p", {"thres": 90}), "top_p: thres=90 must be a finite number from 0 to 1"),
        (("top_p", {"thres": -0.1}), "thres=-0.1 must be"),
        (("top_p", {"thres": math.nan}), "thres=nan must be"),
        (("top_p", {"thres": None}), "thres=None must be"),
        (("top_p", {"thres": True}), "thres=True must be"),
        (("top_p", {"thres": "0.9"}), "thres='0.9' must be"),
        (("top_p", {3: 4}), "top_p has no option 3; there are: thres"),
        (("top_k", {"k": 0}), "top_k: k=0 must be an integer of at least 1, or None."),
        (("top_k", {"k": 2.5}), "k=2.5 must be"),
        (("top_k", {"frac_num_tokens": 1.5}), "frac_num_tokens=1.5 must be"),
        (("min_p", {"min_p": 1.1}), "min_p: min_p=1.1 must be a finite number from 0 to 1"),
        (("top_a", {"min_p_pow": -1}), "top_a: min_p_pow=-1 must be a finite number of at least 0."),
        (("top_a", {"min_p_ratio": 2}), "min_p_ratio=2 must be"),
        (("typical", {"mass": 1.01}), "typical: mass=1.01 must be"),
        (("top_p", [{}]), "the options of 'top_p' are [{}]; pass a dict {option: value}"),
        ((["top_p", "top_k"], [{}]), "filter_kwargs=[{}] does not match 2 filters"),
        ((["top_p"], 5), "filter_kwargs=5 does not match 1 filters"),
        ((["top_p"], {"top_p": 0.9}), "the options of 'top_p' are 0.9; pass a dict {option: value}"),
        (
            (["top_p"], {"thres": 0.9}),
            "filter_kwargs has 'thres', which is not a filter of the list (there are: top_p); for a list, pass {filter name:",
        ),
        (
            (["top_p"], {"topp": {}}),
            "filter_kwargs has 'topp', which is not a filter of the list (did you mean 'top_p'?)",
        ),
    ],
)
def test_an_invalid_choice_is_rejected_with_a_message(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match="invalid logits filters:") as refusal:
        resolve_filters(*arguments)
    assert message in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 2, "one problem, one line"


def test_all_problems_are_named_at_once() -> None:
    with pytest.raises(ValueError, match="invalid logits filters:") as refusal:
        resolve_filters(
            ["topk", "top_p", 3, "min_p"], {"top_p": {"thres": 2, "k": 1}, "min_p": {"min_p": -1}, "mass": {}}
        )
    message = str(refusal.value)
    for word in ("unknown filter 'topk'", "thres=2", "no option 'k'", "3 is not a filter", "min_p=-1", "has 'mass'"):
        assert word in message
    assert len(message.splitlines()) == 7


@pytest.mark.parametrize(
    ("filter_fn", "options"),
    [
        (top_k, {"k": 0}),
        (top_k, {"frac_num_tokens": 5}),
        (top_p, {"thres": 1.5}),
        (min_p, {"min_p": -1}),
        (top_a, {"min_p_pow": -1}),
        (top_a, {"min_p_ratio": 2}),
        (typical, {"mass": math.nan}),
    ],
)
def test_a_direct_call_refuses_the_same_values(filter_fn, options: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* must be a"):
        filter_fn(LOGITS, **options)
