"""Scalings as configs: files, ways to write them, values and combinations that are refused."""

from collections.abc import Callable

import pytest

from tests.support.scaling_formulas import FORMULAS, THETA, WIDTH, L
from x_positional import ConfigError, Decoder, ModelConfig, TransformerWrapper, build_model, check
from x_positional.config.models import plain
from x_positional.schemes import (
    DefaultRope,
    DynamicNtk,
    Linear,
    Llama3,
    LongRope,
    Ntk,
    NtkAlpha,
    NtkByParts,
    Proportional,
    Rope,
    RopeScaling,
    Yarn,
)
from x_positional.schemes.base import Dims
from x_positional.schemes.rotary.scaling import SCALINGS


@pytest.mark.parametrize("name", FORMULAS)
def test_a_file_holds_it(name: str, tmp_path) -> None:
    position = Rope(theta=5e5, interleaved=True, scaling=FORMULAS[name][0])
    layers = {"kind": "decoder", "dim": 16, "depth": 1, "heads": 1, "head_dim": WIDTH, "position": position}
    config = ModelConfig(num_tokens=5, max_seq_len=64, layers=layers)
    path = tmp_path / "model.yaml"
    config.to_yaml(path)
    assert ModelConfig.from_yaml(path) == config
    assert f"rope_type: {FORMULAS[name][0].rope_type}" in path.read_text()
    assert ModelConfig.model_validate(config.model_dump(mode="json")) == config
    assert Rope.model_validate(plain(position)) == position
    assert build_model(ModelConfig.from_yaml(path)).config == config


def test_ways_to_write_it() -> None:
    written = {"rope_type": "yarn", "factor": 8, "original_max_position_embeddings": 4096}
    assert Rope(scaling=written).scaling == Yarn(factor=8, original_max_position_embeddings=4096)
    assert Rope(scaling="llama3").scaling == Llama3()
    flags = Decoder(dim=16, depth=1, heads=1, attn_dim_head=64, position=Rope(scaling=Llama3()))
    model = TransformerWrapper(num_tokens=5, max_seq_len=32, attn_layers=flags)
    assert "Llama3" in model.describe()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Rope(scaling="yarm"), "did you mean 'yarn'"),
        (lambda: Rope(scaling=3.0), "a dict with rope_type"),
        (lambda: Rope(scaling={"factor": 2.0}), "a dict with rope_type"),
        (lambda: Rope(scaling={"rope_type": "linear", "factr": 2.0}), "factr"),
        (lambda: Linear(factor=0.5), "greater than or equal to 1"),
        (lambda: Linear(factor=float("inf")), "finite"),
        (lambda: Yarn(factor=2), "original_max_position_embeddings"),
        (lambda: Llama3(original_max_position_embeddings=0), "greater than 0"),
        (lambda: NtkAlpha(alpha=0), "greater than 0"),
        (lambda: Proportional(fraction=1.5), "less than or equal to 1"),
        (lambda: DynamicNtk(original_max_position_embeddings=8, length_policy="never"), "'fixed' or 'recompute'"),
    ],
)
def test_values_that_no_scaling_takes(make: Callable[[], object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        make()


SHORTS = {"short_factor": (1.0, 2.0), "long_factor": (1.0, 2.0, 0.0)}
PROBLEMS: list[tuple[Rope, list[str]]] = [
    (Rope(scaling=Yarn(factor=2, beta_fast=1, beta_slow=2, **L)), ["beta_slow=2 must be at most beta_fast=1"]),
    (Rope(scaling=Yarn(factor=2, mscale=1.0, **L)), ["mscale and mscale_all_dim must be set together"]),
    (Rope(scaling=Yarn(factor=2, **L), theta=1.0), ["theta=1 must be above 1"]),
    (Rope(scaling=Yarn(factor=2, original_max_position_embeddings=1)), ["the ramp would end at pair"]),
    (
        Rope(scaling=Llama3(low_freq_factor=4, high_freq_factor=3)),
        ["low_freq_factor=4 must be at most high_freq_factor=3"],
    ),
    (Rope(scaling=NtkByParts(factor=2, alpha=5, beta=3, **L)), ["alpha=5 must be below beta=3"]),
    (Rope(scaling=Ntk(factor=2), dim=2), ["width 2 is one pair"]),
    (Rope(scaling=NtkAlpha(alpha=2), dim=2), ["width 2 is one pair"]),
    (
        Rope(scaling=DynamicNtk(length=4, length_policy="recompute", **L), dim=2),
        ["length=4 needs length_policy='fixed'", "width 2 is one pair"],
    ),
    (
        Rope(scaling=LongRope(**SHORTS, length=9, long_mscale=1.0, **L)),
        [
            "short_factor has 2 numbers; width 128 has 64 pairs",
            "long_factor has 3 numbers",
            "long_factor contains 0",
            "short_mscale and long_mscale must be set together",
            "the attention factor is derived from factor",
        ],
    ),
    (Rope(scaling=Linear(factor=2), interpolation_factor=2.0), ["cannot be combined with scaling 'linear'"]),
    (Rope(scaling=Linear(factor=2), base_rescale_factor=2.0), ["cannot be combined with scaling 'linear'"]),
]


@pytest.mark.parametrize(("config", "words"), PROBLEMS, ids=[words[0] for _, words in PROBLEMS])
def test_what_does_not_fit_a_model_is_said_at_once(config: Rope, words: list[str]) -> None:
    dims = Dims(dim=128, heads=1, kv_heads=1, head_dim=WIDTH, causal=True, embed_dim=128, max_seq_len=None)
    found = config.problems(dims)
    assert len(found) == len(words)
    for word, problem in zip(words, found, strict=True):
        assert word in problem
    report = check(dim=128, depth=1, heads=1, attn_dim_head=WIDTH, position=config, max_seq_len=64, num_tokens=5)
    assert [any(word in error for error in report.errors) for word in words] == [True] * len(words)


def test_a_fixed_length_is_asked_for() -> None:
    dims = Dims(dim=128, heads=1, kv_heads=1, head_dim=WIDTH, causal=True, embed_dim=128, max_seq_len=None)
    assert "needs to know the final length" in Rope(scaling=DynamicNtk(**L)).problems(dims)[0]
    with pytest.raises(ValueError, match="need a length"):
        DynamicNtk(**L).frequencies(8, THETA)
    with pytest.raises(ValueError, match="need a length"):
        DynamicNtk(length_policy="recompute", **L).frequencies(8, THETA)


def test_a_length_past_what_was_stretched_is_worth_a_word() -> None:
    sizes = {"dim": 64, "depth": 1, "heads": 1, "attn_dim_head": 64, "num_tokens": 5}
    small = Rope(scaling=Yarn(factor=2, original_max_position_embeddings=100))
    assert any(
        "extends the context to 200 positions" in text
        for text in check(**sizes, position=small, max_seq_len=201).warnings
    )
    assert check(**sizes, position=small, max_seq_len=200).warnings == []


def test_a_scaling_of_ones_own(monkeypatch: pytest.MonkeyPatch) -> None:
    from typing import Literal

    monkeypatch.setattr(RopeScaling, "registry", dict(SCALINGS))

    class Backwards(RopeScaling):
        rope_type: Literal["backwards"] = "backwards"

        def frequencies(self, width, theta, *, length=None, device=None):
            plain = DefaultRope().frequencies(width, theta)
            return plain._replace(inv_freq=-plain.inv_freq)

    assert Rope(scaling="backwards").scaling == Backwards()
    with pytest.raises(ValueError, match="already registered"):

        class Another(RopeScaling):
            rope_type: Literal["backwards"] = "backwards"
