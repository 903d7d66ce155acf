"""Rotary embedding against Su et al. 2021 (arXiv:2104.09864) in complex numbers: layouts, partial rotation, scaling.

B batch, T tokens, H heads, D head dim, R rotated width.
"""

import cmath
import math

import pytest
import torch
from torch import Tensor

from tests.support.naive_attention import attended, naive, one_layer, pairwise, random_qkv, worst
from tests.support.planning import plan_of
from tests.support.scheme_logits import rope_logit
from x_positional import Decoder, TransformerWrapper
from x_positional.errors import ArgumentError
from x_positional.schemes import Rope, RopeEmbedding

HEADS, HEAD_DIM = 3, 10
TIGHT = 1e-6
"""Tables of cosines are float32: a product of two rotations is off by some 1e-7."""

VARIANTS = {
    "half": Rope(),
    "interleaved": Rope(interleaved=True),
    "partial": Rope(dim=6),
    "partial, interleaved": Rope(dim=4, interleaved=True),
    "fraction": Rope(fraction=0.45),  # int(4.5) = 4 channels
    "last head": Rope(heads=1),
    "last heads": Rope(heads=2, interleaved=True, dim=8),
    "theta": Rope(theta=500.0),
    "interpolated": Rope(interpolation_factor=4.0),
    "NTK": Rope(base_rescale_factor=8.0, dim=8),
    "everything": Rope(
        theta=700.0, dim=6, interleaved=True, heads=2, interpolation_factor=2.5, base_rescale_factor=3.0
    ),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("causal", [True, False])
def test_rope_in_attention(config: Rope, causal: bool) -> None:
    qkv = random_qkv(HEADS, HEAD_DIM)
    found = attended(one_layer(config, HEADS, HEAD_DIM, causal=causal), qkv)
    assert worst(found, naive(qkv, pairwise(rope_logit(config)), causal)) < TIGHT


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("chunks", [(4, 1, 3, 1), (1,) * 9, (2, 7)])
def test_rope_in_chunks(config: Rope, chunks: tuple[int, ...]) -> None:
    qkv = random_qkv(HEADS, HEAD_DIM)
    found = attended(one_layer(config, HEADS, HEAD_DIM), qkv, chunks=chunks)
    assert worst(found, naive(qkv, pairwise(rope_logit(config)))) < TIGHT


@pytest.mark.parametrize("backend", ["eager", "blockwise", "sdpa", "flex"])
def test_rope_in_every_backend_with_grouped_heads(backend: str) -> None:
    config, qkv = Rope(dim=6), random_qkv(4, HEAD_DIM, kv_heads=2)
    found = attended(one_layer(config, 4, HEAD_DIM, kv_heads=2, backend=backend), qkv)
    assert worst(found, naive(qkv, pairwise(rope_logit(config)))) < TIGHT


@pytest.mark.parametrize("config", [Rope(), Rope(interleaved=True, dim=6, interpolation_factor=4.0)])
@pytest.mark.parametrize("start", [1000, 65_535, 2**20 - 9])
def test_rope_at_far_and_uneven_positions(config: Rope, start: int) -> None:
    qkv = random_qkv(HEADS, HEAD_DIM)
    positions = start + torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 5, 3, 70, 71, 9, 300, 2, 1]])
    found = attended(one_layer(config, HEADS, HEAD_DIM), qkv, positions)
    assert worst(found, naive(qkv, pairwise(rope_logit(config), positions))) < TIGHT


def test_rope_at_fractional_positions() -> None:
    qkv = random_qkv(HEADS, HEAD_DIM)
    positions = torch.linspace(0.25, 40.5, 9, dtype=torch.float64)[None].repeat(2, 1)
    found = attended(one_layer(Rope(), HEADS, HEAD_DIM), qkv, positions)
    assert worst(found, naive(qkv, pairwise(rope_logit(Rope()), positions))) < TIGHT


FAR = [0, 1, 255, 256, 257, 511, 777, 4095, 65_535, 131_071, 2**20 - 1]


