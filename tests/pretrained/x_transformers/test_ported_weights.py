"""The same keyword flags and the same weights give the same logits in x-transformers and here.

All parameters are perturbed first. Theirs always runs its eager attention.
"""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
import x_transformers as xt
from torch import Tensor

import x_positional as xp
from tests.support import rounding
from tests.support.perturbing import perturb
from tests.support.x_transformers_flags import (
    CAUSAL_ONLY,
    CROSS,
    OFF,
    PARTS,
    POSITIONS,
    TOKENS,
    build,
    form,
    inputs,
    keep,
    random_flags,
)
from x_positional import from_x_transformers
from x_positional.pretrained.x_transformers.keywords import head_order
from x_positional.schemes import NoPosition

Only = dict[str, Any] | None


def pair(kind: str, flags: dict[str, Any], ours: Only = None) -> tuple[Any, xp.TransformerWrapper]:
    """The x-transformers model, perturbed, and its conversion; `ours` are keywords for the conversion alone."""
    torch.manual_seed(5)
    model = build(xt, kind, flags)
    perturb(model)
    return model, from_x_transformers(form(kind, flags | (ours or {})), model.state_dict())


def check(theirs: Any, ours: xp.TransformerWrapper, crosses: bool = False) -> None:
    tokens, more = inputs(crosses)
    with torch.no_grad():
        expected, found = theirs(tokens, **more), ours(tokens, **more)
    assert_same(found, expected)


def assert_same(found: Tensor, expected: Tensor) -> None:
    assert expected.std() > 0.1, "logits this flat would hide a difference"
    rounding.assert_same(found, expected)


def without_positions(model: xp.TransformerWrapper) -> xp.TransformerWrapper:
    bare, scheme = deepcopy(model), NoPosition()
    bare.attn_layers.set_positions([scheme], [replace(kind, scheme=scheme) for kind in bare.attn_layers.kinds])
    return bare


def cases(table: dict[str, dict[str, Any]], *kinds: str) -> Any:
    """Each case for each kind of stack that supports it."""
    return pytest.mark.parametrize(
        ("kind", "flags"),
        [
            pytest.param(kind, flags, id=f"{kind}: {name}")
            for kind in kinds
            for name, flags in table.items()
            if kind == "Decoder" or not any(flags.get(flag) for flag in (*CAUSAL_ONLY, "attn_max_attend_past"))
        ],
    )


@cases(POSITIONS, "Decoder", "Encoder")
def test_every_position_scheme(kind: str, flags: dict[str, Any]) -> None:
    theirs, ours = pair(kind, flags)
    check(theirs, ours)
    tokens, _ = inputs()
    with torch.no_grad():
        gap = (ours(tokens) - without_positions(ours)(tokens)).abs().max()
    assert gap > 0.01, "the scheme changes too little here for a comparison to mean anything"


@cases(POSITIONS, "Decoder")
def test_every_position_scheme_with_flash_here(kind: str, flags: dict[str, Any]) -> None:
    check(*pair(kind, flags, ours={"attn_flash": True}))


@cases(PARTS, "Decoder", "Encoder")
def test_every_other_part(kind: str, flags: dict[str, Any]) -> None:
    check(*pair(kind, {"rotary_pos_emb": True} | flags))


@pytest.mark.parametrize("flags", [{"use_abs_pos_emb": False}, {"disable_abs_pos_emb": True}])
def test_no_positions(flags: dict[str, Any]) -> None:
    check(*pair("Decoder", flags))


@cases(CROSS, "Decoder", "CrossAttender")
def test_cross_attention(kind: str, flags: dict[str, Any]) -> None:
    if kind == "Decoder":
        flags = flags | {"cross_attend": True}
    check(*pair(kind, flags), crosses=True)


def test_a_bounded_past_is_for_self_attention() -> None:
    """x-transformers also bounds cross-attention, by distances between two sequences, unless it is turned off."""
    flags = {"cross_attend": True, "attn_max_attend_past": 3, "cross_attn_max_attend_past": None}
    check(*pair("Decoder", flags), crosses=True)


@pytest.mark.parametrize("slopes", [None, [0.9, 0.5, 0.3, 0.2, 0.1, 0.05]])
def test_alibi_with_grouped_heads_gets_the_slopes_of_its_order(slopes: list[float] | None) -> None:
    """Slopes are reordered with the grouped heads."""
    own = {} if slopes is None else {"rel_pos_kwargs": {"slopes": slopes}}
    check(*pair("Decoder", {"alibi_pos_bias": True, "attn_kv_heads": 2, **own, **OFF}))


def test_grouped_heads_come_in_another_order() -> None:
    assert head_order(6, 2) == [0, 2, 4, 1, 3, 5]
    assert head_order(6, 6) == head_order(6, 1) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["rotary", "alibi", "t5", "dynamic", "cope", "forgetting", "absolute", "polar"])
def test_right_padding(name: str) -> None:
    theirs, ours = pair("Decoder", POSITIONS[name])
    (tokens, _), mask = inputs(), keep(TOKENS, 17, 5, 12)
    with torch.no_grad():
        assert_same(ours(tokens, mask=mask)[mask], theirs(tokens, mask=mask)[mask])


@pytest.mark.parametrize("name", ["rotary", "alibi", "t5", "dynamic", "absolute", "polar"])
def test_right_padding_in_an_encoder(name: str) -> None:
    theirs, ours = pair("Encoder", POSITIONS[name])
    (tokens, _), mask = inputs(), keep(TOKENS, 17, 5, 12)
    with torch.no_grad():
        assert_same(ours(tokens, mask=mask)[mask], theirs(tokens, mask=mask)[mask])


@pytest.mark.parametrize("seed", range(60))
def test_flags_in_combination(seed: int) -> None:
    kind, flags = random_flags(seed)
    check(*pair(kind, flags))
