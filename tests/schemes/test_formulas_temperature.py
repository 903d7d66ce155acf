"""Temperatures by position against the formulas of Llama 4, Ministral 3 and log-n scaling, in float64."""

import math
from dataclasses import replace

import pytest
import torch

from tests.support.naive_attention import attended, dot, naive, one_layer, random_qkv, worst
from x_positional.schemes import LogN, RopeEmbedding, SSMax, Temperature
from x_positional.schemes.base import Dims
from x_positional.schemes.compose import Chain

DIMS = Dims(dim=12, heads=2, kv_heads=2, head_dim=6, causal=True, embed_dim=12, max_seq_len=40)
FAR = [0, 1, 6, 7, 8, 13, 14, 39, 40, 41, 255, 8190, 8191, 8192, 65_535, 2**20 - 1]


def scaled(scheme, positions: list[int]) -> list[float]:
    """What a query of ones becomes."""
    q = torch.ones(1, 2, len(positions), 6, dtype=torch.float64)
    return scheme.rotate_q(q, scheme.tables(torch.tensor(positions)[None]))[0, 1, :, 3].tolist()


@pytest.mark.parametrize(("floor_scale", "scale", "offset"), [(8192, 0.1, 1.0), (7, 0.3, 1.0), (7, 0.1, 0.0)])
def test_steps(floor_scale: int, scale: float, offset: float) -> None:
    scheme = Temperature(floor_scale=floor_scale, scale=scale, offset=offset).build(DIMS)
    want = [1 + scale * math.log(1 + math.floor((t + offset) / floor_scale)) for t in FAR]
    assert scaled(scheme, FAR) == pytest.approx(want, abs=1e-6)
    first = next(t for t in range(20_000) if scaled(scheme, [t])[0] > 1)
    assert first == floor_scale - offset  # Llama 4 counts from one, Ministral from zero


@pytest.mark.parametrize("trained", [None, 7])
def test_log_n(trained: int | None) -> None:
    length = trained or DIMS.max_seq_len
    scheme = LogN(trained=trained).build(DIMS)
    want = [max(1.0, math.log(t + 1) / math.log(length)) for t in FAR]
    assert scaled(scheme, FAR) == pytest.approx(want, abs=1e-6)
    assert scaled(scheme, list(range(length))) == [1.0] * length  # no longer than trained: nothing changes


def test_beside_rotary_embedding() -> None:
    rope, temperature = RopeEmbedding(6), Temperature(floor_scale=3).build(DIMS)
    chain, positions = Chain(rope, temperature), torch.arange(11)[None]
    q, k = torch.randn(2, 1, 2, 11, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    tables = chain.tables(positions)
    turned = rope.tables(positions)
    factor = torch.tensor([1 + 0.1 * math.log(1 + (t + 1) // 3) for t in range(11)], dtype=torch.float64)
    torch.testing.assert_close(chain.rotate_q(q, tables), rope.rotate_q(q, turned) * factor[:, None], atol=1e-6, rtol=0)
    torch.testing.assert_close(chain.rotate_k(k, tables), rope.rotate_k(k, turned), atol=0, rtol=0)


def test_scalable_softmax() -> None:
    """softmax(s ln(n) z) for n visible keys: Nakanishi 2025, arXiv:2501.19399."""
    scheme = SSMax().build(DIMS)
    mean = sum(math.log(n) for n in range(1, 41)) / 40
    assert scheme.scale.tolist() == pytest.approx([1 / mean] * 2)  # 1 on average over the trained length
    assert SSMax().build(replace(DIMS, max_seq_len=None)).scale[0].item() == pytest.approx(0.16847, abs=1e-5)
    with torch.no_grad():
        scheme.scale.copy_(torch.tensor([0.3, 0.43]))
    assert scaled(scheme, FAR) == pytest.approx([0.43 * math.log(t + 1) for t in FAR], abs=1e-5)


def test_scalable_softmax_gives_n_to_the_power_of_s() -> None:
    """Two equal scores apart by z: their ratio is n^(s z)."""
    layers, qkv = one_layer(SSMax(init=0.4), 3, 5), random_qkv(3, 5)
    s = layers.kinds[0].scheme.scale.tolist()

    def logits(q, keys, seen, m, h, b):
        return [s[h] * math.log(m + 1) * dot(q, k) / math.sqrt(len(q)) for k in keys]

    for chunks in ((), (4, 1, 3, 1)):
        assert worst(attended(layers, qkv, chunks=chunks), naive(qkv, logits)) < 1e-6
