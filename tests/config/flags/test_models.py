"""Flags of the wrappers: the absolute table, the head, encoder-decoder prefixes, and random flags of all kinds."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.draws import draws
from x_positional.config.flags import (
    check_flags,
    continuous_from_flags,
    layers_from_flags,
    model_from_flags,
    xtransformer_from_flags,
)
from x_positional.config.flags.entry import REQUIRED
from x_positional.config.flags.table import PLACES
from x_positional.config.layers import LayersConfig
from x_positional.config.models import ContinuousConfig, ModelConfig
from x_positional.errors import FlagError
from x_positional.schemes import Rope

SIZE = {"dim": 96, "depth": 2}
ABSOLUTE, SCALED, NONE = {"kind": "absolute"}, {"kind": "scaled_sinusoidal"}, {"kind": "none"}
ALIBI, ROPE = {"kind": "alibi", "variant": "causal"}, {"kind": "rope", "dim": 32, "interleaved": True}


def model(**flags):
    return model_from_flags(11, 64, {"kind": "decoder", **SIZE, **flags})


def nested(**flags):
    """The same, with the layers' flags read first, as a wrapper around a finished Decoder does."""
    own = {name: flags.pop(name) for name in list(flags) if name in PLACES["TransformerWrapper"]}
    return model_from_flags(11, 64, {**own, "attn_layers": layers_from_flags("decoder", {**SIZE, **flags})})


def only_problem(call, **flags):
    with pytest.raises(FlagError) as error:
        call(**flags)
    assert len(error.value.problems) == 1, error.value.problems
    return error.value.problems[0]


@pytest.mark.parametrize("build", [model, nested])
@pytest.mark.parametrize(
    ("flags", "position"),
    [
        ({}, None),
        ({"use_abs_pos_emb": True}, [ABSOLUTE]),
        ({"use_abs_pos_emb": False}, [NONE]),
        ({"scaled_sinu_pos_emb": True}, [SCALED]),
        ({"scaled_sinu_pos_emb": True, "use_abs_pos_emb": True}, [SCALED]),
        ({"rotary_pos_emb": True}, [ROPE]),
        ({"rotary_pos_emb": True, "use_abs_pos_emb": False}, [ROPE]),
        ({"rotary_pos_emb": True, "disable_abs_pos_emb": False}, [ABSOLUTE, ROPE]),
        ({"rotary_pos_emb": True, "disable_abs_pos_emb": False, "use_abs_pos_emb": True}, [ABSOLUTE, ROPE]),
        ({"rotary_pos_emb": True, "disable_abs_pos_emb": False, "scaled_sinu_pos_emb": True}, [SCALED, ROPE]),
        ({"alibi_pos_bias": True}, [ALIBI]),
        ({"alibi_pos_bias": True, "use_abs_pos_emb": False}, [ALIBI]),
        ({"alibi_pos_bias": True, "use_abs_pos_emb": True}, [ABSOLUTE, ALIBI]),
        ({"alibi_pos_bias": True, "scaled_sinu_pos_emb": True}, [SCALED, ALIBI]),
        ({"cope": True, "use_abs_pos_emb": True}, [ABSOLUTE, {"kind": "cope", "max_pos": 16}]),
        ({"disable_abs_pos_emb": True, "use_abs_pos_emb": False}, [NONE]),
        ({"position": ["absolute", "rope"], "use_abs_pos_emb": True}, ["absolute", "rope"]),
    ],
)
def test_an_absolute_table_is_on_only_where_it_is_asked_for(build, flags, position):
    fields = build(**flags)
    assert fields["layers"].get("position") == position
    ModelConfig.model_validate(fields)


