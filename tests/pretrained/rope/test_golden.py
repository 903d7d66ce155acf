"""Frequencies from Hugging Face's dicts against transformers, over random parameters; with its known bugs fixed."""

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from x_positional.pretrained.rope import from_hf, inverse_frequencies, to_hf
from x_positional.pretrained.rope.parameters import COMMON_KEYS

transformers = pytest.importorskip("transformers", reason="the oracle is transformers")
from transformers import (  # noqa: E402
    LlamaConfig,
    Olmo3Config,
    Phi3Config,
    PhimoeConfig,
    modeling_rope_utils,
)
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS  # noqa: E402
from transformers.models.hunyuan_v1_dense.modeling_hunyuan_v1_dense import HunYuanDenseV1RotaryEmbedding  # noqa: E402
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding  # noqa: E402
from transformers.models.phimoe.modeling_phimoe import PhimoeRotaryEmbedding  # noqa: E402

transformers.logging.set_verbosity_error()

Dict = dict[str, Any]
SETS = 150
BOUND = 1e-6


def width_of(head_dim: int, parameters: Dict) -> int:
    return int(head_dim * parameters.get("partial_rotary_factor", 1.0))


def sometimes(draw: random.Random, parameters: Dict) -> Dict:
    """Each of these keys is present or absent."""
    return {key: value for key, value in parameters.items() if draw.random() < 0.5}


def linear(draw: random.Random, **_: Any) -> Dict:
    return {"factor": draw.choice([1, 2.0, 8, draw.uniform(1, 64)])}


def yarn(draw: random.Random, trained: int, **_: Any) -> Dict:
    given = {"factor": draw.choice([None, 1.0, 4, 40.0, draw.uniform(1, 64)])}
    scales = draw.choice(
        [
            {},
            {"mscale": 0.707, "mscale_all_dim": 0.707},
            {"mscale": 1.0, "mscale_all_dim": 0.5},
            {"mscale": 0.9},
            {"mscale": 0, "mscale_all_dim": 1.0},
        ]
    )
    optional = {
        "beta_fast": draw.choice([32, 0, None, draw.uniform(16, 64)]),
        "beta_slow": draw.choice([1, None, draw.uniform(0.5, 2)]),
        "truncate": draw.choice([True, False]),
        "attention_factor": draw.uniform(0.5, 2),
    }
    return given | scales | sometimes(draw, optional) | {"original_max_position_embeddings": trained}


def longrope(draw: random.Random, trained: int, pairs: int, **_: Any) -> Dict:
    lists = {name: [draw.uniform(1, 64) for _ in range(pairs)] for name in ("short_factor", "long_factor")}
    optional = {"factor": draw.uniform(0.5, 32), "attention_factor": draw.uniform(0.5, 2)}
    return lists | sometimes(draw, optional) | {"original_max_position_embeddings": trained}


def llama3(draw: random.Random, trained: int, **_: Any) -> Dict:
    low = draw.choice([1.0, draw.uniform(0.5, 2)])
    return {
        "factor": draw.choice([8.0, 32.0, draw.uniform(1, 32)]),
        "low_freq_factor": low,
        "high_freq_factor": low * draw.choice([4.0, draw.uniform(1.5, 8)]),
        "original_max_position_embeddings": trained,
    }


def proportional(draw: random.Random, **_: Any) -> Dict:
    return sometimes(draw, {"factor": draw.uniform(1, 8)})


DRAWS: dict[str, Callable[..., Dict]] = {
    "linear": linear,
    "dynamic": linear,
    "yarn": yarn,
    "longrope": longrope,
    "llama3": llama3,
    "proportional": proportional,
}


def random_case(kind: str, draw: random.Random) -> tuple[Dict, int, int, int | None]:
    """(rope_parameters, head_dim, max_position_embeddings, seq_len)."""
    head_dim, trained = draw.choice([32, 64, 96, 100, 128, 256]), draw.choice([512, 2048, 4096, 8192, 32_768])
    length = int(trained * draw.choice([1, 2, 8, 32, 2.5]))
    theta = draw.choice([500.0, 1e4, 5e5, 1e6, draw.uniform(1e3, 1e7)])
    common: Dict = {"rope_type": kind, "rope_theta": theta}
    common |= sometimes(draw, {"partial_rotary_factor": draw.choice([0.25, 0.5, 0.75, 0.9, 1.0])})
    if kind == "yarn" and width_of(head_dim, common) % 2:
        common["partial_rotary_factor"] = 0.5  # theirs fails on an odd width
    pairs = (width_of(head_dim, common) + 1) // 2
    seq_len = draw.choice([None, 1, trained - 1, trained, trained + 1, length - 1, length, length + 1, 2 * length])
    return common | DRAWS[kind](draw, trained=trained, pairs=pairs), head_dim, length, seq_len


