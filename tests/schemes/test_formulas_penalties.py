"""KERPLE (Chi et al. 2022, arXiv:2205.09921), Sandwich (Chi et al. 2023, arXiv:2212.10356) and FIRE (Li et al. 2023,
arXiv:2310.04418): penalties that grow with distance, against their formulas in plain floats."""

import math

import pytest
import torch

from tests.support.naive_attention import Pair, Row, attended, dot, naive, one_layer, pairwise, random_qkv, worst
from x_positional.schemes import Alibi, Fire, Kerple, Sandwich, alibi_slopes
from x_positional.schemes.base import Dims
from x_positional.schemes.registry import SchemeConfig

HEADS, HEAD_DIM = 3, 6
DIMS = Dims(dim=18, heads=HEADS, kv_heads=HEADS, head_dim=HEAD_DIM, causal=True, embed_dim=18)
UNEVEN = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 5, 9, 70, 71, 90, 300, 700, 1001]])


def kerple_logit(scheme) -> Pair:
    r1, raw = scheme.log_r1.exp().tolist(), scheme.raw_r2.tolist()

    def logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
        far = abs(m - n)
        if scheme.kernel == "log":
            return dot(q, k) / math.sqrt(len(q)) - r1[h] * math.log(1 + math.exp(raw[h]) * far)
        return dot(q, k) / math.sqrt(len(q)) - r1[h] * far ** (2 / (1 + math.exp(-raw[h])))

    return logit


