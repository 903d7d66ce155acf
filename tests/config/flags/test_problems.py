"""Flags of the layers that cannot be had: refused, unknown, contradictory, or without effect; all of them at once."""

from itertools import combinations

import pytest

from x_positional.config.flags import layers_from_flags
from x_positional.config.flags.position import DETAILS, SWITCHES
from x_positional.config.flags.table import PLACES
from x_positional.errors import FlagError

SIZE = {"dim": 96, "depth": 2}
LAYERS = PLACES["AttentionLayers"]
BIASES = ("alibi_pos_bias", "rel_pos_bias", "dynamic_pos_bias", "attn_data_dependent_alibi")


def decoder(**flags):
    return layers_from_flags("decoder", {**SIZE, **flags})


def encoder(**flags):
    return layers_from_flags("encoder", {**SIZE, **flags})


def problems(call, **flags):
    with pytest.raises(FlagError) as error:
        call(**flags)
    assert isinstance(error.value, TypeError)
    assert all(problem in str(error.value) for problem in error.value.problems)
    return error.value.problems


def only_problem(call, **flags):
    found = problems(call, **flags)
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"rotary_pos_emb": True, "polar_pos_emb": True}, ("rotary_pos_emb", "polar_pos_emb")),
        ({"rotary_xpos": True, "polar_pos_emb": True}, ("rotary_xpos", "polar_pos_emb")),
        *(({a: True, b: True}, (a, b)) for a, b in combinations(BIASES, 2)),
        ({"position": "rope", "alibi_pos_bias": True}, ("position=", "alibi_pos_bias=True")),
        ({"position": "rope", "cope": True}, ("position=", "cope=True")),
        ({"position": "rope", "rotary_emb_dim": 8}, ("rotary_emb_dim=8", "position=")),
        ({"position": "rope", "disable_abs_pos_emb": False}, ("disable_abs_pos_emb=False", "position='rope'")),
        ({"position": ["absolute"], "disable_abs_pos_emb": True}, ("disable_abs_pos_emb=True", "contradicts")),
        ({"rotary_pos_emb": True, "rotate_num_heads": 2, "attn_rotate_num_heads": 3}, ("two spellings of one flag",)),
        ({"rotary_pos_emb": True, "attn_dim_head": 6}, ("half of head_dim=6 is odd", "rotary_emb_dim")),
        ({"alibi_pos_bias": True, "rel_pos_kwargs": {"learned": 1}}, ("learned=1", "only slopes")),
        (
            {"attn_data_dependent_alibi": True, "attn_data_dependent_alibi_kwargs": {"post_log_scale": 2.0}},
            ("post_log_scale=2.0", "only bias_init"),
        ),
        ({"use_rmsnorm": True, "use_scalenorm": True}, ("use_rmsnorm", "use_scalenorm", "exclude")),
        ({"use_rmsnorm": True, "norm": "layer"}, ("use_rmsnorm=True", "norm='layer'", "norm.kind")),
        ({"pre_norm": False, "sandwich_norm": True}, ("pre_norm=False", "sandwich_norm=True")),
        ({"sandwich_norm": True, "norm_place": "pre"}, ("sandwich_norm=True", "norm_place='pre'")),
        ({"pre_norm_has_final_norm": False, "final_norm": True}, ("pre_norm_has_final_norm=False", "final_norm=True")),
        ({"attn_qk_norm": True, "attn_qk_rmsnorm": True}, ("attn_qk_norm", "attn_qk_rmsnorm", "exclude")),
        ({"attn_qk_norm_scale": 4.0}, ("attn_qk_norm_scale=4.0", "attn_qk_norm=True")),
        ({"attn_logit_softclamp_value": 4.0}, ("attn_logit_softclamp_value=4.0", "attn_softclamp_logits=True")),
        ({"ff_swish": True, "ff_relu_squared": True}, ("ff_swish", "ff_relu_squared", "exclude")),
        ({"attn_one_kv_head": True, "attn_kv_heads": 2}, ("attn_kv_heads=2", "attn_one_kv_head=True", "kv_heads")),
        ({"attn_max_attend_past": 3, "window": 3}, ("attn_max_attend_past=3", "window=3")),
        ({"attn_dim_head": 32, "head_dim": 64}, ("attn_dim_head=32", "head_dim=64")),
        ({"attn_dropout": 0.1, "cross_attn_dropout": 0.0}, ("cross_attn_dropout=0.0", "`attn_dropout`")),
        ({"attn_dropout": (0.1, 0.2)}, ("one value for all layers",)),
        ({"attn_max_attend_past": (3, 4)}, ("one value for all layers",)),
        ({"attn_max_attend_past": "3"}, ("must be an integer",)),
        ({"rotary_pos_emb": "yes"}, ("rotary_pos_emb='yes'", "must be a bool")),
        ({"causal": False}, ("causal=False", "`Encoder`")),
        ({"only_cross": True, "cross_attend": True}, ("only_cross=True", "`CrossAttender`")),
    ],
)
def test_flags_that_make_no_sense_together(flags, named):
    text = only_problem(decoder, **flags)
    assert all(word in text for word in named), text


