"""The report of `check`: everything wrong at once, in words and as data; and schemes that the package has never seen."""

import json
from collections.abc import Iterator
from dataclasses import fields
from typing import ClassVar, Literal

import pytest
import torch
from torch import nn

from x_positional import (
    Chain,
    Decoder,
    IncompatibleConfig,
    ModelConfig,
    PositionScheme,
    TransformerWrapper,
    build_model,
    check,
)
from x_positional.config.layers import LayersConfig
from x_positional.config.validate import layers_report, model_report, require
from x_positional.schemes import CopeScores
from x_positional.schemes.base import Capabilities
from x_positional.schemes.registry import REGISTRY, SchemeConfig

SIZES = {"dim": 32, "depth": 2, "heads": 2, "head_dim": 16}


def lines(report) -> str:
    return "\n".join(report.errors)


# Everything at once


def test_names_types_and_rules_come_together() -> None:
    """An unknown key is read as the nearest name, a value of a wrong type is left out: the rest is judged all the same."""
    report = check(
        {
            "num_tokens": 11,
            "max_seq_len": 64,
            "tie_embeding": True,
            "emb_dim": 8,
            "depth": 4,
            "layers": {
                **SIZES,
                "kv_heads": 5,
                "backend": "sdpa",
                "attn": {"softcapp": 30.0, "dropout": 2.0},
                "position": [{"kind": "rope", "dim": 7, "thetta": 5}, "ropee"],
                "norm": {"kind": "rms", "bias": True},
            },
        }
    )
    words = (
        "tie_embeding is unknown; did you mean tie_embedding?",
        "depth is unknown; did you mean layers.depth?",
        "layers.attn.softcapp is unknown; did you mean layers.attn.softcap?",
        "layers.attn.dropout=2.0: input should be less than 1.",
        "layers.position[0].thetta is unknown; did you mean layers.position[0].theta?",
        "layers.position[1]='ropee': no position scheme named 'ropee'; did you mean 'rope'?",
        "heads=2 must be a multiple of kv_heads=5",
        "norm.bias=True is ignored: norm.kind='rms' has no bias",
        "rope: rotary width is 7",
        "tie_embedding=True computes logits with the embedding matrix, which is emb_dim=8 wide",
        "backend='sdpa' does not support this: scaled_dot_product_attention does not support a soft cap",
    )
    assert [error for error in report.errors if not any(word in error for word in words)] == []
    assert [word for word in words if word not in lines(report)] == []


def test_a_value_that_was_left_out_is_not_judged_by_its_default() -> None:
    """heads="three" stands at 8 for the rest of the judgement, and nothing may be said of that 8."""
    assert check(**{**SIZES, "heads": "three", "kv_heads": 5}).errors == [
        "heads='three': input should be a valid integer, unable to parse string as an integer."
    ]


def test_flags_all_at_once() -> None:
    report = check(
        **SIZES,
        max_seq_len=64,
        use_dynamic_tanh=True,
        positon="rope",
        kv_heads=5,
        decode_to=100,
        window=3,
        cache="sliding",
        train=True,
        device="cpu",
        backend="flex",
    )
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
        (
            {"position": ["rope", {"kind": "t5", "buckets": 3}]},
            "position[1].buckets is unknown; did you mean position[1].num_buckets?",
        ),
        ({"position": [{"kind": "rope", "zzz": 3}]}, "position[0].zzz is unknown; there are: kind, theta, dim"),
        (
            {"position": {"kind": "rope", "scaling": {"rope_type": "linear", "fctor": 2.0}}},
            "position.scaling.fctor is unknown; did you mean position.scaling.factor?",
        ),
        ({"position": {"theta": 3}}, "position must be a name, a config, a scheme, or a list of them"),
        ({"attn": 3}, "attn=3: input should be a valid dictionary"),
        ({"rotary_pos_emb": 1}, "rotary_pos_emb is unknown; it is a keyword flag; in a config use position."),
        ({"macaron": True}, "macaron is unknown; it is a keyword flag of x-transformers. Every block runs"),
    ],
    ids=str,
)
def test_unknown_names_answer_with_the_nearest(fields: dict, answer: str) -> None:
    assert answer in lines(check({**SIZES, **fields}))


# The report


def test_a_report_in_words_and_as_data() -> None:
    report = check(**SIZES, max_seq_len=2048, position="alibi", decode_to=4096, cache="static")
    assert report.ok
    text = str(report)
    for word in (
        "ok: no errors, 2 warnings",
        "position  alibi",
        "backend   sdpa (fused: the scheme adds",
        "relative positions",
        "decodes   yes: growing, static",
        "past max_seq_len=2048 too",
        "warnings\n  - alibi:",
    ):
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
        ({"kind": "cross_attender"}, "no self-attention to cache", "defined at any length"),
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


COMBINED = [
    ("deberta", "none"),
    ("rope", "none"),
    ("alibi", "rope"),
    ("t5", "temperature"),
    ("cope", "rope"),
    ("forgetting", "polar"),
    ("log_n", "none"),
    ("xpos", "dynamic"),
]


def test_deberta_reads_its_layer() -> None:
    caps = check(position="deberta", dim=64, depth=2, heads=4, max_seq_len=64).capabilities
    assert caps is not None
    assert caps.reads_layer


@pytest.mark.parametrize("names", COMBINED, ids="+".join)
def test_schemes_in_different_layers_combine_as_in_one(names: tuple[str, ...]) -> None:
    config = LayersConfig(**SIZES, pattern=[{"position": name} for name in names])
    report = layers_report(config, 64)
    chain = Chain(*(REGISTRY[name]().build(config.dims(64)) for name in names)).capabilities()
    assert report.capabilities is not None, report.errors
    for field in fields(Capabilities):
        assert getattr(report.capabilities, field.name) == getattr(chain, field.name), field.name
    assert report.capabilities == check(**SIZES, position=list(names), max_seq_len=64).capabilities


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
        "rope: rotary width is 3; RoPE rotates pairs, so it must be an even number from 2 to head_dim=16. Set dim or fraction.",
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
        "cache='growing': Own changes earlier keys as the sequence grows, so cached ones become stale",
        "decode_to=25: Own ends at 20 positions, so token 21 has none",
    ]
    assert report.position == "Own"


def test_a_chain_is_judged_and_built_as_its_parts() -> None:
    """One table and one CoPE per layer, although the instance holds one of each."""
    dims = LayersConfig(**SIZES).dims(9)
    chain = Chain(REGISTRY["absolute"]().build(dims), CopeScores(16))
    model = TransformerWrapper(num_tokens=5, max_seq_len=9, attn_layers=Decoder(**SIZES, position=chain))
    assert [type(s).__name__ for s in model.attn_layers.schemes] == ["LearnedAbsolute", "CopeScores", "CopeScores"]
    assert model.attn_layers.schemes[1] is not model.attn_layers.schemes[2]
    assert check(model).position == "LearnedAbsolute + CopeScores"


def test_the_shortest_table_of_a_pattern_ends_the_positions() -> None:
    pattern = [{"position": {"kind": "absolute", "max_seq_len": 40}}, {"position": "absolute"}]
    report = check(dim=64, depth=2, heads=2, max_seq_len=9, pattern=pattern)
    assert report.past == "refused after 9 positions: absolute defines no more"
