"""The same keyword flags and the same weights give the same logits in x-transformers and here.

All parameters are perturbed first. Theirs always runs its eager attention.
"""

import random
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
from x_positional import from_x_transformers
from x_positional.pretrained.x_transformers.keywords import head_order
from x_positional.schemes import NoPosition

SIZES = {"num_tokens": 37, "max_seq_len": 24}
SHAPE = {"dim": 40, "depth": 2, "heads": 6, "attn_dim_head": 12}
TOKENS, CONTEXT, BATCH = 17, 11, 3

OFF = {"use_abs_pos_emb": False}
"""x-transformers keeps its absolute table beside ALiBi, CoPE, dynamic bias and forget gates; both are told to drop it."""

POSITIONS = {
    "rotary": {"rotary_pos_emb": True},
    "rotary, narrow": {"rotary_pos_emb": True, "rotary_emb_dim": 4},
    "rotary, whole head": {"rotary_pos_emb": True, "rotary_emb_dim": 12},
    "rotary, last heads": {"rotary_pos_emb": True, "rotate_num_heads": 4},
    "rotary, interpolated": {"rotary_pos_emb": True, "rotary_interpolation_factor": 3.0},
    "rotary, NTK": {"rotary_pos_emb": True, "rotary_base_rescale_factor": 4.0},
    "rotary beside absolute": {"rotary_pos_emb": True, "disable_abs_pos_emb": False},
    "xpos": {"rotary_xpos": True},
    "xpos, fast": {"rotary_xpos": True, "rotary_xpos_scale_base": 16, "rotary_emb_dim": 12},
    "polar": {"polar_pos_emb": True},
    "alibi": {"alibi_pos_bias": True, **OFF},
    "alibi beside absolute": {"alibi_pos_bias": True, "use_abs_pos_emb": True},
    "alibi, some heads": {"alibi_pos_bias": True, "alibi_num_heads": 3, **OFF},
    "alibi, slopes": {"alibi_pos_bias": True, "rel_pos_kwargs": {"slopes": [0.9, 0.5, 0.3, 0.2, 0.1, 0.05]}, **OFF},
    "t5": {"rel_pos_bias": True},
    "t5, few buckets": {"rel_pos_bias": True, "rel_pos_num_buckets": 8, "rel_pos_max_distance": 12},
    "dynamic": {"dynamic_pos_bias": True, **OFF},
    "dynamic, log": {"dynamic_pos_bias": True, "dynamic_pos_bias_log_distance": True, **OFF},
    "dynamic, norm": {"dynamic_pos_bias": True, "dynamic_pos_bias_norm": True, **OFF},
    "dynamic, shallow": {"dynamic_pos_bias": True, "dynamic_pos_bias_mlp_depth": 1, **OFF},
    "dynamic, deep": {
        "dynamic_pos_bias": True,
        "dynamic_pos_bias_log_distance": True,
        "dynamic_pos_bias_norm": True,
        "dynamic_pos_bias_mlp_depth": 3,
        **OFF,
    },
    "cope": {"attn_use_cope": True, "attn_cope_max_pos": 5, **OFF},
    "cope beside alibi": {"attn_use_cope": True, "alibi_pos_bias": True, **OFF},
    "forgetting": {"attn_data_dependent_alibi": True, **OFF},
    "forgetting beside rotary": {
        "attn_data_dependent_alibi": True,
        "attn_data_dependent_alibi_kwargs": {"bias_init": 1.0},
        "rotary_pos_emb": True,
    },
    "absolute": {},
    "absolute, unit length": {"l2norm_embed": True},
    "scaled sinusoidal": {"scaled_sinu_pos_emb": True},
    "scaled sinusoidal, narrow": {"scaled_sinu_pos_emb": True, "emb_dim": 20},
}

CAUSAL_ONLY = ("rotary_xpos", "attn_use_cope", "attn_data_dependent_alibi")

PARTS = {
    "ff_glu": {"ff_glu": True},
    "ff_glu, no bias": {"ff_glu": True, "ff_no_bias": True},
    "ff_swish": {"ff_swish": True, "ff_glu": True, "ff_mult": 2.5},
    "relu squared": {"ff_relu_squared": True},
    "no bias": {"ff_no_bias": True},
    "rmsnorm": {"use_rmsnorm": True},
    "rmsnorm, no offset": {"use_rmsnorm": True, "norm_add_unit_offset": False},
    "scalenorm": {"use_scalenorm": True},
    "simple rmsnorm": {"use_simple_rmsnorm": True},
    "layernorm, no offset": {"norm_add_unit_offset": False},
    "post norm": {"pre_norm": False},
    "sandwich norm": {"sandwich_norm": True},
    "no final norm": {"pre_norm_has_final_norm": False},
    "qk_norm": {"attn_qk_norm": True},
    "qk_norm, scale": {"attn_qk_norm": True, "attn_qk_norm_scale": 3.0},
    "qk_rmsnorm": {"attn_qk_rmsnorm": True},
    "qk_rmsnorm of small queries": {"attn_qk_rmsnorm": True, "pre_norm": False},
    "softclamp": {"attn_softclamp_logits": True, "attn_logit_softclamp_value": 0.5},
    "sinks": {"attn_head_learned_sink": True},
    "past": {"attn_max_attend_past": 4},
    "grouped": {"attn_kv_heads": 2},
    "grouped, per head": {"attn_kv_heads": 3, "attn_head_learned_sink": True, "attn_qk_rmsnorm": True},
    "one key head": {"attn_one_kv_head": True},
    "tied": {"tie_embedding": True},
    "tied, scale": {"tie_embedding": True, "tie_embedding_scale": 0.7},
    "narrow embedding": {"emb_dim": 20},
    "unit embedding": {"l2norm_embed": True},
    "normed embedding": {"post_emb_norm": True},
    "few logits": {"logits_dim": 5},
}

