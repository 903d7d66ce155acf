"""Reading Hugging Face's configs: every older form, and what is refused."""

from typing import Any

import pytest

from tests.support.hf_rope_configs import EACH, LLAMA, LONG, YARN
from x_positional.errors import RopeError
from x_positional.pretrained.rope import from_hf, inverse_frequencies
from x_positional.schemes import (
    DynamicNtk,
    Linear,
    Llama3,
    LongRope,
    NoPE,
    NtkAlpha,
    NtkByParts,
    Proportional,
    Rope,
    Yarn,
)

Dict = dict[str, Any]
LISTS = {"short_factor": [1.0, 2.0], "long_factor": [3.0, 4.0]}
TWO = {"sliding_attention": {"rope_type": "default", "rope_theta": 1e4}, "full_attention": None}


@pytest.mark.parametrize(
    ("config", "rope"),
    [
        ({}, Rope()),
        (LLAMA, Rope()),
        (LLAMA | {"rope_theta": 5e5}, Rope(theta=5e5)),
        (LLAMA | {"rope_scaling": None, "rope_theta": 500_000}, Rope(theta=5e5)),
        ({"rope_type": "linear", "factor": 8}, Rope(scaling=Linear(factor=8))),
        ({"type": "linear", "factor": 8.0}, Rope(scaling=Linear(factor=8))),
        ({"type": "linear", "rope_type": "linear", "factor": 8.0, "beta_fast": None}, Rope(scaling=Linear(factor=8))),
        (LLAMA | {"rope_scaling": YARN}, Rope(scaling=Yarn(factor=4, original_max_position_embeddings=4096))),
        (
            LLAMA | {"rope_parameters": YARN | {"rope_theta": 1e6}, "rope_theta": 1e4},
            Rope(theta=1e6, scaling=Yarn(factor=4, original_max_position_embeddings=4096)),
        ),
        (
            LLAMA | {"rope_scaling": YARN | {"factor": None}},
            Rope(scaling=Yarn(factor=32, original_max_position_embeddings=4096)),
        ),
        (
            LLAMA | {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            Rope(scaling=Yarn(factor=2, original_max_position_embeddings=131_072)),
        ),
        (
            LLAMA | {"rope_scaling": YARN, "original_max_position_embeddings": 8192},
            Rope(scaling=Yarn(factor=4, original_max_position_embeddings=8192)),
        ),
        (
            LLAMA | {"rope_scaling": YARN | {"beta_fast": 0, "mscale": 0.7, "truncate": False}},
            Rope(scaling=Yarn(factor=4, original_max_position_embeddings=4096, truncate=False)),
        ),
        (
            LLAMA | {"rope_scaling": YARN | {"mscale": 1, "mscale_all_dim": 0.5, "attention_factor": 1}},
            Rope(
                scaling=Yarn(
                    factor=4, original_max_position_embeddings=4096, mscale=1, mscale_all_dim=0.5, attention_factor=1
                )
            ),
        ),
        (
            LLAMA
            | {
                "rope_scaling": {
                    "rope_type": "llama3",
                    "factor": 8.0,
                    "low_freq_factor": 1.0,
                    "high_freq_factor": 4.0,
                    "original_max_position_embeddings": 8192,
                }
            },
            Rope(scaling=Llama3()),
        ),
        (
            LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            Rope(scaling=DynamicNtk(factor=2, original_max_position_embeddings=131_072, **EACH)),
        ),
        (
            LLAMA
            | {"rope_scaling": {"type": "dynamic", "factor": 2.0, "alpha": 1000.0, "mscale": 1.0, "beta_fast": 32}},
            Rope(scaling=NtkAlpha(alpha=1000)),
        ),
        (LLAMA | {"rope_scaling": {"type": "xdrope", "alpha": 1000.0}}, Rope(scaling=NtkAlpha(alpha=1000))),
        (
            {
                "model_type": "phi3",
                "max_position_embeddings": 128,
                "original_max_position_embeddings": 32,
                "rope_scaling": {"type": "su", **LISTS},
            },
            Rope(scaling=LONG),
        ),
        (
            {
                "model_type": "phi3",
                "max_position_embeddings": 128,
                "original_max_position_embeddings": 32,
                "rope_scaling": {"type": "longrope", "attention_factor": 1, **LISTS},
            },
            Rope(
                scaling=LongRope(
                    short_factor=(1, 2),
                    long_factor=(3, 4),
                    attention_factor=1,
                    original_max_position_embeddings=32,
                    **EACH,
                )
            ),
        ),
        (LLAMA | {"partial_rotary_factor": 0.5}, Rope(fraction=0.5)),
        ({"model_type": "gpt_neox", "rotary_pct": 0.3, "rotary_emb_base": 500}, Rope(fraction=0.3, theta=500)),
        ({"model_type": "gpt_neox"}, Rope(fraction=0.25)),
        ({"model_type": "gptj", "rotary_dim": 64}, Rope(dim=64, interleaved=True)),
        ({"model_type": "cohere"}, Rope(theta=5e5, interleaved=True)),
        ({"model_type": "deepseek_v3", "rope_interleave": False}, Rope()),
        ({"model_type": "smollm3", "no_rope_layers": [1, 1, 1, 0]}, Rope(theta=2e6)),
        ({"model_type": "dbrx", "attn_config": {"rope_theta": 5e5}}, Rope(theta=5e5)),
        (
            {"rope_parameters": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25}},
            Rope(theta=1e6, scaling=Proportional(fraction=0.25)),
        ),
        (
            {"type": "ntk_by_parts", "factor": 2, "original_max_position_embeddings": 64},
            Rope(scaling=NtkByParts(factor=2, original_max_position_embeddings=64)),
        ),
    ],
)
def test_one_rotation(config: Dict, rope: Rope) -> None:
    before = repr(config)
    assert from_hf(config) == rope
    assert repr(config) == before


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (TWO, (Rope(), NoPE())),
        ({"rope_parameters": TWO, "layer_types": ["full_attention", "sliding_attention"]}, (Rope(), NoPE())),
        ({"model_type": "gemma3_text"}, (Rope(), Rope(theta=1e6))),
        (
            {
                "model_type": "gemma3_text",
                "rope_theta": 2e6,
                "rope_local_base_freq": 2e4,
                "rope_scaling": {"rope_type": "linear", "factor": 8.0},
            },
            (Rope(theta=2e4), Rope(theta=2e6, scaling=Linear(factor=8))),
        ),
        ({"rope_theta": 2e6, "rope_local_base_freq": 2e4}, (Rope(theta=2e4), Rope(theta=2e6))),
        (
            {
                "model_type": "modernbert",
                "global_rope_theta": 2e5,
                "local_rope_theta": 3e4,
                "rope_scaling": {"type": "linear", "factor": 2.0},
            },
            (Rope(theta=3e4, scaling=Linear(factor=2)), Rope(theta=2e5, scaling=Linear(factor=2))),
        ),
        (
            {"model_type": "olmo3", "rope_theta": 5e5, "rope_scaling": YARN},
            (Rope(theta=5e5), Rope(theta=5e5, scaling=Yarn(factor=4, original_max_position_embeddings=4096))),
        ),
    ],
)
def test_one_for_each_layer_type(config: Dict, parts: tuple[Rope, Rope]) -> None:
    assert from_hf(config) == {"sliding_attention": parts[0], "full_attention": parts[1]}


