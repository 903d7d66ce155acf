"""Values that no model has, from Python and from YAML: refused by name, before any work that grows with them."""

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import torch

from x_positional import (
    ConfigError,
    Decoder,
    ModelConfig,
    Rope,
    TransformerWrapper,
    XPositionalError,
    XTransformer,
    check,
)
from x_positional.config import validate
from x_positional.config.layers import AttentionConfig, LayerConfig, LayersConfig
from x_positional.config.reading import MAX_BYTES, MAX_NODES, parse_yaml, read_yaml
from x_positional.config.seq2seq import Seq2SeqConfig
from x_positional.config.validate.target import read_target
from x_positional.errors import UserError, did_you_mean, nearest, shown
from x_positional.schemes.alibi import _slopes
from x_positional.schemes.registry import REGISTRY, SYNONYMS
from x_positional.schemes.rotary.scaling.base import SCALINGS
from x_positional.schemes.rotary.scaling.base import SYNONYMS as SCALING_SYNONYMS
from x_positional.schemes.values import MAX_KEYS, MAX_KINDS, MAX_SCHEMES, MAX_VALUES, bound_problems
from x_positional.training.load import load_config, load_model
from x_positional.training.overrides import parse_overrides

SIZES: dict[str, Any] = {"dim": 16, "depth": 1}


def cyclic() -> dict[str, Any]:
    value: dict[str, Any] = {"kind": "rope"}
    value["scaling"] = value
    return value


def bomb() -> list[Any]:
    value: list[Any] = ["rope"] * 9
    for _ in range(12):
        value = [value] * 9
    return value


def nested(levels: int) -> Any:
    value: Any = "rope"
    for _ in range(levels):
        value = [value]
    return value


class Hostile:
    """Raises whatever is asked of it."""

    def __repr__(self) -> str:
        raise RuntimeError("repr")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("eq")

    __hash__ = None  # type: ignore[assignment]


def scaled(**fields: Any) -> dict[str, Any]:
    return {"kind": "rope", "scaling": fields}


