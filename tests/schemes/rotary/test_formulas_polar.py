"""PoPE against Gopalakrishnan et al. 2025 (arXiv:2509.10534): lengths from content, angles from positions and a bias."""

import cmath
import math

import pytest
import torch

from tests.support.naive_attention import attended, naive, one_layer, pairwise, random_qkv, worst
from tests.support.scheme_logits import polar_logit
from x_positional.schemes import Polar, PolarEmbedding

HEADS, HEAD_DIM = 4, 7
TIGHT = 1e-6
FAR = [0, 1, 255, 256, 257, 511, 777, 4095, 65_535, 131_071, 2**20 - 1]


def layer(config: Polar, kv_heads: int = HEADS, **more):
    layers = one_layer(config, HEADS, HEAD_DIM, kv_heads=kv_heads, **more)
    delta = layers.kinds[0].scheme.delta
    with torch.no_grad():  # some beyond each end of the range
        delta.copy_(torch.linspace(-2 * math.pi - 1, 0.7, delta.numel(), dtype=torch.float64).view_as(delta))
    return layers, delta[:, 0].tolist()


@pytest.mark.parametrize("kv_heads", [HEADS, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("theta", [10_000.0, 300.0])
def test_polar_in_attention(kv_heads: int, causal: bool, theta: float) -> None:
    layers, delta = layer(Polar(theta=theta), kv_heads, causal=causal)
    qkv = random_qkv(HEADS, HEAD_DIM, kv_heads)
    assert worst(attended(layers, qkv), naive(qkv, pairwise(polar_logit(delta, theta)), causal)) < TIGHT


@pytest.mark.parametrize("chunks", [(4, 1, 3, 1), (1,) * 9])
def test_polar_in_chunks(chunks: tuple[int, ...]) -> None:
    (layers, delta), qkv = layer(Polar()), random_qkv(HEADS, HEAD_DIM)
    assert worst(attended(layers, qkv, chunks=chunks), naive(qkv, pairwise(polar_logit(delta)))) < TIGHT


@pytest.mark.parametrize("backend", ["eager", "blockwise", "sdpa", "flex"])
def test_polar_in_every_backend(backend: str) -> None:
    """Queries and keys are twice as wide as values, and the scale stays that of the head."""
    (layers, delta), qkv = layer(Polar(), 2, backend=backend), random_qkv(HEADS, HEAD_DIM, 2)
    assert worst(attended(layers, qkv), naive(qkv, pairwise(polar_logit(delta)))) < TIGHT


@pytest.mark.parametrize("start", [1000, 65_535, 2**20 - 400])
def test_polar_at_far_and_uneven_positions(start: int) -> None:
    (layers, delta), qkv = layer(Polar()), random_qkv(HEADS, HEAD_DIM)
    positions = start + torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 5, 3, 70, 71, 9, 300, 2, 1]])
    found = attended(layers, qkv, positions)
    assert worst(found, naive(qkv, pairwise(polar_logit(delta), positions))) < 2e-6


def test_large_contents_stay_finite() -> None:
    """softplus(x) is x where exp(x) would overflow, and 0 where it underflows."""
    scheme = PolarEmbedding(1, 3)
    x = torch.tensor([2000.0, 0.0, -2000.0], dtype=torch.float64).view(1, 1, 1, 3)
    found = scheme.rotate_q(x, scheme.tables(torch.tensor([[0]]))).flatten()
    assert worst(found, torch.tensor([2000.0, math.log(2), 0, 0, 0, 0], dtype=torch.float64)) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_angles_are_exact_at_far_positions_in_every_dtype(dtype: torch.dtype, autocast: bool) -> None:
    scheme = PolarEmbedding(2, HEAD_DIM).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        tables = scheme.tables(torch.tensor([FAR]))
    angles = [[t * 10_000.0 ** (-c / HEAD_DIM) for c in range(HEAD_DIM)] for t in FAR]
    expected = torch.tensor([[cmath.exp(1j * angle) for angle in row] for row in angles], dtype=torch.complex128)
    assert worst(tables.cos[0, 0], expected.real) < TIGHT
    assert worst(tables.sin[0, 0], expected.imag) < TIGHT


def test_the_phase_starts_at_zero_or_uniform() -> None:
    assert not PolarEmbedding(3, 50).delta.any()
    torch.manual_seed(0)
    delta = PolarEmbedding(3, 50, uniform_init=True).delta
    assert -2 * math.pi <= delta.min() < -5
    assert -1 < delta.max() <= 0


@pytest.mark.parametrize("shift", [1, 7, 1000, 2**17])
def test_only_distances_count(shift: int) -> None:
    (layers, _), qkv = layer(Polar()), random_qkv(HEADS, HEAD_DIM)
    positions = torch.arange(9)[None].expand(2, -1)
    assert worst(attended(layers, qkv, positions + shift), attended(layers, qkv, positions)) < TIGHT
