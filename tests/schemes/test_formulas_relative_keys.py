"""Relative keys of Shaw et al. 2018 (arXiv:1803.02155, equation 4) and Transformer-XL (Dai et al. 2019, arXiv:1901.02860,
section 3.3), pair by pair in plain floats."""

import math

import pytest
import torch

from tests.support.naive_attention import Pair, Row, attended, dot, naive, one_layer, pairwise, random_qkv, worst
from x_positional.schemes import Shaw, TransformerXL
from x_positional.schemes.registry import SchemeConfig

HEADS, HEAD_DIM = 3, 5
TIGHT = 1e-12
UNEVEN = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 5, 3, 70, 71, 9, 300, 2, 1]])


def shaw_logit(scheme, causal: bool) -> Pair:
    rows, K = scheme.table.tolist(), scheme.rows.farthest

    def logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
        offset = max(-K, min(0 if causal else K, int(n - m)))  # of the key, as in the paper: a_{-K} is the first row
        key = [a + b for a, b in zip(k, rows[offset + K], strict=True)]
        return dot(q, key) / math.sqrt(len(q))

    return logit


def xl_logit(scheme) -> Pair:
    u, v, W, M = scheme.u.tolist(), scheme.v.tolist(), scheme.to_r.weight.tolist(), scheme.dim

    def logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
        half = (M + 1) // 2
        angles = [(m - n) / 10_000 ** (2 * i / M) for i in range(half)]
        r = ([math.sin(a) for a in angles] + [math.cos(a) for a in angles])[:M]
        projected = [dot(W[h * len(q) + d], r) for d in range(len(q))]
        content = dot([a + b for a, b in zip(q, u[h], strict=True)], k)
        place = dot([a + b for a, b in zip(q, v[h], strict=True)], projected)
        return (content + place) / math.sqrt(len(q))

    return logit


def formula(config: SchemeConfig, scheme, causal: bool) -> Pair:
    return shaw_logit(scheme, causal) if isinstance(config, Shaw) else xl_logit(scheme)


CONFIGS = {"shaw": Shaw(), "shaw, 3 to a side": Shaw(max_distance=3), "transformer_xl": TransformerXL()}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("positions", [None, UNEVEN], ids=["index", "uneven"])
def test_the_formula(config: SchemeConfig, causal: bool, positions) -> None:
    layers, qkv = one_layer(config, HEADS, HEAD_DIM, causal=causal), random_qkv(HEADS, HEAD_DIM)
    expected = naive(qkv, pairwise(formula(config, layers.kinds[0].scheme, causal), positions), causal)
    assert worst(attended(layers, qkv, positions), expected) < TIGHT


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("chunks", [(4, 1, 3, 1), (1,) * 9, (2, 7)])
def test_in_chunks(config: SchemeConfig, chunks: tuple[int, ...]) -> None:
    layers, qkv = one_layer(config, HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    expected = naive(qkv, pairwise(formula(config, layers.kinds[0].scheme, True)))
    assert worst(attended(layers, qkv, chunks=chunks), expected) < TIGHT


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("backend", ["blockwise", "sdpa", "flex"])
@pytest.mark.parametrize("causal", [True, False])
def test_every_backend_with_grouped_heads(config: SchemeConfig, backend: str, causal: bool) -> None:
    layers = one_layer(config, 4, HEAD_DIM, kv_heads=2, backend=backend, causal=causal)
    qkv = random_qkv(4, HEAD_DIM, kv_heads=2)
    expected = naive(qkv, pairwise(formula(config, layers.kinds[0].scheme, causal)), causal)
    assert worst(attended(layers, qkv), expected) < TIGHT


def test_transformer_xl_reads_fractions() -> None:
    layers, qkv = one_layer(TransformerXL(), HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    positions = UNEVEN.double() * 0.75 + 0.125
    expected = naive(qkv, pairwise(xl_logit(layers.kinds[0].scheme), positions))
    assert worst(attended(layers, qkv, positions), expected) < TIGHT