LONG = {"rope_type": "longrope", "original_max_position_embeddings": 4, "factor": 2.0}
CASES: list[tuple[dict[str, Any], str]] = [
    ({"position": ["rope", ["alibi", 5]]}, "position[2]=5: position must be a name"),
    ({"kind": ["decoder"]}, "kind=['decoder'] is unknown"),
    ({"position": {"kind": {"kind": "rope"}}}, "kind={'kind': 'rope'} must be a name"),
    (
        {"position": {"kind": "rope", "dim": 100, "base_rescale_factor": 1e308}},
        "position.base_rescale_factor=1e+308 must",
    ),
    ({"position": {"kind": "rope", "theta": 1e308}}, "position.theta=1e+308 must be 0 or between 1e-30 and 1e+30"),
    ({"train": torch.tensor([1.0, 2.0])}, "train=tensor([1., 2.]): input should be a valid boolean."),
    ({"foo": 1, "position": cyclic()}, "position.scaling contains itself (position)"),
    ({"position": nested(5000)}, "position[0][0] is nested more than 32 levels deep"),
    ({"position": bomb()}, f"more than {MAX_VALUES} values"),
    ({"depth": 10**9}, "depth=1000000000: input should be less than or equal to 10000."),
    ({"dim": 10**9}, "dim=1000000000: input should be less than or equal to 1048576."),
    ({"heads": 10**9, "position": "alibi"}, "heads=1000000000: input should be less than or equal to 4096."),
    ({"position": {"kind": "rope", "heads": 10**8}}, "position.heads=100000000: input should be less"),
    ({"num_tokens": 4, "max_seq_len": 10**12}, "max_seq_len=1000000000000: input should be less"),
    (
        {"num_tokens": 2**63, "max_seq_len": 8},
        "num_tokens=9223372036854775808 is outside the range of 64-bit integers.",
    ),
    ({"num_tokens": 2**62, "max_seq_len": 8}, "num_tokens=4611686018427387904: input should be less"),
    ({"head_dim": 2 * 10**9, "position": "rope"}, "head_dim=2000000000: input should be less"),
    ({"position": {"kind": "t5", "num_buckets": 10**10}}, "position.num_buckets=10000000000: input should be less"),
    ({"position": {"kind": "cope", "max_pos": 10**11}}, "position.max_pos=100000000000: input should be less"),
    ({"position": {"kind": "dynamic", "depth": 10**6}}, "position.depth=1000000: input should be less"),
    ({"position": {"kind": "mixed", "axes": 10**9}}, "position.axes=1000000000: input should be less"),
    ({"position": {"kind": "axial", "axes": 10**9}}, "position.axes=1000000000: input should be less"),
    (
        {"position": {"kind": "rope", "sections": [10**30, 1]}},
        "position.sections[0]=1000000000000000000000000000000 is",
    ),
    ({"position": {"kind": "xpos", "scale_base": 0.001}, "max_seq_len": 64}, "Use scale_base=2 or more"),
    ({"depth": 10**5}, "depth=100000: input should be less than or equal to 10000."),
    ({"pattern": [{}] * 2000}, "tuple should have at most 1024 items"),
    ({"pattern": [{"window": i + 1} for i in range(1000)], "depth": 1000}, "pattern has 1000 different layers"),
    ({"position": scaled(**LONG, long_factor=[1.0] * 10**6, short_factor=[1.0])}, f"more than {MAX_VALUES} values"),
    (
        {"position": scaled(**LONG, long_factor=range(10**12), short_factor=[1.0])},
        "long_factor is a range. Give a list.",
    ),
    ({"position": Hostile()}, "position=<Hostile>: position must be a name"),
    ({"heads": Hostile()}, "heads=<Hostile>: input should be a valid integer."),
    ({"attn_dropout": Hostile()}, "attn.dropout=<Hostile>: input should be a valid number."),
    ({"kind": Hostile()}, "kind=<Hostile> is unknown"),
    ({"heads": 9**9999}, "heads=an integer of 31697 bits is outside the range of 64-bit integers."),
    ({"chunk": Decimal("1e999")}, "chunk=Decimal('1E+999'): 1000"),
    ({"window": "9" * 400}, "9999 is outside the range of 64-bit integers."),
    ({"position": {"kind": "rope", "theta": Decimal("1e100")}}, "1e+100 must be 0 or between 1e-30 and 1e+30"),
    ({"position": {"kind": "alibi", "slopes": ["1e-300"]}, "heads": 1}, "1e-300 must be 0 or between"),
    ({"position": "\ud800"}, r"position='\ud800' contains a lone surrogate"),
    ({"heads": "x" * 70_000}, "heads is a string of 70000 characters"),
    (
        {"position": {"kind": "rope", "sections": torch.zeros(2**20)}},
        "position.sections is a Tensor of 1048576 entries",
    ),
    ({"pattern": (entry for entry in [{}])}, "pattern is a generator. Give a list."),
    ({"position": {"name": "rope", "theta": 5.0}}, "Did you mean kind in place of name?"),
    ({"position": {"knd": "rope"}}, "Did you mean kind in place of knd?"),
    ({"norm": {"name": "rms"}}, "norm.name is unknown; did you mean norm.kind?"),
    ({"pattern": [{"windw": 3}]}, "pattern[0].windw is unknown; did you mean pattern[0].window?"),
    ({"position": scaled(rope_type="linear", facter=2.0)}, "did you mean position.scaling.factor?"),
]


@pytest.mark.parametrize(("flags", "answer"), CASES, ids=[answer[:60] for _, answer in CASES])
def test_check_names_the_value(flags: dict[str, Any], answer: str) -> None:
    report = check(**{**SIZES, **flags})
    assert any(answer in error for error in report.errors), report