def sandwich_logit(scheme) -> Pair:
    """The product of the two embeddings, and not of their difference."""
    W = scheme.width

    def embedding(position: float) -> list[float]:
        angles = [position / 10_000 ** (2 * i / W) for i in range(1, W // 2 + 1)]
        return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]

    def logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
        bias = (dot(embedding(m), embedding(n)) - W / 2) / (8 * (h + 1) / scheme.heads)
        return dot(q, k) / math.sqrt(len(q)) + bias

    return logit


def fire_logit(scheme) -> Pair:
    first, last = scheme.to_hidden, scheme.to_bias
    w1, b1, w2, b2 = first.weight[:, 0].tolist(), first.bias.tolist(), last.weight.tolist(), last.bias.tolist()
    c, length = scheme.scale.item(), scheme.threshold.item() * scheme.initial_threshold

    def psi(x: float) -> float:
        return math.log(abs(c * x) + 1)

    def logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
        x = psi(m - n) / psi(max(m, length))
        hidden = [max(0.0, w * x + b) for w, b in zip(w1, b1, strict=True)]
        return dot(q, k) / math.sqrt(len(q)) + dot(w2[h], hidden) + b2[h]

    return logit


VARIANTS = {
    "kerple": (Kerple(), kerple_logit, 1e-12),
    "kerple, power": (Kerple(kernel="power"), kerple_logit, 1e-12),
    "sandwich": (Sandwich(), sandwich_logit, 1e-5),  # a float32 table
    "sandwich, 10 channels": (Sandwich(width=10), sandwich_logit, 1e-5),
    "fire": (Fire(), fire_logit, 1e-12),
    "fire, narrow, fractions from 4 on": (Fire(width=5, scale=0.7, threshold=4), fire_logit, 1e-12),
}


@pytest.mark.parametrize(("config", "formula", "bound"), VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("chunks", [(), (4, 1, 3, 1), (1,) * 9])
@pytest.mark.parametrize("positions", [None, UNEVEN], ids=["index", "uneven"])
def test_the_formula(config: SchemeConfig, formula, bound: float, chunks: tuple[int, ...], positions) -> None:
    layers, qkv = one_layer(config, HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    expected = naive(qkv, pairwise(formula(layers.kinds[0].scheme), positions))
    assert worst(attended(layers, qkv, positions, chunks), expected) < bound


@pytest.mark.parametrize(("config", "formula", "bound"), VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("backend", ["blockwise", "sdpa", "flex"])
def test_every_backend_with_grouped_heads(config: SchemeConfig, formula, bound: float, backend: str) -> None:
    layers = one_layer(config, 4, HEAD_DIM, kv_heads=2, backend=backend)
    qkv = random_qkv(4, HEAD_DIM, kv_heads=2)
    assert worst(attended(layers, qkv), naive(qkv, pairwise(formula(layers.kinds[0].scheme)))) < bound


def test_by_hand() -> None:
    """Two heads, distances 0, 1 and 2."""
    kerple, power = Kerple().build(DIMS), Kerple(kernel="power").build(DIMS)
    with torch.no_grad():
        kerple.log_r1.copy_(torch.tensor([1.0, 2.0, 3.0]).log())
        kerple.raw_r2.copy_(torch.tensor([1.0, 1.0, 0.5]).log())
        power.log_r1.copy_(torch.tensor([1.0, 2.0, 3.0]).log())
        power.raw_r2.copy_(torch.tensor([0.0, 0.0, 100.0]))  # exponents 1, 1, 2
    distance = torch.arange(3)
    ln = math.log
    want = [[0, -ln(2), -ln(3)], [0, -2 * ln(2), -2 * ln(3)], [0, -3 * ln(1.5), -3 * ln(2)]]
    assert worst(kerple.of_distance(distance).detach(), torch.tensor(want)) < 1e-6
    want = [[0, -1, -2], [0, -2, -4], [0, -3, -12]]
    assert worst(power.of_distance(distance).detach(), torch.tensor(want, dtype=torch.float64)) < 1e-5
    one_pair = Sandwich(width=2).build(DIMS).of_distance(torch.tensor([0, 10_000]))
    drop = math.cos(1) - 1  # at 10000^(2/2)
    assert worst(one_pair, torch.tensor([[0, drop * 3 / 8], [0, drop * 3 / 16], [0, drop * 3 / 24]])) < 1e-6


def test_the_power_kernel_with_exponent_one_is_alibi() -> None:
    layers, qkv = one_layer(Kerple(kernel="power"), HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    with torch.no_grad():
        layers.kinds[0].scheme.log_r1.copy_(torch.tensor(alibi_slopes(HEADS)).log())
        layers.kinds[0].scheme.raw_r2.zero_()
    assert worst(attended(layers, qkv), attended(one_layer(Alibi(), HEADS, HEAD_DIM), qkv)) < 1e-6


def test_gradients_at_distance_zero_are_finite() -> None:
    for kernel in ("log", "power"):
        scheme = Kerple(kernel=kernel).build(DIMS)
        scheme.of_distance(torch.arange(4)).sum().backward()
        assert all(p.grad.isfinite().all() and p.grad.abs().min() > 0 for p in scheme.parameters())


def test_fire_depends_on_distance_alone_up_to_its_threshold() -> None:
    layers, qkv = one_layer(Fire(threshold=64), HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    with torch.no_grad():
        layers.kinds[0].scheme.threshold.fill_(1.0)
    shifted = torch.arange(9)[None].expand(2, -1)
    near, far = attended(layers, qkv, shifted + 55), attended(layers, qkv, shifted + 5000)
    assert worst(attended(layers, qkv), near) < 1e-12
    assert worst(near, far) > 1e-3


@pytest.mark.parametrize("heads", [1, 3])
def test_fresh_parameters_are_in_the_range_of_the_paper(heads: int) -> None:
    torch.manual_seed(0)
    dims = Dims(dim=6 * heads, heads=heads, kv_heads=heads, head_dim=6, causal=True, embed_dim=6 * heads)
    drawn = [Kerple().build(dims) for _ in range(200)]
    r1 = torch.stack([s.log_r1.exp() for s in drawn])
    r2 = torch.stack([s.raw_r2.exp() for s in drawn])
    assert r1.min() >= 0.01 - 1e-6
    assert 1.5 < r1.max() <= 2
    assert r2.min() >= 0.01 - 1e-6
    assert 0.75 < r2.max() <= 1