def test_nested_dicts_use_top_level_defaults() -> None:
    nested = {"full_attention": YARN, "sliding_attention": {"rope_theta": 2e4, "partial_rotary_factor": 1.0}}
    found = from_hf({"rope_parameters": nested, "rope_theta": 5e5, "partial_rotary_factor": 0.5})
    assert found["full_attention"] == Rope(
        theta=5e5, fraction=0.5, scaling=Yarn(factor=4, original_max_position_embeddings=4096)
    )
    assert found["sliding_attention"] == Rope(theta=2e4)


def test_which_trained_length_counts() -> None:
    """For dynamic NTK the config's; otherwise the top-level one in a flat config, the dict's own in a nested one."""
    stray = {"type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 16}
    assert from_hf(LLAMA | {"rope_scaling": stray}).scaling.original_max_position_embeddings == 131_072
    assert from_hf(stray).scaling.original_max_position_embeddings == 16
    nested = {"full_attention": {"type": "yarn", "factor": 2.0}, "sliding_attention": YARN}
    found = from_hf(LLAMA | {"rope_parameters": nested, "original_max_position_embeddings": 77})
    assert [found[name].scaling.original_max_position_embeddings for name in nested] == [131_072, 4096]


def test_a_length_makes_it_fixed() -> None:
    config = LLAMA | {"rope_scaling": {"type": "dynamic", "factor": 2.0}}
    assert from_hf(config, length=200_000).scaling == DynamicNtk(
        factor=2, original_max_position_embeddings=131_072, length=200_000
    )
    assert from_hf(LLAMA | {"rope_scaling": YARN}, length=99) == from_hf(LLAMA | {"rope_scaling": YARN})


def test_unsupported_keys() -> None:
    sections = {"type": "mrope", "mrope_section": [16, 24, 24]}
    assert inverse_frequencies(sections, 128)[0].shape == (64,)
    assert from_hf(sections, ignore=("mrope_section",)) == Rope()
    with pytest.raises(RopeError, match="scales queries"):
        from_hf(YARN | {"llama_4_scaling_beta": 0.1})
    with pytest.raises(RopeError, match="a different theta for each layer"):
        from_hf(LLAMA | {"layer_rope_theta": [1e4, 1e6]})
    assert from_hf(LLAMA | {"layer_rope_theta": [1e4, 1e6]}, ignore={"layer_rope_theta"}) == Rope()


BAD: list[tuple[Dict, list[str]]] = [
    ({"rope_type": "yarm", "factor": 2.0}, ["unknown rope_type 'yarm'; did you mean 'yarn'?"]),
    ({"rope_type": "axial"}, ["rotates images by row and column"]),
    (
        {"rope_type": "linear", "factr": 2.0},
        ["factr is unknown for rope_type='linear'; did you mean 'factor'?", "factor is missing"],
    ),
    ({"rope_type": "linear", "factor": 0.5}, ["factor=0.5: input should be greater than or equal to 1"]),
    ({"rope_type": "linear", "factor": "8"}, ["factor='8' must be a number"]),
    ({"rope_type": "linear", "factor": True}, ["factor=True must be a number"]),
    ({"rope_type": "linear", "factor": float("nan")}, ["factor=nan"]),
    ({"rope_type": "default", "factor": 2.0}, ["factor is unknown for rope_type='default'"]),
    ({"rope_type": "default", "rope_theta": None}, ["rope_theta is None"]),
    ({"rope_type": "default", "rope_theta": -1}, ["rope_theta=-1 must be above 0"]),
    ({"rope_type": "default", "rope_theta": "big"}, ["rope_theta='big' must be a number"]),
    ({"rope_type": "default", "partial_rotary_factor": 4}, ["partial_rotary_factor=4 must be above 0 and at most 1"]),
    (
        {"rope_type": "proportional", "partial_rotary_factor": 1.5},
        ["fraction=1.5: input should be less than or equal to 1"],
    ),
    (
        {"rope_type": "llama3", "factor": None, "low_freq_factor": 1.0, "original_max_position_embeddings": 8},
        ["factor is missing", "high_freq_factor is missing"],
    ),
    (
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 4.0,
            "high_freq_factor": 1.0,
            "original_max_position_embeddings": 8192,
        },
        ["low_freq_factor=4 must be at most"],
    ),
    ({"rope_type": "yarn", "factor": 4.0}, ["original_max_position_embeddings is missing"]),
    ({"rope_type": "dynamic", "factor": 4.0}, ["original_max_position_embeddings is missing"]),
    ({"rope_type": "yarn", "factor": None, "original_max_position_embeddings": 64}, ["factor is missing"]),
    (YARN | {"truncate": "yes"}, ["truncate='yes' must be a bool"]),
    (
        {
            "rope_type": "longrope",
            "short_factor": None,
            "long_factor": [1.0, "2"],
            "original_max_position_embeddings": 64,
        },
        ["short_factor is missing", "long_factor[1]='2' must be a number"],
    ),
    (
        {"rope_type": "longrope", "original_max_position_embeddings": 64, "factor": 2.0, **LISTS},
        ["short_factor has 2 numbers; width 32 has 16 pairs", "long_factor has 2 numbers"],
    ),
]


