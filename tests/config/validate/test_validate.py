"""`check`: whatever it is given, it answers with one report and never raises."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from tests.support.draws import draws
from x_positional import (
    AutoregressiveWrapper,
    ContinuousTransformerWrapper,
    CrossAttender,
    Decoder,
    Encoder,
    ModelConfig,
    Rope,
    XTransformer,
    build_model,
    check,
)
from x_positional.config.flags.table import PLACES
from x_positional.config.layers import LayersConfig
from x_positional.config.models import ContinuousConfig
from x_positional.schemes import Alibi, CopeScores
from x_positional.schemes.registry import REGISTRY

SIZES = {"dim": 32, "depth": 2, "heads": 2, "head_dim": 16}


def lines(report) -> str:
    return "\n".join(report.errors)


# Targets


def spellings(tmp_path) -> dict[str, tuple[tuple, dict]]:
    """One model in every spelling that check takes."""
    config = ModelConfig(
        num_tokens=11, max_seq_len=64, layers=LayersConfig(**SIZES, position=["absolute", Alibi(heads=1)])
    )
    model = build_model(config)
    fields = {
        "num_tokens": 11,
        "max_seq_len": 64,
        "layers": {**SIZES, "position": ["absolute", {"kind": "alibi", "heads": 1}]},
    }
    file = tmp_path / "model.yaml"
    config.to_yaml(file)
    flags = {**SIZES, "num_tokens": 11, "max_seq_len": 64}
    return {
        "config": ((config,), {}),
        "model": ((model,), {}),
        "around a model": ((AutoregressiveWrapper(model),), {}),
        "its layers": ((model.attn_layers,), {}),
        "fields": ((fields,), {}),
        "a file's fields": (({"model": fields, "run": {"steps": 3}},), {}),
        "path": ((file,), {}),
        "path as text": ((str(file),), {}),
        "flags": ((), {**flags, "position": ["absolute", Alibi(heads=1)]}),
        "flags of x-transformers": (
            (),
            {**flags, "use_abs_pos_emb": True, "alibi_pos_bias": True, "alibi_num_heads": 1},
        ),
        "flags and layers": (
            (),
            {
                "num_tokens": 11,
                "max_seq_len": 64,
                "attn_layers": Decoder(**SIZES, position=["absolute", Alibi(heads=1)]),
            },
        ),
    }


def test_every_spelling_of_a_model_gets_the_same_report(tmp_path) -> None:
    reports = {name: check(*args, **flags, decode_to=65) for name, (args, flags) in spellings(tmp_path).items()}
    expected = reports["config"]
    assert len(expected.errors) == 1
    assert len(expected.warnings) == 1
    assert "decode_to=65: absolute ends at 64 positions" in lines(expected)
    assert {name: report for name, report in reports.items() if report != expected} == {}


@pytest.mark.parametrize(
    ("layers", "kind"), [(Encoder, "encoder"), (Decoder, "decoder"), (CrossAttender, "cross_attender")]
)
def test_bare_layers_of_each_kind(layers, kind: str) -> None:
    report = check(layers(**SIZES, position="rope"))
    assert (
        report == check(kind=kind, **SIZES, position="rope") == check(LayersConfig(**SIZES, kind=kind, position="rope"))
    )
    assert report.ok
    assert report.position == "rope"
    assert report.backend == "sdpa"


def test_flags_without_a_vocabulary_are_enough() -> None:
    report = check(**SIZES, position="absolute", max_seq_len=8)
    assert report.past == "refused after 8 positions: absolute defines no more"
    assert "max_seq_len is missing" in lines(check(**SIZES, num_tokens=7))


def test_continuous_inputs() -> None:
    wrapped = ContinuousTransformerWrapper(dim_in=3, dim_out=2, max_seq_len=9, attn_layers=Encoder(**SIZES))
    config = ContinuousConfig(dim_in=3, dim_out=2, max_seq_len=9, layers=LayersConfig(**SIZES, kind="encoder"))
    flags = check(kind="encoder", **SIZES, dim_in=3, dim_out=2, max_seq_len=9)
    assert check(wrapped) == check(config) == flags
    assert flags.position == "absolute"
    blind = check(ContinuousTransformerWrapper(dim_in=3, attn_layers=Encoder(**SIZES)))
    assert blind.ok
    assert "blind to order" in blind.warnings[0]


def test_both_sides_of_an_encoder_decoder() -> None:
    flags = {
        "dim": 32,
        "enc_num_tokens": 7,
        "enc_depth": 1,
        "enc_max_seq_len": 9,
        "dec_num_tokens": 7,
        "dec_depth": 1,
        "dec_max_seq_len": 9,
        "dec_position": "alibi",
    }
    built, planned = check(XTransformer(**flags), decode_to=20), check(**flags, decode_to=20)
    assert [stack.position for stack in built.stacks.values()] == ["absolute", "alibi"]
    assert built.errors[0].startswith("encoder: decode_to=20 with an encoder")
    assert [stack.errors for stack in built.stacks.values()] == [stack.errors for stack in planned.stacks.values()]
    assert "encoder\n  position  absolute" in str(built)
    wrong = check(**flags, enc_kv_heads=3, dec_backend="sdpa", dec_attn_softclamp_logits=True, dec_dpth=1)
    assert [e.split(":")[0] for e in wrong.errors] == [
        "dec_dpth is not a flag; did you mean dec_depth?",
        "encoder",
        "decoder",
    ]


@pytest.mark.parametrize(
    ("args", "flags", "words"),
    [
        ((3,), {}, ("int cannot be checked", "a config, a model")),
        ((nn.Linear(2, 2),), {}, ("Linear was not built from a config",)),
        (("nowhere.yaml",), {}, ("cannot read nowhere.yaml", "No such file", "check(position='rope', ...)")),
        ((LayersConfig(**SIZES),), {"heads": 3}, ("heads given together with a LayersConfig", "not both")),
        (({},), {}, ("dim is missing.", "depth is missing.")),
        ((), {}, ("dim is missing", "depth is missing")),
        (
            (),
            {**SIZES, "kind": "decodr"},
            ("kind='decodr' is unknown; there are: 'encoder', 'decoder', 'cross_attender'",),
        ),
        ((), {**SIZES, "cache": "ring"}, ("cache='ring': input should be 'static', 'growing' or 'sliding'",)),
        (
            (),
            {**SIZES, "decode_to": 0, "cache_window": 2.5},
            ("decode_to=0: input should be greater than 0", "cache_window=2.5"),
        ),
        ((), {**SIZES, "device": "abacus"}, ("device='abacus': unknown device", "'cuda'")),
        ((), {**SIZES, "dtype": "float17"}, ("dtype='float17': unknown dtype", "'bfloat16'")),
        ((), {**SIZES, "dtype": 16}, ("dtype=16: unknown dtype",)),
    ],
    ids=str,
)
def test_what_cannot_be_judged_is_an_error_not_an_exception(args, flags, words) -> None:
    report = check(*args, **flags)
    assert not report.ok
    for word in words:
        assert word in lines(report)


@pytest.mark.parametrize("text", ["- 1\n- 2\n", "word", "", "{", "model: 3"])
def test_files_that_hold_no_model(tmp_path, text: str) -> None:
    file = tmp_path / "m.yaml"
    file.write_text(text)
    assert check(file).errors
    binary = tmp_path / "m.bin"
    binary.write_bytes(b"\x93\xff\x00")
    assert f"cannot read {binary}" in lines(check(binary))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 40),
    st.floats(),
    st.text(max_size=5),
    st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(
        st.sampled_from(["kind", "dim", "softcap", "thta"]), st.sampled_from(["rope", 1, None]), max_size=2
    ),
    st.sampled_from([*REGISTRY, "sdpa", "rms", "encoder", Rope(), CopeScores(4), float("nan"), float("inf")]),
)
FLAG_NAMES = sorted({name for place in ("AttentionLayers", "TransformerWrapper") for name in PLACES[place]})
FIELD_NAMES = [*LayersConfig.model_fields, *ModelConfig.model_fields, "model", "thing", 3]


NESTED = st.dictionaries(st.sampled_from(FIELD_NAMES), VALUES, max_size=4)


@settings(max_examples=draws(40, 150), derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(st.sampled_from([*FLAG_NAMES, "kind", "enc_dim", "dec_depth", "hedas"]), VALUES, max_size=6),
    st.dictionaries(st.sampled_from(FIELD_NAMES), st.one_of(VALUES, NESTED), max_size=6),
    VALUES,
)
def test_nothing_makes_it_raise(flags: dict, fields: dict, value: object) -> None:
    for report in (
        check(**flags),
        check(**SIZES | flags),
        check(fields),
        check({"model": fields}),
        check({"num_tokens": 5, "max_seq_len": 8, "layers": {**SIZES, **fields}}),
        check(**SIZES, cache=value, decode_to=value, device=value, dtype=value),
    ):
        assert json.loads(json.dumps(report.to_dict()))["ok"] == report.ok
        assert str(report)