CROSS = {
    "cross_attend": {},
    "cross, rotary": {"rotary_pos_emb": True},
    "cross, polar": {"polar_pos_emb": True},
    "cross, alibi": {"alibi_pos_bias": True, **OFF},
    "cross, t5": {"rel_pos_bias": True},
    "cross, grouped": {
        "attn_kv_heads": 3,
        "rel_pos_bias": True,
        "attn_qk_rmsnorm": True,
        "attn_head_learned_sink": True,
    },
    "cross, softclamp": {"attn_softclamp_logits": True, "attn_logit_softclamp_value": 0.5},
    "cross, post norm": {"pre_norm": False, "use_rmsnorm": True},
    "cross, sandwich norm": {"sandwich_norm": True, "use_scalenorm": True},
    "cross, qk_norm": {"attn_qk_norm": True, "ff_glu": True},
}

WRAPPER = {
    "use_abs_pos_emb",
    "scaled_sinu_pos_emb",
    "emb_dim",
    "l2norm_embed",
    "post_emb_norm",
    "tie_embedding",
    "tie_embedding_scale",
    "logits_dim",
}

Only = dict[str, Any] | None


def build(library: Any, kind: str, flags: dict[str, Any]) -> Any:
    wrapper = {name: value for name, value in flags.items() if name in WRAPPER}
    layers = {name: value for name, value in flags.items() if name not in WRAPPER}
    stack = getattr(library, kind)(**SHAPE, verbose=False, **layers)
    return library.TransformerWrapper(**SIZES, attn_layers=stack, **wrapper).eval()


def form(kind: str, flags: dict[str, Any]) -> dict[str, Any]:
    """The form of a model, as `from_x_transformers` takes it."""
    wrapper = {name: value for name, value in flags.items() if name in WRAPPER}
    layers = {name: value for name, value in flags.items() if name not in WRAPPER}
    return {"TransformerWrapper": {**SIZES, **wrapper, "attn_layers": {kind: {**SHAPE, **layers}}}}


def pair(kind: str, flags: dict[str, Any], ours: Only = None) -> tuple[Any, xp.TransformerWrapper]:
    """The x-transformers model, perturbed, and its conversion; `ours` are keywords for the conversion alone."""
    torch.manual_seed(5)
    model = build(xt, kind, flags)
    perturb(model)
    return model, from_x_transformers(form(kind, flags | (ours or {})), model.state_dict())


def inputs(crosses: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    tokens = torch.randint(0, SIZES["num_tokens"], (BATCH, TOKENS), generator=generator)
    if not crosses:
        return tokens, {}
    context = torch.randn(BATCH, CONTEXT, SHAPE["dim"], generator=generator)
    return tokens, {"context": context, "context_mask": keep(CONTEXT, 11, 4, 7)}


def keep(length: int, *lengths: int) -> Tensor:
    """[B length] bool, True for the first so many tokens of each row."""
    return torch.arange(length) < torch.tensor(lengths)[:, None]


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


def random_flags(seed: int) -> tuple[str, dict[str, Any]]:
    """A random choice from each group of independent flags."""
    draw = random.Random(seed)
    kind = draw.choice(["Decoder", "Decoder", "Encoder"])
    groups = [
        [{}, {"ff_glu": True}, {"ff_swish": True, "ff_glu": True}, {"ff_relu_squared": True}, {"ff_no_bias": True}],
        [{}, {"use_rmsnorm": True}, {"use_scalenorm": True}, {"use_simple_rmsnorm": True}],
        [{}, {"pre_norm": False}, {"sandwich_norm": True}, {"pre_norm_has_final_norm": False}],
        [{}, {"attn_qk_norm": True, "attn_qk_norm_scale": 3.0}, {"attn_qk_rmsnorm": True}],
        [{}, {"attn_softclamp_logits": True, "attn_logit_softclamp_value": 0.7}],
        [{}, {"attn_head_learned_sink": True}],
        [{}, {"attn_kv_heads": 2}, {"attn_kv_heads": 3}, {"attn_one_kv_head": True}],
        [{}, {"attn_max_attend_past": 5}] if kind == "Decoder" else [{}],
        [{}, {"emb_dim": 20}, {"tie_embedding": True}],
        [{}, {"post_emb_norm": True}],
    ]
    flags = {name: value for group in groups for name, value in draw.choice(group).items()}
    grouped = "attn_kv_heads" in flags or "attn_one_kv_head" in flags
    unlike = {"alibi_num_heads", "polar_pos_emb", "rotate_num_heads"} if grouped else set()
    unlike |= set(CAUSAL_ONLY) if kind == "Encoder" else set()
    fit = [position for position in POSITIONS.values() if not unlike & set(position)]
    return kind, flags | {name: value for name, value in draw.choice(fit).items() if name != "emb_dim"}


@pytest.mark.parametrize("seed", range(60))
def test_flags_in_combination(seed: int) -> None:
    kind, flags = random_flags(seed)
    check(*pair(kind, flags))