@pytest.mark.parametrize(
    ("flags", "answer"), [c for c in CASES if "train" not in c[0]], ids=[a[:60] for f, a in CASES if "train" not in f]
)
def test_builders_raise_the_same(flags: dict[str, Any], answer: str) -> None:
    if "num_tokens" in flags or "max_seq_len" in flags or "foo" in flags or "kind" in flags:
        return
    with pytest.raises(XPositionalError) as error:
        Decoder(**{**SIZES, **flags})
    assert answer in str(error.value)
    assert "pydantic" not in str(error.value)


def test_pydantic_is_not_heard() -> None:
    for make in (
        lambda: Rope(theta="x"),  # type: ignore[arg-type]
        lambda: LayersConfig.model_validate({**SIZES, "position": "rop"}),
        lambda: ModelConfig.model_validate_json('{"num_tokens": "x"}'),
        lambda: LayersConfig(**SIZES).with_position("rop"),
        lambda: Decoder(dim=512, depth=6, heads=8, position="rop"),
    ):
        with pytest.raises(ConfigError) as error:
            make()
        assert "pydantic" not in str(error.value)
        assert error.value.__cause__ is None
        assert isinstance(error.value, ValueError)
        assert error.value.problems


@pytest.mark.parametrize(
    ("word", "meant"),
    [("rotary", "rope"), ("RoPE", "rope"), ("relative", "t5"), ("nope", "none"), ("FoX", "forgetting")],
)
def test_words_from_elsewhere_are_suggested(word: str, meant: str) -> None:
    assert f"did you mean {meant!r}?" in check(**SIZES, position=word).errors[0]


def test_synonyms_are_no_names() -> None:
    assert set(SYNONYMS.values()) <= set(REGISTRY)
    assert not set(SYNONYMS) & set(REGISTRY)
    assert set(SCALING_SYNONYMS.values()) <= set(SCALINGS)
    assert not set(SCALING_SYNONYMS) & set(SCALINGS)
    assert nearest("x" * 10**6, REGISTRY) is None
    assert did_you_mean("su", SCALINGS, SCALING_SYNONYMS) == "did you mean 'longrope'?"


# YAML

BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{','.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(8)
)
MERGES = "a: &a {x: 1, y: 2}\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} {{<<: [{','.join(['*' + chr(97 + i)] * 9)}]}}\n" for i in range(8)
)
TEXTS = [
    ("model:\n  dim: 16\n  depth: 1\n  position: &a\n    kind: rope\n    scaling: *a\n", "contains itself"),
    ("model: &a\n  layers: *a\n", "model.layers contains itself (model)"),
    ("dim: 16\ndepth: 1\nposition: &a [rope, *a]\n", "position[1] contains itself (position)"),
    ("a: " + "[" * 3000 + "]" * 3000, "is nested more than 32 levels deep (line 1)"),
    ("dim: " + "9" * 5000 + "\ndepth: 1\n", "has a value that cannot be read"),
    ("dim: !!timestamp 2001-99-99\n", "has a value that cannot be read: month must be in 1..12 (line 1)"),
    ("? [1,2]\n: 3\ndim: 16\n", "unhashable"),
    ('dim: !!python/object/apply:os.system ["echo hi"]\n', "could not determine a constructor"),
    ('dim: "\\ud800"\ndepth: 1\n', "contains a lone surrogate"),
    ("dim: 16\ndim: 32\ndepth: 1\n", "has the key 'dim' twice (line 2)"),
    (BOMB + "dim: 16\ndepth: 1\n", f"more than {MAX_VALUES} values"),
    (BOMB + "dim: 16\ndepth: 1\nposition: *i\n", f"more than {MAX_VALUES} values"),
    ("a: {" + ", ".join(f"k{i}: 1" for i in range(MAX_KEYS + 1)) + "}", f"more than {MAX_KEYS} keys"),
    ("#" * (MAX_BYTES + 1), "it has more than 512 KB"),
    ("\x00", "is not YAML"),
]