def expected_angles(width: int, theta: float = 10_000.0) -> Tensor:
    """[positions R/2] e^(i t theta_i), float64."""
    angles = [[t * theta ** (-2 * i / width) for i in range(width // 2)] for t in FAR]
    return torch.tensor([[cmath.exp(1j * angle) for angle in row] for row in angles], dtype=torch.complex128)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("theta", [10_000.0, 500_000.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_angles_are_exact_at_far_positions_in_every_dtype(
    interleaved: bool, theta: float, dtype: torch.dtype, autocast: torch.dtype | None
) -> None:
    """Narrow parameters, narrow positions in float, and autocast leave the angles alone."""
    width = 64
    scheme = RopeEmbedding(width, theta=theta, interleaved=interleaved).to(dtype)
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        tables = scheme.tables(torch.tensor([FAR]))
    order = torch.arange(width).view(-1, 2).t() if interleaved else torch.arange(width).view(2, -1)
    expected = expected_angles(width, theta)
    for cos, sin in ((tables.q_cos, tables.q_sin), (tables.k_cos, tables.k_sin)):
        cos, sin = cos[0, 0].double(), sin[0, 0].double()
        for channels, sign in zip(order, (-1, 1), strict=True):
            assert worst(cos[:, channels], expected.real) < TIGHT
            assert worst(sin[:, channels], sign * expected.imag) < TIGHT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_angles_inside_a_model(dtype: torch.dtype, autocast: bool) -> None:
    """The tables that the layers of a narrow model get; a pass in one dtype leaves nothing behind for the next."""
    stack = Decoder(dim=32, depth=2, heads=2, attn_dim_head=64, position=Rope())
    model = TransformerWrapper(num_tokens=5, max_seq_len=16, attn_layers=stack).to(dtype)
    expected, narrow = expected_angles(64), torch.float16 if dtype == torch.float16 else torch.bfloat16
    for _ in range(2):
        with torch.no_grad(), torch.autocast("cpu", dtype=narrow, enabled=autocast):
            tables = plan_of(stack, len(FAR), dtype, torch.tensor([FAR])).layers[1].tables
            assert worst(tables.q_cos[0, 0, :, :32], expected.real) < TIGHT
            assert worst(tables.q_sin[0, 0, :, 32:], expected.imag) < TIGHT
            logits = model(torch.zeros(1, len(FAR), dtype=torch.long), positions=torch.tensor([FAR]))
        assert logits.isfinite().all()


@pytest.mark.parametrize(("dtype", "steps"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_rotation_in_a_narrow_dtype_rounds_once(dtype: torch.dtype, steps: float) -> None:
    """Neighbouring far positions do not collide, and each channel is off by one rounding of its pair's length."""
    x = torch.randn(1, 1, len(FAR), 64, generator=torch.Generator().manual_seed(1)).to(dtype)
    scheme = RopeEmbedding(64).to(dtype)
    found = scheme.rotate_q(x, scheme.tables(torch.tensor([FAR]))).double()[0, 0]
    pairs = torch.complex(x.double()[0, 0, :, :32], x.double()[0, 0, :, 32:])
    turned = pairs * expected_angles(64)
    error = (found - torch.cat([turned.real, turned.imag], -1)).abs()
    assert (error <= (steps + TIGHT) * torch.cat([pairs.abs()] * 2, -1)).all()


@pytest.mark.parametrize("width", [6, 10])
def test_half_and_interleaved_are_a_permutation_apart(width: int) -> None:
    """half(x) = P^T interleaved(P x), where P puts channels 2i and 2i + 1 of the result to i and i + R/2."""
    x = random_qkv(HEADS, HEAD_DIM)[0]
    place = torch.arange(HEAD_DIM)
    place[:width] = torch.arange(width).view(2, -1).t().flatten()
    positions = torch.tensor([[0, 1, 5, 255, 256, 4095, 65_535, 2**20 - 1, 3]])
    half, pairs = RopeEmbedding(width), RopeEmbedding(width, interleaved=True)
    back = pairs.rotate_q(x[..., place], pairs.tables(positions))[..., place.argsort()]
    assert torch.equal(back, half.rotate_q(x, half.tables(positions)))


@pytest.mark.parametrize("interleaved", [False, True])
def test_a_vector_by_hand(interleaved: bool) -> None:
    """R = 4, theta = 100: position 3 turns the pairs by 3 and by 0.3 radians."""
    scheme = RopeEmbedding(4, theta=100.0, interleaved=interleaved)
    x = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64).view(1, 1, 1, 4)
    found = scheme.rotate_q(x, scheme.tables(torch.tensor([[3]]))).flatten().tolist()
    c, s, d, t = math.cos(3), math.sin(3), math.cos(0.3), math.sin(0.3)
    by_hand = (
        [c - 2 * s, s + 2 * c, 3 * d - 4 * t, 3 * t + 4 * d]
        if interleaved
        else [c - 3 * s, 2 * d - 4 * t, s + 3 * c, 2 * t + 4 * d]
    )
    assert found == pytest.approx(by_hand, abs=TIGHT)


@pytest.mark.parametrize("shift", [1, 7, 1000, 2**17])
def test_only_distances_count(shift: int) -> None:
    qkv, layers = random_qkv(HEADS, HEAD_DIM), one_layer(Rope(interleaved=True), HEADS, HEAD_DIM)
    positions = torch.arange(9)[None].expand(2, -1)
    assert worst(attended(layers, qkv, positions + shift), attended(layers, qkv, positions)) < TIGHT


@pytest.mark.parametrize(
    "same",
    [
        Rope(interpolation_factor=1.0),
        Rope(base_rescale_factor=1.0),
        Rope(fraction=1.0),
        Rope(dim=HEAD_DIM),
        Rope(heads=HEADS),
    ],
)
def test_settings_that_are_plain_rope(same: Rope) -> None:
    qkv = random_qkv(HEADS, HEAD_DIM)
    plain = attended(one_layer(Rope(), HEADS, HEAD_DIM), qkv)
    assert torch.equal(attended(one_layer(same, HEADS, HEAD_DIM), qkv), plain)


def test_interpolation_divides_positions() -> None:
    qkv, positions = random_qkv(HEADS, HEAD_DIM), torch.arange(9.0, dtype=torch.float64)[None].repeat(2, 1)
    interpolated = attended(one_layer(Rope(interpolation_factor=4.0), HEADS, HEAD_DIM), qkv, positions)
    assert worst(interpolated, attended(one_layer(Rope(), HEADS, HEAD_DIM), qkv, positions / 4)) < TIGHT


def test_ntk_keeps_the_fastest_pair_and_slows_the_slowest_by_the_factor() -> None:
    plain = RopeEmbedding(64).inv_freq(torch.device("cpu"))
    scaled = RopeEmbedding(64, base_rescale_factor=2.0)
    ratio = (plain / scaled.inv_freq(torch.device("cpu"))).tolist()
    assert round(scaled.theta) == 20_452  # 10000 * 2^(64/62)
    assert ratio[0] == 1
    assert ratio[-1] == pytest.approx(2, rel=1e-12)
    assert ratio == sorted(ratio)


def test_an_odd_width_is_rejected() -> None:
    """Otherwise the last pair would take an unrotated channel along, or fail later with a shape error."""
    with pytest.raises(ArgumentError, match="width=7 must be even"):
        RopeEmbedding(7)
