"""CoPE against Golovneva et al. 2024 (arXiv:2405.18719), equations 3 to 5: gates, counts and interpolation, in loops."""

import math

import pytest
import torch

from tests.support.naive_attention import Row, attended, dot, naive, one_layer, pairwise, random_qkv, worst
from tests.support.planning import plan_of
from x_positional.schemes import Cope
from x_positional.schemes.base import Span

HEADS, HEAD_DIM = 3, 5
TIGHT = 1e-12


def cope_logits(table: list[list[float]]):
    """Of one row: g_n = sigmoid(scale q.k_n), p_n = sum of g from n to the query, at most P - 1; then q.E[p_n], between
    integers by a straight line, is added to the scaled score."""

    def logits(q: Row, keys: list[Row], seen: list[int], m: int, h: int, b: int) -> list[float]:
        scores = [dot(q, k) / math.sqrt(len(q)) for k in keys]
        gates = [1 / (1 + math.exp(-s)) for s in scores]
        out = []
        for n, score in enumerate(scores):
            p = min(math.fsum(gates[n:]), len(table) - 1)
            below, above = dot(q, table[math.floor(p)]), dot(q, table[math.ceil(p)])
            out.append(score + (p - math.floor(p)) * above + (1 - p + math.floor(p)) * below)
        return out

    return logits


@pytest.mark.parametrize("max_pos", [2, 3, 16])
@pytest.mark.parametrize("chunks", [(), (4, 1, 3, 1), (1,) * 9])
@pytest.mark.parametrize("backend", ["eager", "blockwise"])
def test_cope_in_attention(max_pos: int, chunks: tuple[int, ...], backend: str) -> None:
    layers = one_layer(Cope(max_pos=max_pos), HEADS, HEAD_DIM, backend=backend)
    table, qkv = layers.kinds[0].scheme.table, random_qkv(HEADS, HEAD_DIM)
    assert table.shape == (max_pos, HEAD_DIM)
    assert table.abs().min() > 0
    assert worst(attended(layers, qkv, chunks=chunks), naive(qkv, cope_logits(table.tolist()))) < TIGHT


def test_cope_with_grouped_heads() -> None:
    layers, qkv = one_layer(Cope(max_pos=5), 4, HEAD_DIM, kv_heads=2), random_qkv(4, HEAD_DIM, kv_heads=2)
    assert worst(attended(layers, qkv), naive(qkv, cope_logits(layers.kinds[0].scheme.table.tolist()))) < TIGHT


def open_gates(max_pos: int):
    """A layer, and queries and keys whose scores are all so large that every gate is one."""
    layers, (q, k, v) = one_layer(Cope(max_pos=max_pos), HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    q, k = q * 0.1, k * 0.1
    q[..., 0], k[..., 0] = 20, 20
    assert ((q @ k.mT) * HEAD_DIM**-0.5).sigmoid().min() == 1
    return layers, (q, k, v)


@pytest.mark.parametrize("max_pos", [4, 16])
def test_open_gates_are_a_relative_table_at_distance_plus_one(max_pos: int) -> None:
    layers, qkv = open_gates(max_pos)
    table = layers.kinds[0].scheme.table.tolist()

    def logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
        return dot(q, k) / math.sqrt(len(q)) + dot(q, table[min(int(m - n) + 1, max_pos - 1)])

    assert worst(attended(layers, qkv), naive(qkv, pairwise(logit))) < TIGHT


def test_with_open_gates_no_query_reads_the_first_row() -> None:
    layers, qkv = open_gates(16)
    before = attended(layers, qkv)
    with torch.no_grad():
        layers.kinds[0].scheme.table[0] += 5
    assert torch.equal(attended(layers, qkv), before)
    with torch.no_grad():
        layers.kinds[0].scheme.table[1] += 5
    assert not torch.equal(attended(layers, qkv), before)


def test_closed_gates_add_the_same_to_every_key() -> None:
    """Scores far below zero count nothing: all keys get q.E[0], and the softmax does not see it."""
    layers, (q, k, v) = one_layer(Cope(), HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    q, k = q * 0.1, k * 0.1
    q[..., 0], k[..., 0] = 20, -20
    plain = naive((q, k, v), pairwise(lambda q, k, m, n, h: dot(q, k) / math.sqrt(len(q))))
    assert worst(attended(layers, (q, k, v)), plain) < TIGHT


def test_a_table_of_zeros_adds_nothing() -> None:
    layers, qkv = one_layer(Cope(), HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    with torch.no_grad():
        layers.kinds[0].scheme.table.zero_()
    none = pairwise(lambda q, k, m, n, h: dot(q, k) / math.sqrt(len(q)))
    assert worst(attended(layers, qkv), naive(qkv, none)) < TIGHT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_counts_are_not_rounded_in_a_narrow_model(dtype: torch.dtype) -> None:
    """600 keys with gates of one: in bfloat16 the count would stop at 256 and all far keys would share a row."""
    T = 600
    layers = one_layer(Cope(max_pos=T + 1), 1, HEAD_DIM).to(dtype)
    scheme = layers.kinds[0].scheme
    q = torch.zeros(1, 1, 1, HEAD_DIM, dtype=dtype)
    q[..., 0] = 1
    with torch.no_grad():
        scheme.table.zero_()
        scheme.table[:, 0] = (torch.arange(T + 1) % 2).to(dtype)
        ctx = plan_of(layers, T, dtype).layers[0].prepared.ctx.block(Span(T - 1, T), Span(0, T))
        found = scheme.transform_scores(torch.full((1, 1, 1, T), 60.0), None, q, ctx)
    counts = torch.arange(T, 0, -1)
    assert (found - 60)[0, 0, 0].tolist() == (counts % 2).tolist()