@pytest.mark.parametrize(("parameters", "words"), BAD, ids=[words[0][:40] for _, words in BAD])
def test_invalid_parameters(parameters: Dict, words: list[str]) -> None:
    """All problems at once, and the same ones from both functions."""
    config = {"rope_parameters": parameters, "hidden_size": 64, "num_attention_heads": 2}
    for call in (lambda: inverse_frequencies(parameters, 32), lambda: from_hf(config)):
        with pytest.raises(RopeError) as caught:
            call()
        assert len(caught.value.problems) == len(words), caught.value
        for word, problem in zip(words, caught.value.problems, strict=True):
            assert word in problem
            assert problem in str(caught.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (LLAMA | {"rope_thta": 1e4}, ["rope_thta=10000.0: unknown key; did you mean 'rope_theta'?"]),
        (
            LLAMA | {"rope_scalling": {"factor": 2}, "rotary_fraction": 0.5},
            ["did you mean 'rope_scaling'?", "rotary_fraction=0.5"],
        ),
        (
            {"rope_scaling": YARN, "rope_parameters": {"rope_theta": 1e4}},
            ["rope_scaling and rope_parameters mean the same thing but differ"],
        ),
        (
            {"rope_theta": 1e4, "rotary_emb_base": 500},
            ["rope_theta=10000.0 and rotary_emb_base=500 mean the same thing"],
        ),
        ({"rotary_pct": 0.5, "partial_rotary_factor": 0.25}, ["mean the same thing"]),
        ({"rope_parameters": {"sliding_atention": {"rope_theta": 1.0}}}, ["did you mean 'sliding_attention'?"]),
        (
            {"rope_parameters": {"sliding_attention": {}, "rope_theta": 1.0}},
            ["mix dicts (sliding_attention) and plain values"],
        ),
        ({"rope_parameters": [1]}, ["must be a dict"]),
        ({"model_type": "gpt2"}, ["no RoPE parameters in this config (model_type='gpt2')"]),
        ({"model_type": "llava", "text_config": {}}, ["The config has a text_config: pass that."]),
        ({"model_type": "gpt_oss"}, ["scales its frequencies by default"]),
        ({"model_type": "nanochat", "rope_theta": 1e4}, ["by the negative angle"]),
        ({"model_type": "falcon", "alibi": True, "rope_theta": 1e4}, ["alibi=True"]),
        (
            LLAMA | {"max_position_embeddings": "4k", "rope_theta": 1e4},
            ["max_position_embeddings='4k' must be a positive integer"],
        ),
        (
            {"rope_parameters": {"full_attention": {"rope_type": "x"}, "sliding_attention": {"factor": 2}}},
            ["full_attention: unknown rope_type 'x'", "sliding_attention: factor is unknown"],
        ),
    ],
)
def test_invalid_configs(config: Dict, words: list[str]) -> None:
    with pytest.raises(RopeError) as caught:
        from_hf(config)
    assert len(caught.value.problems) == len(words), caught.value
    for word, problem in zip(words, caught.value.problems, strict=True):
        assert word in problem


def test_frequencies_of_one_dict_only() -> None:
    with pytest.raises(RopeError, match="Pass those of one type: sliding_attention, full_attention"):
        inverse_frequencies(TWO, 64)
    with pytest.raises(RopeError, match=r"rotary width is 1 \(head_dim=2\)"):
        inverse_frequencies({"partial_rotary_factor": 0.5}, 2)
