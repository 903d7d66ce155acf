"""Scalings of rotary frequencies: the papers' formulas in plain Python, identities, precision, files, refusals."""

import math
from collections.abc import Callable

import pytest
import torch

from tests.support.naive_attention import attended, dot, naive, one_layer, pairwise, random_qkv
from tests.support.scaling_formulas import FORMULAS, HALF, THETA, TRAINED, WIDTH, L, f
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
    RopeEmbedding,
    RopeScaling,
    XPos,
    Yarn,
    YarnPaper,
)
from x_positional.schemes.base import Dims
from x_positional.schemes.rotary.scaling import SCALINGS

FAR = [255, 256, 257, 4095, 65_535, 2**20 - 1]


@pytest.mark.parametrize("name", FORMULAS)
def test_the_formula(name: str) -> None:
    scaling, inv_freq, factor = FORMULAS[name]
    found = scaling.frequencies(WIDTH, THETA)
    assert scaling.problems(WIDTH, THETA) == []
    assert found.inv_freq.dtype == torch.float64
    assert found.inv_freq.tolist() == pytest.approx(inv_freq, rel=1e-13)
    assert found.attention_factor == pytest.approx(factor, rel=1e-13)


def test_every_scaling_has_a_formula_here() -> None:
    own = {name for name, cls in SCALINGS.items() if cls.__module__.startswith("x_positional.")}
    assert own == {scaling.rope_type for scaling, _, _ in FORMULAS.values()}


ONE = {"factor": 1.0, **L}
SAME_AS_ROPE = {
    "linear": Linear(factor=1),
    "ntk": Ntk(factor=1),
    "ntk_alpha": NtkAlpha(alpha=1),
    "by_parts": NtkByParts(**ONE),
    "yarn": Yarn(**ONE),
    "yarn, mscale": Yarn(mscale=0.7, mscale_all_dim=0.4, **ONE),
    "yarn_paper": YarnPaper(**ONE),
    "llama3": Llama3(**ONE),
    "proportional": Proportional(),
    "dynamic, short": DynamicNtk(factor=7.0, length=TRAINED, **L),
    "longrope": LongRope(short_factor=(1,) * HALF, long_factor=(1,) * HALF, length=2 * TRAINED, **ONE),
}


@pytest.mark.parametrize("scaling", SAME_AS_ROPE.values(), ids=SAME_AS_ROPE)
def test_what_is_plain_rope(scaling: RopeScaling) -> None:
    found, rope = scaling.frequencies(WIDTH, THETA), DefaultRope().frequencies(WIDTH, THETA)
    torch.testing.assert_close(found.inv_freq, rope.inv_freq, rtol=1e-15, atol=0)
    assert found.attention_factor == 1


def test_llama3_is_ntk_by_parts() -> None:
    """With alpha 1 and beta 4, exactly."""
    a, b = Llama3(), NtkByParts(factor=8, original_max_position_embeddings=8192, alpha=1, beta=4)
    assert torch.equal(a.frequencies(WIDTH, 5e5).inv_freq, b.frequencies(WIDTH, 5e5).inv_freq)


def test_no_proportion_is_no_position() -> None:
    scheme, x = RopeEmbedding(8, scaling=Proportional(fraction=0.0)), torch.randn(1, 1, 3, 8)
    assert torch.equal(scheme.rotate_q(x, scheme.tables(torch.tensor([[3, 5, 9]]))), x)