@pytest.mark.parametrize(("text", "answer"), TEXTS, ids=[answer[:40] for _, answer in TEXTS])
def test_files_are_bounded(text: str, answer: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert any(answer in error for error in check(file).errors), check(file)
    readers: tuple[Callable[[], Any], ...] = (
        lambda: read_yaml(file),
        lambda: ModelConfig.from_yaml(file),
        lambda: load_config(file),
        lambda: load_model(file, {}),
    )
    for read in readers:
        with pytest.raises(XPositionalError) as error:
            read()
        assert answer in str(error.value)


def test_the_number_of_values_is_bounded() -> None:
    with pytest.raises(ConfigError, match=f"more than {MAX_NODES} keys and values"):
        parse_yaml("a: [" + "1," * MAX_NODES + "]", "a text")


def test_dates_and_merges_stay_what_they_were(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("base: &a {dim: 16, depth: 1}\nlayers: {<<: *a, depth: 2}\ndate: 2001-02-03\n")
    assert read_yaml(file)["layers"] == {"dim": 16, "depth": 2}
    assert read_yaml(file)["date"] == "2001-02-03"
    file.write_text(MERGES)
    assert read_yaml(file)["i"] == {"x": 1, "y": 2}


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("dim: 2001-99-99\ndepth: 1\n", "dim='2001-99-99': input should be a valid integer"),
        ("2001-01-01: 1\ndim: 16\ndepth: 1\n", "2001-01-01 is unknown"),
        (".nan: 1\ndim: 16\ndepth: 1\n", "the key nan must be a string."),
        (
            "layers: {null: 2, dim: 16, depth: 1}\nnum_tokens: 4\nmax_seq_len: 4\n",
            "layers: the key None must be a string.",
        ),
        ("dim: !!set {1}\ndepth: 1\n", "dim={1}: input should be a valid integer."),
        ("dim: .inf\ndepth: 1\n", "dim=inf: input should be a finite number."),
    ],
)
def test_odd_values_of_files_are_named(text: str, answer: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(text)
    assert any(answer in error for error in check(file).errors), check(file)


@pytest.mark.parametrize("path", ["a\0b", "x" * 5000, "/", "/dev/zero", ""])
def test_paths_that_hold_no_file(path: str) -> None:
    assert any(error.startswith("cannot read") for error in check(path).errors)


def test_a_fifo_is_not_opened(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "fifo")
    assert "it is not a regular file" in check(tmp_path / "fifo").errors[0]


def test_overrides_are_bounded(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("model: [5]\n")
    for given in (["--model.layers.position", "1"], ["--model.0.x", "1"], ["--model.²", "1"], ["--lr", "&a [*a]"]):
        with pytest.raises(UserError):
            load_config(file, parse_overrides(given))
    file.write_text("model: 5\n")
    with pytest.raises(UserError, match=r"model=5 must be a mapping of the model's fields"):
        load_model(file, {})


# Work


def test_equal_layers_are_validated_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the depth and the length of the pattern: the verdict on a kind, and its schemes, are computed once."""
    judged, built = [], []
    judge, build = validate.judge, validate.build_parts
    monkeypatch.setattr(validate, "judge", lambda case: judged.append(case) or judge(case))
    monkeypatch.setattr(validate, "build_parts", lambda parts, dims: built.append(parts) or build(parts, dims))
    pattern = [{"window": i % 3 + 1, "position": ["rope", "alibi"][i % 2]} for i in range(1000)]
    assert check(dim=16, depth=10_000, pattern=pattern).ok
    assert len(judged) == 6
    assert len(built) == 2


def test_the_number_of_kinds_is_bounded() -> None:
    kinds = [{"window": i + 1} for i in range(MAX_KINDS)]
    assert check(dim=16, depth=MAX_KINDS, position="rope", pattern=kinds).ok
    many = [{"position": {"kind": "rope", "theta": 10.0 + i}} for i in range(MAX_SCHEMES + 1)]
    assert "different position schemes" in check(dim=16, depth=len(many), pattern=many).errors[0]
    assert "channels, and at most" in check(dim=16, depth=1, heads=4096, head_dim=512).errors[0]


def test_slopes_are_computed_once() -> None:
    _slopes.cache_clear()
    check(dim=16, depth=2, heads=4096, position="alibi", max_seq_len=4096)
    assert _slopes.cache_info().misses == 1


def test_no_verdict_imports_the_compiler() -> None:
    """torch._dynamo takes seconds to import, and arithmetic on meta tensors would."""
    import subprocess
    import sys

    code = (
        "import sys; from x_positional import check; from x_positional.schemes.registry import REGISTRY\n"
        "for kind in REGISTRY:\n"
        "    for device in (None, 'cuda'):\n"
        "        check(dim=64, depth=1, num_tokens=4, max_seq_len=32, device=device, train=True, position=kind)\n"
        "check(dim=64, depth=1, position='rope', attn={'mla': {'kv_rank': 8, 'rope_dim': 8}})\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


GOOD = LayersConfig(dim=16, depth=1, heads=2)
JUNK = LayersConfig.model_construct(dim="x", depth=Hostile())


@pytest.mark.parametrize(
    ("config", "answers"),
    [
        (JUNK, ["dim='x': input should be a valid integer", "depth=<Hostile>: input should be a valid integer."]),
        (ModelConfig(num_tokens=4, max_seq_len=8, layers=JUNK), ["layers: dim='x'", "layers: depth=<Hostile>"]),
        (ModelConfig.model_construct(num_tokens="q", layers=GOOD), ["num_tokens='q'", "max_seq_len is missing."]),
        (ModelConfig.model_construct(num_tokens=4, max_seq_len=8, layers=3), ["layers=3: input should be a valid"]),
        (GOOD.model_copy(update={"attn": AttentionConfig.model_construct(dropout=7)}), ["attn: dropout=7: input"]),
        (GOOD.model_copy(update={"pattern": (LayerConfig.model_construct(window=-1),)}), ["pattern[0]: window=-1"]),
        (GOOD.model_copy(update={"position": (Rope.model_construct(theta="x"),)}), ["position[0]: theta='x'"]),
        (GOOD.model_copy(update={"position": bomb()}), [f"more than {MAX_VALUES} values"]),
        (Seq2SeqConfig.model_construct(encoder=GOOD), ["decoder is missing."]),
    ],
)
def test_configs_made_without_validation(config: Any, answers: list[str]) -> None:
    report = check(config)
    assert all(any(answer in error for error in report.errors) for answer in answers), report
    built = {LayersConfig: Decoder, ModelConfig: TransformerWrapper, Seq2SeqConfig: XTransformer}
    with pytest.raises(XPositionalError) as raised:
        built[type(config)].from_config(config)
    assert all(answer in str(raised.value) for answer in answers)


def test_values_are_looked_into_everywhere() -> None:
    assert bound_problems({(1, 2): {"a": cyclic()}, 3: nested(50)})
    assert bound_problems({"a": [1, 2.5, "x", None, True, (1e30, -1e-30, 0.0)]}) == []
    shared = [1] * 10
    assert bound_problems([shared] * 10) == []
    assert shown(Hostile()) == "<Hostile>"
    assert len(shown("x" * 10_000)) < 500
    assert shown(bomb()) == "a list of more than 50000 values"
    assert shown({"a": bomb()}) == "a dict of more than 50000 values"
    assert shown(cyclic()) == repr(cyclic())
    assert shown(nested(5_000)) == "<list>"
    assert shown([Hostile()]) == "<list>"
    assert read_target({"dim": cyclic()}, {}).problems
