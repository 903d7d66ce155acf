"""Capabilities: where each scheme acts follows from its hooks, and combining them forgets no field."""

import re
from dataclasses import fields, replace
from itertools import combinations

import pytest

from x_positional import Chain, PositionScheme
from x_positional.errors import ArgumentError
from x_positional.schemes.base import Capabilities, Dims
from x_positional.schemes.compose import chain_problems
from x_positional.schemes.registry import REGISTRY, SchemeConfig

DIMS = Dims(dim=64, heads=4, kv_heads=4, head_dim=16, causal=True, embed_dim=64, max_seq_len=128)
ACTS_ON = {
    "absolute": ("embeddings",),
    "sinusoidal": ("embeddings",),
    "scaled_sinusoidal": ("embeddings",),
    "rope": ("queries", "keys"),
    "xpos": ("queries", "keys"),
    "polar": ("queries", "keys"),
    "axial": ("queries", "keys"),
    "mixed": ("queries", "keys"),
    "temperature": ("queries",),
    "log_n": ("queries",),
    "alibi": ("bias",),
    "t5": ("bias",),
    "dynamic": ("bias",),
    "forgetting": ("bias",),
    "relative_logits": ("bias",),
    "gated_t5": ("bias",),
    "cable": ("bias",),
    "kerple": ("bias",),
    "sandwich": ("bias",),
    "fire": ("bias",),
    "shaw": ("bias",),
    "transformer_xl": ("queries", "bias"),
    "ssmax": ("queries",),
    "deberta": ("bias",),
    "cope": ("rows",),
    "none": (),
}
NAMES = sorted(ACTS_ON)
WEAK = Capabilities(
    acts_on=("embeddings", "queries", "keys", "bias", "rows"),
    kernel="rows",
    kv_cacheable=False,
    unbounded=False,
    absolute=True,
    causal_only=True,
    counts_keys=True,
    continuous=False,
    uses_positions=True,
    prefix_consistent=False,
    reads_layer=True,
)
STRONG = Capabilities(
    acts_on=(),
    kernel="fused",
    kv_cacheable=True,
    unbounded=True,
    absolute=False,
    causal_only=False,
    counts_keys=False,
    continuous=True,
    uses_positions=False,
    prefix_consistent=True,
    reads_layer=False,
)


def built(name: str) -> PositionScheme:
    return REGISTRY[name]().build(DIMS)


def test_every_scheme_of_the_package_is_listed() -> None:
    own = {n for n in SchemeConfig.names() if REGISTRY[n].__module__.startswith("x_positional.")}
    assert own == set(ACTS_ON)


@pytest.mark.parametrize("name", NAMES)
def test_where_a_scheme_acts_follows_from_its_hooks(name: str) -> None:
    caps = built(name).capabilities()
    assert caps.acts_on == ACTS_ON[name]
    assert caps.kernel == ("rows" if "rows" in caps.acts_on else "bias" if "bias" in caps.acts_on else "fused")
    assert caps.tells_order == (name not in ("none", "temperature", "log_n", "ssmax"))


@pytest.mark.parametrize("name", NAMES)
def test_no_parameter_is_a_scalar(name: str) -> None:
    """torch's fully_shard divides parameters along their first dimension, and refuses those without one."""
    assert [key for key, parameter in built(name).named_parameters() if parameter.ndim == 0] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_scheme_combined_with_nothing_is_itself(name: str) -> None:
    scheme = built(name)
    assert Capabilities.combined([scheme.capabilities()]) == scheme.capabilities()
    assert Chain(scheme).capabilities() == scheme.capabilities()


@pytest.mark.parametrize("field", [f.name for f in fields(Capabilities)])
def test_no_field_is_forgotten(field: str) -> None:
    """Of a weak and a strong scheme the weak one decides, in every field and in either order."""
    for parts in ([WEAK, STRONG], [STRONG, WEAK]):
        assert getattr(Capabilities.combined(parts), field) == getattr(WEAK, field)
    assert getattr(Capabilities.combined([STRONG, STRONG]), field) == getattr(STRONG, field)
    assert getattr(WEAK, field) != getattr(STRONG, field)


@pytest.mark.parametrize("pair", list(combinations(NAMES, 2)), ids="+".join)
def test_order_does_not_matter(pair: tuple[str, str]) -> None:
    parts = [built(name) for name in pair]
    if found := chain_problems(parts):
        with pytest.raises(ArgumentError, match=re.escape(found[0])):
            Chain(*parts)
        return
    found = Chain(*parts).capabilities()
    assert found == Chain(*reversed(parts)).capabilities()
    assert set(found.acts_on) == {place for part in parts for place in part.capabilities().acts_on}


def test_what_cannot_tell_order_needs_help_or_a_causal_mask() -> None:
    still, ordered = replace(STRONG, causal_only=True), replace(STRONG, acts_on=("bias",), kernel="bias")
    undefined = replace(ordered, causal_only=True)
    assert Capabilities.combined([still, still]).causal_only
    assert not Capabilities.combined([still, ordered]).causal_only
    assert Capabilities.combined([undefined, ordered]).causal_only


def test_float_positions_count_for_schemes_that_read_positions() -> None:
    whole = replace(STRONG, continuous=False)
    reading = replace(STRONG, uses_positions=True)
    assert Capabilities.combined([whole, reading]).continuous
    assert not Capabilities.combined([whole, whole]).continuous
    assert not Capabilities.combined([replace(whole, uses_positions=True), reading]).continuous


def test_a_chain_needs_a_scheme() -> None:
    with pytest.raises(ArgumentError, match="at least one scheme"):
        Chain()