@pytest.mark.parametrize("build", [model, nested])
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"rotary_pos_emb": True, "use_abs_pos_emb": True}, ("use_abs_pos_emb=True", "disable_abs_pos_emb=False")),
        ({"rel_pos_bias": True, "scaled_sinu_pos_emb": True}, ("scaled_sinu_pos_emb=True", "'scaled_sinusoidal'")),
        ({"position": "rope", "use_abs_pos_emb": True}, ("use_abs_pos_emb=True", "position='rope'")),
        ({"position": Rope(), "scaled_sinu_pos_emb": True}, ("scaled_sinu_pos_emb=True", "position=Rope")),
        ({"position": "absolute", "use_abs_pos_emb": False}, ("use_abs_pos_emb=False", "contradicts")),
        (
            {"scaled_sinu_pos_emb": True, "use_abs_pos_emb": False},
            ("use_abs_pos_emb=False", "scaled_sinu_pos_emb=True"),
        ),
        ({"alibi_pos_bias": True, "disable_abs_pos_emb": False, "use_abs_pos_emb": False}, ("contradicts",)),
        ({"disable_abs_pos_emb": True, "use_abs_pos_emb": True}, ("use_abs_pos_emb=True",)),
        ({"disable_abs_pos_emb": True, "scaled_sinu_pos_emb": True}, ("scaled_sinu_pos_emb=True",)),
        ({"tie_embedding_scale": 0.5}, ("tie_embedding_scale=0.5", "tie_embedding=True")),
        ({"tie_embedding": True, "logits_dim": 12}, ("logits_dim=12", "num_tokens=11")),
        ({"recycling": True}, ("recycling=True is refused",)),
        ({"emb_dropuot": 0.1}, ("did you mean emb_dropout",)),
    ],
)
def test_flags_of_the_wrapper_that_make_no_sense(build, flags, named):
    text = only_problem(build, **flags)
    assert all(word in text for word in named), text


def test_fields_of_the_wrapper():
    own = {"emb_dim": 32, "emb_dropout": 0.1, "post_emb_norm": True, "l2norm_embed": True}
    head = {"tie_embedding": True, "tie_embedding_scale": 0.5}
    layers = {"kind": "decoder", **SIZE}
    assert model(**own, **head) == {"num_tokens": 11, "max_seq_len": 64, **own, **head, "layers": layers}
    assert model(logits_dim=5)["logits_dim"] == 5
    assert model(tie_embedding=True, logits_dim=11)["logits_dim"] == 11


def test_sizes_given_twice_must_agree():
    assert model(num_tokens=11) == model()
    assert "num_tokens is 11" in only_problem(model, num_tokens=12)
    assert "use_abs_pos_emb=False" in only_problem(lambda: model_from_flags(11, 0, {"kind": "decoder", **SIZE}))


def test_problems_of_wrapper_and_layers_come_together():
    with pytest.raises(FlagError, match="TransformerWrapper: 3 problems") as error:
        model(recycling=True, macaron=True, emb_dropuot=0.1)
    assert {p.split("=")[0].split()[0] for p in error.value.problems} == {"recycling", "macaron", "emb_dropuot"}


def test_layers_are_fields():
    assert "as a dict" in only_problem(lambda: model_from_flags(11, 64, {"attn_layers": 3}))
    assert "kind=None" in only_problem(lambda: model_from_flags(11, 64, SIZE))


def test_continuous_wrapper():
    flags = {"kind": "encoder", **SIZE, "max_seq_len": 9, "dim_in": 3, "dim_out": 4, "emb_dropout": 0.1}
    fields = continuous_from_flags({**flags, "use_abs_pos_emb": True})
    assert fields.pop("layers") == {"kind": "encoder", **SIZE, "position": [ABSOLUTE]}
    assert fields == {"max_seq_len": 9, "dim_in": 3, "dim_out": 4, "emb_dropout": 0.1}
    ContinuousConfig.model_validate(continuous_from_flags(flags))
    assert "position" not in continuous_from_flags({"kind": "encoder", **SIZE})["layers"]
    text = only_problem(lambda: continuous_from_flags({**flags, "probabilistic": True}))
    assert "twice the `dim_out`" in text


def sides(**flags):
    sizes = {
        f"{side}_{name}": value
        for side in ("enc", "dec")
        for name, value in {"num_tokens": 7, "max_seq_len": 16, "depth": 2}.items()
    }
    return xtransformer_from_flags(96, {**sizes, **flags})


