"""`check`: whatever it is given, one report; everything wrong at once, with the value, the reason and the way out."""

import json
from collections.abc import Iterator
from typing import ClassVar, Literal

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

from x_positional import (
    AutoregressiveWrapper,
    Chain,
    ContinuousTransformerWrapper,
    CrossAttender,
    Decoder,
    Encoder,
    IncompatibleConfig,
    ModelConfig,
    PositionScheme,
    Rope,
    TransformerWrapper,
    XTransformer,
    build_model,
    check,
)
from x_positional.config import ContinuousConfig, LayersConfig
from x_positional.flag_table import PLACES
from x_positional.registry import REGISTRY, SchemeConfig
from x_positional.schemes import Alibi, CoPE
from x_positional.validate import layers_report, model_report, require

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
    fields = {"num_tokens": 11, "max_seq_len": 64,
              "layers": {**SIZES, "position": ["absolute", {"kind": "alibi", "heads": 1}]}}  # fmt: skip
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
        "flags of x-transformers": ((), {**flags, "use_abs_pos_emb": True, "alibi_pos_bias": True, "alibi_num_heads": 1}),
        "flags and layers": ((), {"num_tokens": 11, "max_seq_len": 64, "attn_layers":
                                  Decoder(**SIZES, position=["absolute", Alibi(heads=1)])}),
    }  # fmt: skip


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
    assert report.past == "refused after 8 positions: absolute has no more"
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
    flags = {"dim": 32, "enc_num_tokens": 7, "enc_depth": 1, "enc_max_seq_len": 9, "dec_num_tokens": 7, "dec_depth": 1,
             "dec_max_seq_len": 9, "dec_position": "alibi"}  # fmt: skip
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
        ((LayersConfig(**SIZES),), {"heads": 3}, ("heads given beside LayersConfig", "not both")),
        (({},), {}, ("dim is missing.", "depth is missing.")),
        ((), {}, ("dim is missing", "depth is missing")),
        ((), {**SIZES, "kind": "decodr"}, ("kind='decodr' is none of 'encoder', 'decoder', 'cross_attender'",)),
        ((), {**SIZES, "cache": "ring"}, ("cache='ring' is none of 'static', 'growing', 'sliding'",)),
        (
            (),
            {**SIZES, "decode_to": 0, "cache_window": 2.5},
            ("decode_to=0 must be a whole number", "cache_window=2.5"),
        ),
        ((), {**SIZES, "device": "abacus"}, ("device='abacus' is no device", "'cuda'")),
        ((), {**SIZES, "dtype": "float17"}, ("dtype='float17' is no dtype of a model", "'bfloat16'")),
        ((), {**SIZES, "dtype": 16}, ("dtype=16 is no dtype",)),
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
    st.none(), st.booleans(), st.integers(-3, 40), st.floats(), st.text(max_size=5), st.lists(st.integers(0, 3), max_size=2),
    st.dictionaries(st.sampled_from(["kind", "dim", "softcap", "thta"]), st.sampled_from(["rope", 1, None]), max_size=2),
    st.sampled_from([*REGISTRY, "sdpa", "rms", "encoder", Rope(), CoPE(4), float("nan"), float("inf")]),
)  # fmt: skip
FLAG_NAMES = sorted({name for place in ("AttentionLayers", "TransformerWrapper") for name in PLACES[place]})
FIELD_NAMES = [*LayersConfig.model_fields, *ModelConfig.model_fields, "model", "thing", 3]


NESTED = st.dictionaries(st.sampled_from(FIELD_NAMES), VALUES, max_size=4)


@settings(max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    st.dictionaries(st.sampled_from([*FLAG_NAMES, "kind", "enc_dim", "dec_depth", "hedas"]), VALUES, max_size=6),
    st.dictionaries(st.sampled_from(FIELD_NAMES), st.one_of(VALUES, NESTED), max_size=6),
    VALUES,
)
def test_nothing_makes_it_raise(flags: dict, fields: dict, value: object) -> None:
    for report in (
        check(**flags), check(**SIZES | flags), check(fields), check({"model": fields}),
        check({"num_tokens": 5, "max_seq_len": 8, "layers": {**SIZES, **fields}}),
        check(**SIZES, cache=value, decode_to=value, device=value, dtype=value),
    ):  # fmt: skip
        assert json.loads(json.dumps(report.to_dict()))["ok"] == report.ok
        assert str(report)


# Everything at once