def theirs(parameters: Dict, head_dim: int, length: int, seq_len: int | None) -> tuple[Tensor, float]:
    config = LlamaConfig(
        hidden_size=4 * head_dim,
        num_attention_heads=4,
        head_dim=head_dim,
        max_position_embeddings=length,
        rope_parameters=dict(parameters),
    )
    return ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config, seq_len=seq_len)


def relative(got: Tensor, want: Tensor) -> float:
    assert got.shape == want.shape
    assert got.dtype == want.dtype == torch.float32
    still = want == 0
    assert torch.equal(got == 0, still)
    return ((got - want).abs() / want.abs().clamp(min=1e-30))[~still].max().item() if not still.all() else 0.0


class InFloat64:
    """torch, but float64 where float32 is requested."""

    float = float32 = torch.float64

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)


@pytest.mark.parametrize("kind", DRAWS)
def test_every_type_over_random_parameters(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers' functions in float64, so that formulas are compared and not rounding."""
    monkeypatch.setattr(modeling_rope_utils, "torch", InFloat64())
    draw = random.Random(kind)
    for _ in range(SETS):
        case = random_case(kind, draw)
        before = dict(case[0])
        inv_freq, factor = inverse_frequencies(*case)
        want, want_factor = theirs(*case)
        assert relative(inv_freq, want.float()) <= BOUND, case
        assert factor == pytest.approx(want_factor, rel=BOUND), case
        assert case[0] == before


@pytest.mark.parametrize("kind", DRAWS)
def test_every_type_as_it_runs(kind: str) -> None:
    """In float32, as models run them. Theirs of yarn and llama3 mixes f and f/s in float32, where what is left of the
    difference of near-equal numbers has few digits; there the bound is relative to f."""
    draw = random.Random(f"{kind}, float32")
    for _ in range(SETS):
        case = random_case(kind, draw)
        inv_freq, want = inverse_frequencies(*case)[0], theirs(*case)[0]
        if kind not in ("yarn", "llama3"):
            assert relative(inv_freq, want) <= BOUND, case
            continue
        common = {key: value for key, value in case[0].items() if key in COMMON_KEYS} | {"rope_type": "default"}
        plain, _ = inverse_frequencies(common, case[1])
        assert ((inv_freq - want).abs() <= BOUND * plain).all(), case


@pytest.mark.parametrize("head_dim", [32, 64, 100, 256])
@pytest.mark.parametrize("theta", [1e4, 5e5, 1e6])
def test_default(head_dim: int, theta: float) -> None:
    config = LlamaConfig(num_attention_heads=4, head_dim=head_dim, rope_theta=theta)
    want, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    inv_freq, ours = inverse_frequencies(config.rope_parameters, head_dim, config.max_position_embeddings)
    assert relative(inv_freq, want) <= BOUND
    assert ours == factor == 1


def test_ntk_alpha() -> None:
    """HunYuan's files have type `dynamic`; their other keys have no effect."""
    draw = random.Random("alpha")
    for _ in range(SETS):
        head_dim, alpha = draw.choice([64, 96, 128]), draw.choice([1000.0, 0.5, draw.uniform(1, 5000)])
        parameters = {"rope_type": "dynamic", "rope_theta": draw.choice([1e4, 1e6]), "alpha": alpha}
        config = LlamaConfig(num_attention_heads=4, head_dim=head_dim, rope_parameters=parameters | {"factor": 1.0})
        want, _ = HunYuanDenseV1RotaryEmbedding.compute_ntk_alpha_rope_parameters(config)
        dead = {"factor": draw.uniform(1, 8), "beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
        inv_freq, factor = inverse_frequencies(parameters | dead, head_dim, 4096, seq_len=draw.choice([None, 10_000]))
        assert relative(inv_freq, want) <= BOUND
        assert factor == 1


def test_a_nested_truncate_is_read_where_it_stands() -> None:
    """transformers reads YaRN's truncate at the top level only, and ignores it in a layer type's dict."""
    yarn = ROPE_INIT_FUNCTIONS["yarn"]
    scaled = {"rope_type": "yarn", "rope_theta": 1.5e5, "factor": 32.0, "original_max_position_embeddings": 4096}
    kept, size = scaled | {"truncate": False}, {"hidden_size": 256, "num_attention_heads": 4}
    plain = {"rope_type": "default", "rope_theta": 1.5e5}
    nested = Olmo3Config(
        **size, rope_parameters={"full_attention": dict(kept), "sliding_attention": plain}, num_hidden_layers=4
    )
    lost, _ = yarn(nested, layer_type="full_attention")
    assert torch.equal(lost, yarn(LlamaConfig(**size, rope_parameters=dict(scaled)))[0])
    right, factor = yarn(LlamaConfig(**size, rope_parameters=dict(kept)))
    rope = from_hf(nested)["full_attention"]
    ours = rope.scaling.frequencies(64, rope.theta)
    assert relative(ours.inv_freq.float(), right) <= BOUND
    assert relative(ours.inv_freq.float(), lost) > 0.1
    assert ours.attention_factor == pytest.approx(factor)


PHIMOE = {
    "rope_type": "longrope",
    "rope_theta": 1e4,
    "short_factor": [1.0 + i for i in range(8)],
    "long_factor": [50.0 + i for i in range(8)],
    "short_mscale": 1.1,
    "long_mscale": 1.3,
    "original_max_position_embeddings": 16,
}


def test_phimoe_turns_long_texts_by_the_long_factors() -> None:
    """transformers changes only the attention factor there; its frequencies stay those of short sequences."""
    config = PhimoeConfig(
        hidden_size=64,
        num_attention_heads=4,
        max_position_embeddings=64,
        rope_parameters=dict(PHIMOE),
    )
    module = PhimoeRotaryEmbedding(config)
    for length, name, mscale in ((16, "short_factor", 1.1), (17, "long_factor", 1.3)):
        positions = torch.arange(length)[None]
        cos, sin = module(torch.zeros(1, length, 16), positions)
        inv_freq, factor = inverse_frequencies(PHIMOE, 16, 64, seq_len=length)
        plain = 1 / (1e4 ** (torch.arange(0, 16, 2).double() / 16))
        assert factor == mscale
        assert relative(inv_freq, (plain / torch.tensor(PHIMOE[name]).double()).float()) <= BOUND
        angle = positions[0, :, None] * inv_freq
        same = torch.allclose(cos[0, :, :8], angle.cos() * factor, atol=1e-5)
        assert same == (length == 16)
        always_short = positions[0, :, None] * inverse_frequencies(PHIMOE, 16, 64)[0]
        assert torch.allclose(sin[0, :, :8], always_short.sin() * mscale, atol=1e-5)


def test_su_is_longrope() -> None:
    """The first name of Phi-3's scaling; transformers 5.24 fails on it."""
    scaling = {"type": "su", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    size = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "original_max_position_embeddings": 32,
    }
    with pytest.raises(KeyError, match="original_max_position_embeddings"):
        Phi3Config(**size, rope_scaling=dict(scaling))
    modern = from_hf(Phi3Config(**size, rope_scaling=scaling | {"type": "longrope"}))
    for name in ("su", "yarn"):
        assert from_hf(size | {"model_type": "phi3", "rope_scaling": scaling | {"type": name}}) == modern
    assert modern.scaling.factor == 4
    assert modern.scaling.original_max_position_embeddings == 32


@pytest.mark.parametrize("kind", DRAWS)
def test_what_is_written_runs_there(kind: str) -> None:
    """transformers reads the keys that to_hf writes and computes the same frequencies."""
    draw = random.Random(f"{kind}, written")
    for _ in range(20):
        parameters, head_dim, length, seq_len = random_case(kind, draw)
        written = to_hf(from_hf({"rope_parameters": parameters, "max_position_embeddings": length}))
        config = LlamaConfig(num_attention_heads=4, head_dim=head_dim, **{"max_position_embeddings": length} | written)
        again, factor = ROPE_INIT_FUNCTIONS[kind](config, seq_len=seq_len)
        want, want_factor = theirs(parameters, head_dim, length, seq_len)
        assert torch.allclose(again, want, rtol=BOUND, atol=0)
        assert factor == pytest.approx(want_factor)