def test_both_sides_of_an_encoder_decoder():
    fields = sides(
        enc_rotary_pos_emb=True, dec_alibi_pos_bias=True, dec_heads=4, dec_tie_embedding=True, tie_token_emb=True
    )
    size = {"num_tokens": 7, "max_seq_len": 16}
    assert fields == {
        "tie_token_emb": True,
        "ignore_index": -100,
        "pad_value": 0,
        "encoder": {**size, "layers": {"kind": "encoder", **SIZE, "position": [ROPE]}},
        "decoder": {
            **size,
            "tie_embedding": True,
            "layers": {"kind": "decoder", **SIZE, "heads": 4, "cross_attend": True, "position": [ALIBI]},
        },
    }
    assert sides(ignore_index=-1, pad_value=3)["pad_value"] == 3
    assert sides(dec_cross_attend=True, enc_cross_attend=False) == sides()
    for side in ("encoder", "decoder"):
        ModelConfig.model_validate(fields[side])


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"depth": 2}, ("enc_depth, dec_depth",)),
        ({"rotary_pos_emb": True}, ("enc_rotary_pos_emb",)),
        ({"enc_rotery_pos_emb": True}, ("enc_rotery_pos_emb", "did you mean enc_rotary_pos_emb?")),
        ({"dec_dim": 5}, ("dec_dim=5", "both sides share dim=")),
        ({"enc_kind": "decoder"}, ("enc_kind",)),
        ({"dec_cross_attend": False}, ("dec_cross_attend=False",)),
        ({"enc_cross_attend": True}, ("enc_cross_attend=True",)),
        ({"dec_only_cross": True}, ("dec_only_cross=True",)),
        ({"enc_tie_embedding": True}, ("dec_tie_embedding",)),
        ({"enc_num_memory_tokens": 2}, ("enc_num_memory_tokens=2 is refused",)),
        ({"cross_attn_tokens_dropout": 0.1}, ("cross_attn_tokens_dropout=0.1", "`mask=`")),
        ({"dec_alibi_num_heads": 2}, ("dec_alibi_num_heads=2", "dec_alibi_pos_bias=True")),
        ({"dec_alibi_pos_bias": True, "dec_rel_pos_bias": True}, ("dec_alibi_pos_bias and dec_rel_pos_bias",)),
        ({"enc_depth": None}, ("enc_depth is missing",)),
        ({"dec_num_tokens": None}, ("dec_num_tokens is missing",)),
        ({"dec_attn_kv_heads": 2, "dec_kv_heads": 4}, ("dec_attn_kv_heads=2 and dec_kv_heads=4",)),
    ],
)
def test_flags_of_an_encoder_decoder_that_make_no_sense(flags, named):
    text = only_problem(sides, **flags)
    assert all(word in text for word in named), text


def test_names_of_calls_can_be_checked():
    check_flags("AutoregressiveWrapper.generate", {"temperature": 0.5, "amateur_model": None})
    with pytest.raises(FlagError, match="2 problems") as error:
        check_flags("AutoregressiveWrapper.generate", {"amateur_model": object(), "temprature": 0.5})
    assert "did you mean temperature?" in error.value.problems[1]
    with pytest.raises(ValueError, match="no table for 'Nowhere'"):
        check_flags("Nowhere", {})


SUPPORTED = [flag for flag in PLACES["AttentionLayers"].values() if flag.verdict == "supported"]
SOME = st.sampled_from([None, True, False, 0, 1, 4, 0.5, "rope", (1, 2), {}, {"kind": "rms"}, [], ["alibi"]])


def attempt(kind, flags):
    """The fields and no problems, or no fields and the problems."""
    try:
        return layers_from_flags(kind, {**flags, **SIZE}), []
    except FlagError as error:
        return None, error.problems


@settings(max_examples=draws(60, 300), deadline=None)
@given(
    kind=st.sampled_from(["encoder", "decoder", "cross_attender"]),
    flags=st.dictionaries(
        st.sampled_from([flag.name for flag in PLACES["AttentionLayers"].values()]), SOME, max_size=6
    ),
)
def test_no_flags_crash_the_translation(kind, flags):
    fields, problems = attempt(kind, flags)
    assert fields is None or fields["kind"] == kind
    assert (fields is None) == bool(problems)
    assert all(problem.endswith((".", "?")) for problem in problems)


@st.composite
def sensible_flags(draw):
    """Supported flags with values of their default's type; booleans on or off."""
    flags = {}
    for flag in draw(st.lists(st.sampled_from([f for f in SUPPORTED if not f.own]), unique_by=lambda f: f.name)):
        if isinstance(flag.default, bool):
            flags[flag.name] = draw(st.booleans())
        elif flag.default is not None and flag.default is not REQUIRED:
            flags[flag.name] = flag.default
    return {**flags, **SIZE}


@settings(max_examples=draws(60, 300), deadline=None)
@given(flags=sensible_flags())
def test_what_is_translated_validates(flags):
    fields, problems = attempt("decoder", flags)
    if fields is not None:
        assert LayersConfig.model_validate(fields).dim == 96
    else:
        off_default = {f"{name}" for name, value in flags.items() if value != PLACES["AttentionLayers"][name].default}
        assert all(any(name in problem for name in off_default) for problem in problems)