def test_names_types_and_rules_come_together() -> None:
    """An unknown key is read as the nearest name, a value of a wrong type is left out: the rest is judged all the same."""
    report = check({
        "num_tokens": 11, "max_seq_len": 64, "tie_embeding": True, "emb_dim": 8, "depth": 4,
        "layers": {**SIZES, "kv_heads": 5, "backend": "sdpa", "attn": {"softcapp": 30.0, "dropout": 2.0},
                   "position": [{"kind": "rope", "dim": 7, "thetta": 5}, "ropee"], "norm": {"kind": "rms", "bias": True}},
    })  # fmt: skip
    words = (
        "tie_embeding is unknown; did you mean tie_embedding?",
        "depth is unknown; did you mean layers.depth?",
        "layers.attn.softcapp is unknown; did you mean layers.attn.softcap?",
        "layers.attn.dropout=2.0: input should be less than 1.",
        "layers.position[0].thetta is unknown; did you mean layers.position[0].theta?",
        "layers.position[1]='ropee': no position scheme named 'ropee'; did you mean 'rope'?",
        "heads=2 must be a multiple of kv_heads=5",
        "norm.bias=True with norm.kind='rms'",
        "rope: 7 channels of each head would turn",
        "tie_embedding=True reads the logits off the embedding matrix, whose rows are emb_dim=8 wide",
        "backend='sdpa' cannot run this: scaled_dot_product_attention has no place for a soft cap",
    )
    assert [error for error in report.errors if not any(word in error for word in words)] == []
    assert [word for word in words if word not in lines(report)] == []


def test_a_value_that_was_left_out_is_not_judged_by_its_default() -> None:
    """heads="three" stands at 8 for the rest of the judgement, and nothing may be said of that 8."""
    assert check(**{**SIZES, "heads": "three", "kv_heads": 5}).errors == [
        "heads='three': input should be a valid integer, unable to parse string as an integer."
    ]


def test_flags_all_at_once() -> None:
    report = check(**SIZES, max_seq_len=64, use_dynamic_tanh=True, positon="rope", kv_heads=5, decode_to=100, window=3,
                   cache="sliding", train=True, device="cpu", backend="flex")  # fmt: skip
    assert [error.split(".")[0].split(":")[0] for error in report.errors] == [
        "use_dynamic_tanh=True is refused",
        "positon is not a flag; did you mean position?",
        "heads=2 must be a multiple of kv_heads=5",
        "backend='flex' has no backward on cpu",
    ]
    assert report.warnings[-1].startswith("decode_to=100 goes past max_seq_len=64")


@pytest.mark.parametrize(
    ("fields", "answer"),
    [
        ({"detph": 2}, "detph is unknown; did you mean depth?"),
        ({"softcap": 3.0}, "softcap is unknown; did you mean attn.softcap?"),
        ({"ff": {"glue": True}}, "ff.glue is unknown; did you mean ff.glu?"),
        ({"norm": {"kind": "rmz"}}, "did you mean 'rms'?"),
        ({"backend": "flexi"}, "did you mean 'flex'?"),
        ({"position": {"kind": "alibi", "slope": [1.0]}}, "position.slope is unknown; did you mean position.slopes?"),
        ({"position": ["rope", {"kind": "t5", "buckets": 3}]},
         "position[1].buckets is unknown; did you mean position[1].num_buckets?"),
        ({"position": [{"kind": "rope", "zzz": 3}]}, "position[0].zzz is unknown; there are: kind, theta, dim"),
        ({"position": {"kind": "rope", "scaling": {"rope_type": "linear", "fctor": 2.0}}},
         "position.scaling.fctor is unknown; did you mean position.scaling.factor?"),
        ({"position": {"theta": 3}}, "position must be a name, a config, a scheme, or a list of them"),
        ({"attn": 3}, "attn=3: input should be a valid dictionary"),
        ({"rotary_pos_emb": 1}, "rotary_pos_emb is unknown; it is a keyword flag; a config says it with position."),
        ({"macaron": True}, "macaron is unknown; it is a keyword flag of x-transformers. Every block is"),
    ],
    ids=str,
)  # fmt: skip
def test_unknown_names_answer_with_the_nearest(fields: dict, answer: str) -> None:
    assert answer in lines(check({**SIZES, **fields}))


# The report


def test_a_report_in_words_and_as_data() -> None:
    report = check(**SIZES, max_seq_len=2048, position="alibi", decode_to=4096, cache="static")
    assert report.ok
    text = str(report)
    for word in ("ok: no errors, 2 warnings", "position  alibi", "backend   sdpa (fused: it adds", "only distances count",
                 "decodes   yes: growing, static", "past max_seq_len=2048 too", "warnings\n  - alibi:"):  # fmt: skip
        assert word in text
    data = json.loads(json.dumps(report.to_dict()))
    assert data["capabilities"]["kernel"] == "bias"
    assert data["warnings"] == report.warnings
    refused = check(**SIZES, position=["rope", "polar"], kv_heads=5)
    assert str(refused).startswith("refused: 2 errors, 2 warnings\nposition  rope + polar\nerrors\n  - heads=2")
    assert (refused.backend, refused.capabilities, refused.decodes, refused.past) == (None, None, None, None)