def test_proportional_is_not_partial() -> None:
    proportional = Proportional(fraction=0.25).frequencies(WIDTH, THETA).inv_freq
    partial = DefaultRope().frequencies(WIDTH // 4, THETA).inv_freq
    assert len(proportional) == HALF
    assert len(partial) == 16
    assert (proportional[1:16] / partial[1:]).min() > 1.5


def test_yarn_and_its_paper_are_two_things() -> None:
    """By up to 2.3 times at these sizes; 25 of 64 pairs by more than a hundredth."""
    code, paper = (kind(factor=8, **L).frequencies(WIDTH, THETA).inv_freq for kind in (Yarn, YarnPaper))
    ratio = torch.maximum(code / paper, paper / code)
    assert ratio.max() == pytest.approx(2.3, abs=0.05)
    assert (ratio > 1.01).sum() == 25


def test_old_fields_are_scalings() -> None:
    device = torch.device("cpu")
    for old, new in (({"interpolation_factor": 4.0}, Linear(factor=4)), ({"base_rescale_factor": 4.0}, Ntk(factor=4))):
        assert torch.equal(RopeEmbedding(64, **old).inv_freq(device), RopeEmbedding(64, scaling=new).inv_freq(device))


def test_ntk_at_the_ends() -> None:
    ratio = DefaultRope().frequencies(64, THETA).inv_freq / Ntk(factor=2).frequencies(64, THETA).inv_freq
    assert (ratio[0].item(), ratio[-1].item()) == (1, pytest.approx(2, rel=1e-12))


HEADS, HEAD_DIM = 3, 10
SMALL: dict[str, RopeScaling] = {
    "yarn": Yarn(factor=4, original_max_position_embeddings=40, attention_factor=1.25),
    "llama3": Llama3(factor=4, original_max_position_embeddings=20),
    "proportional": Proportional(fraction=0.6),
}


def scaled_logit(config: Rope) -> Callable[..., float]:
    """q . k with the pairs turned by distance; those that turn are multiplied by the attention factor twice."""
    width = config.dim or HEAD_DIM
    found = config.scaling.frequencies(width, config.theta)
    half, scale = width // 2, found.attention_factor**2

    def logit(q, k, m, n, head) -> float:
        total = dot(q[width:], k[width:])
        for i, freq in enumerate(found.inv_freq.tolist()):
            a, b = (2 * i, 2 * i + 1) if config.interleaved else (i, i + half)
            angle = (m - n) * freq
            turned = (q[a] * k[a] + q[b] * k[b]) * math.cos(angle) + (q[a] * k[b] - q[b] * k[a]) * math.sin(angle)
            total += scale * turned
        return total / math.sqrt(HEAD_DIM)

    return logit


@pytest.mark.parametrize("scaling", SMALL.values(), ids=SMALL)
@pytest.mark.parametrize("layout", [{}, {"interleaved": True}, {"dim": 6}])
def test_in_attention(scaling: RopeScaling, layout: dict) -> None:
    config, qkv = Rope(scaling=scaling, theta=50.0, **layout), random_qkv(HEADS, HEAD_DIM)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [3, 7, 8, 20, 21, 40, 66, 100, 4000]])
    found = attended(one_layer(config, HEADS, HEAD_DIM), qkv, positions)
    expected = naive(qkv, pairwise(scaled_logit(config), positions))
    assert (found - expected).abs().max() < 1e-6


@pytest.mark.parametrize("name", FORMULAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_angles_at_far_positions(name: str, dtype: torch.dtype, autocast: torch.dtype | None) -> None:
    """Right to 1e-6 in a narrow module, under autocast and after to_empty."""
    scaling, inv_freq, factor = FORMULAS[name]
    with torch.device("meta"):
        scheme = RopeEmbedding(WIDTH, theta=THETA, scaling=scaling)
    scheme = scheme.to_empty(device="cpu").to(dtype)
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        tables = scheme.tables(torch.tensor([FAR]))
    angle = torch.tensor([[t * freq for freq in inv_freq] for t in FAR], dtype=torch.float64)
    for cos, sin in ((tables.q_cos, tables.q_sin), (tables.k_cos, tables.k_sin)):
        assert cos.dtype == sin.dtype == torch.float32
        assert (cos[0, 0, :, :HALF] / factor - angle.cos()).abs().max() < 1e-6
        assert (sin[0, 0, :, HALF:] / factor - angle.sin()).abs().max() < 1e-6
        assert (sin[0, 0, :, :HALF] / factor + angle.sin()).abs().max() < 1e-6


def test_followed_lengths_are_precise_too() -> None:
    scheme = RopeEmbedding(
        64, scaling=DynamicNtk(original_max_position_embeddings=TRAINED, length_policy="recompute")
    ).half()
    tables = scheme.tables(torch.tensor([FAR]))
    theta = THETA * (2**20 / TRAINED) ** (64 / 62)
    angle = torch.tensor([[t * f(i, theta, 64) for i in range(32)] for t in FAR], dtype=torch.float64)
    assert (tables.q_cos[0, 0, :, :32] - angle.cos()).abs().max() < 1e-6


def test_xpos_takes_a_scaling() -> None:
    """The decay is that of xPos, the angles are those of the scaling."""
    position, scaling = torch.tensor([[7]]), Yarn(factor=4, original_max_position_embeddings=40)
    dims = Dims(dim=20, heads=2, kv_heads=2, head_dim=10, causal=True, embed_dim=20, max_seq_len=64)
    xpos, rope = (kind(scaling=scaling).build(dims) for kind in (XPos, Rope))
    turned = xpos.tables(position), rope.tables(position)
    decay = xpos.decay(position)
    assert decay is not None
    torch.testing.assert_close(turned[0].q_cos[..., :5], (turned[1].q_cos[..., :5] * decay).float())