@pytest.mark.parametrize("name", sorted(name for names in DETAILS.values() for name in names))
def test_a_detail_of_a_scheme_needs_its_switch(name):
    switches = next(SWITCHES[family] for family, names in DETAILS.items() if name in names)
    default = LAYERS[name].default
    decoder(**{name: default})
    value = {"slopes": [1.0]} if default == {} else (not default if isinstance(default, bool) else (default or 0) + 8)
    text = only_problem(decoder, **{name: value})
    assert f"{name}={value!r}" in text
    assert f"{switches[0]}=True" in text


def test_the_decay_of_xpos_needs_xpos():
    assert "rotary_xpos=True" in only_problem(decoder, rotary_pos_emb=True, rotary_xpos_scale_base=64)


REFUSED = [name for name, flag in LAYERS.items() if flag.verdict == "refused"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_flag_may_ask_for_nothing_and_no_more(name):
    flag = LAYERS[name]
    if name != "causal":
        assert decoder(**{name: flag.default}) == decoder()
    text = only_problem(decoder, **{name: object()})
    assert text.startswith(f"{name}=<object")
    assert flag.note in text


def test_nothing_is_asked_by_falsy_values_and_by_repeating_attn_flags():
    fields = encoder(causal=False, attn_num_mem_kv=None, shift_tokens=0.0, attn_flash=True, cross_attn_flash=True)
    assert fields == encoder(attn_flash=True)
    assert decoder(causal=True) == decoder()


def test_the_window_of_an_encoder_is_another_one():
    assert "window=4" in only_problem(encoder, attn_max_attend_past=3)


def test_cross_attender():
    fields = layers_from_flags("cross_attender", {**SIZE, "cross_attend": True, "only_cross": True})
    assert fields == {"kind": "cross_attender", "cross_attend": True, **SIZE}
    found = problems(
        lambda **flags: layers_from_flags("cross_attender", flags), **SIZE, cross_attend=False, only_cross=False
    )
    assert len(found) == 2


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("rotery_pos_emb", "did you mean rotary_pos_emb?"),
        ("dim_head", "did you mean attn_dim_head?"),
        ("glu", "did you mean ff_glu?"),
        ("rmsnorm", "did you mean use_rmsnorm?"),
        ("emb_dropuot", "did you mean emb_dropout of TransformerWrapper?"),
        ("tie_embedding", "it belongs to TransformerWrapper."),
        ("head", "it belongs to TransformerWrapper; or did you mean heads?"),
        ("xyzzy", "docs/migration.md"),
    ],
)
def test_unknown_flags_answer_with_what_was_meant(name, hint):
    text = only_problem(decoder, **{name: 1})
    assert text.startswith(f"{name} is not a flag")
    assert hint in text


def test_every_problem_is_reported_at_once():
    flags = {
        "rotery_pos_emb": True,
        "macaron": True,
        "alibi_num_heads": 3,
        "rel_pos_bias": True,
        "dynamic_pos_bias": True,
    }
    with pytest.raises(FlagError, match=r"Encoder: 5 problems with its flags") as error:
        layers_from_flags("encoder", {"dim": 8, **flags})
    assert len(error.value.problems) == 5
    for word in (
        "rotery_pos_emb",
        "macaron",
        "alibi_num_heads",
        "rel_pos_bias and dynamic_pos_bias",
        "depth is missing",
    ):
        assert word in str(error.value)


def test_an_unknown_kind_is_a_problem():
    assert "'prefix'" in only_problem(lambda **flags: layers_from_flags("prefix", flags), **SIZE)