@pytest.mark.parametrize(
    ("flags", "decodes", "past"),
    [
        ({"kind": "encoder", "position": "rope"}, "no: an encoder", "defined at any length"),
        ({"kind": "cross_attender"}, "there is no self-attention", "defined at any length"),
        ({"window": 4}, "sliding (the last 4 tokens)", "defined at any length"),
        ({"max_seq_len": 9}, "sliding with new_cache(window=...)", "refused after 9 positions: absolute"),
        ({"max_seq_len": 9, "position": "cope"}, "yes: growing", "defined past max_seq_len=9 too"),
        ({"max_seq_len": 9, "position": ["t5", "absolute"]}, "yes: growing", "refused after 9 positions: absolute"),
        ({"max_seq_len": 9, "position": "xpos"}, "yes: growing", "refused after 32695 positions: xpos"),
    ],
    ids=str,
)
def test_verdicts_in_plain_words(flags: dict, decodes: str, past: str) -> None:
    report = check(**SIZES, **flags)
    assert decodes in (report.decodes or "")
    assert past in (report.past or "")


def test_require_raises_every_error_and_nothing_else() -> None:
    config = LayersConfig(**SIZES, kv_heads=5, norm={"kind": "rms", "bias": True}, position=["rope", "polar"])
    report = layers_report(config, 64)
    with pytest.raises(IncompatibleConfig) as error:
        require(report)
    assert len(report.errors) == 3
    assert str(error.value).splitlines() == [f"- {line}" for line in report.errors]
    require(layers_report(LayersConfig(**SIZES, position="polar"), 64))


@pytest.mark.parametrize(
    "fields",
    [
        {"layers": {**SIZES, "kv_heads": 5, "context_dim": 3}},
        {"layers": {**SIZES, "position": {"kind": "absolute", "max_seq_len": 3}}},
        {"layers": {**SIZES, "position": ["cope", "cope"]}},
        {"layers": {**SIZES, "norm": {"kind": "none", "eps": 0.1}}},
        {"layers": SIZES, "tie_embedding": True, "emb_dim": 3},
    ],
    ids=str,
)
def test_building_refuses_with_the_same_words(fields: dict) -> None:
    config = ModelConfig.model_validate({"num_tokens": 5, "max_seq_len": 64, **fields})
    with pytest.raises(IncompatibleConfig) as error:
        build_model(config)
    assert model_report(config).errors
    for line in model_report(config).errors:
        assert line in str(error.value)


# Schemes of the user's own


class Reading(PositionScheme):
    """Reads a value while it is built, which nothing without memory can do."""

    built_on: ClassVar[list[str]] = []

    def __init__(self, dim: int):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(dim))
        self.built_on.append(self.weight.device.type)
        self.first = self.weight.detach()[0].item()


class Own(PositionScheme):
    kv_cacheable = False
    limit = 20


@pytest.fixture
def own_kinds() -> Iterator[None]:
    """Two registered schemes, forgotten again after the test."""

    class Halting(SchemeConfig):
        kind: Literal["halting"] = "halting"

        def build(self, dims):
            raise KeyError("no such table")

    class ReadingConfig(SchemeConfig):
        kind: Literal["reading"] = "reading"

        def build(self, dims):
            return Reading(dims.dim)

    yield
    for kind in ("halting", "reading"):
        del REGISTRY[kind]


@pytest.mark.usefixtures("own_kinds")
def test_a_scheme_that_cannot_be_built_is_an_error() -> None:
    report = check(**SIZES, position=["halting", {"kind": "rope", "dim": 3}])
    assert report.errors == [
        "halting cannot be built: KeyError: 'no such table'",
        "rope: 3 channels of each head would turn; it must be an even number from 2 to head_dim=16. Set dim or fraction.",
    ]


@pytest.mark.usefixtures("own_kinds")
def test_judging_leaves_no_trace_in_the_random_numbers() -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    assert check(**SIZES, max_seq_len=64, position=["absolute", "dynamic", "cope"]).ok
    assert check(**SIZES, position="reading").ok
    assert torch.equal(torch.rand(4), expected)
    assert Reading.built_on == ["meta", "cpu"]


def test_an_instance_is_judged_by_what_it_says_of_itself() -> None:
    report = check(**SIZES, max_seq_len=30, position=Own(), cache="growing", decode_to=25)
    assert [error.split(".")[0] for error in report.errors] == [
        "position=Own ends at 20 positions, and max_seq_len=30 asks for more",
        "cache='growing': Own changes old keys as the text grows, so cached ones go stale",
        "decode_to=25: Own ends at 20 positions, so token 21 has none",
    ]
    assert report.position == "Own"


def test_a_chain_is_judged_and_built_as_its_parts() -> None:
    """One table and one CoPE per layer, although the instance holds one of each."""
    dims = LayersConfig(**SIZES).dims(9)
    chain = Chain(REGISTRY["absolute"]().build(dims), CoPE(16))
    model = TransformerWrapper(num_tokens=5, max_seq_len=9, attn_layers=Decoder(**SIZES, position=chain))
    assert [type(s).__name__ for s in model.attn_layers.schemes] == ["LearnedAbsolute", "CoPE", "CoPE"]
    assert model.attn_layers.schemes[1] is not model.attn_layers.schemes[2]
    assert check(model).position == "LearnedAbsolute + CoPE"
