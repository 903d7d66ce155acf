"""Forget gates against Lin et al. 2025 (arXiv:2503.02130), equation 5: bias = sum of log f_t for t = n+1 .. m."""

import math

import pytest
import torch

from tests.support.naive_attention import Row, attended, dot, joined, naive, one_layer, random_qkv, worst
from tests.support.planning import plan_of
from x_positional.schemes import Alibi, Cable, Forgetting, alibi_slopes

HEADS, HEAD_DIM = 3, 5
TIGHT = 1e-12


def forget_logits(layers, x):
    """scale * q.k + log f_(n+1) + ... + log f_m, f_t = sigmoid(w_h . x_t + b_h), one sum for each pair."""
    gate = layers.kinds[0].scheme.gate
    w, bias, rows = gate.weight.tolist(), gate.bias.tolist(), x.tolist()

    def logits(q: Row, keys: list[Row], seen: list[int], m: int, h: int, b: int) -> list[float]:
        log_f = [-math.log1p(math.exp(-dot(w[h], x_t) - bias[h])) for x_t in rows[b]]
        return [
            dot(q, k) / math.sqrt(len(q)) + math.fsum(log_f[n + 1 : m + 1]) for k, n in zip(keys, seen, strict=True)
        ]

    return logits


@pytest.mark.parametrize("chunks", [(), (4, 1, 3, 1), (1,) * 9, (2, 7)])
@pytest.mark.parametrize("bias_init", [5.0, 0.0])
def test_forgetting_in_attention(chunks: tuple[int, ...], bias_init: float) -> None:
    layers, qkv = one_layer(Forgetting(bias_init=bias_init), HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    assert (layers.kinds[0].scheme.gate.bias - bias_init).abs().max() < 2
    expected = naive(qkv, forget_logits(layers, joined(*qkv)))
    assert worst(attended(layers, qkv, chunks=chunks), expected) < TIGHT


@pytest.mark.parametrize("backend", ["eager", "blockwise", "sdpa", "flex"])
def test_forgetting_in_every_backend_with_grouped_heads(backend: str) -> None:
    layers = one_layer(Forgetting(bias_init=0.5), 4, HEAD_DIM, kv_heads=2, backend=backend)
    qkv = random_qkv(4, HEAD_DIM, kv_heads=2)
    assert worst(attended(layers, qkv), naive(qkv, forget_logits(layers, joined(*qkv)))) < TIGHT


def by_hand(gates: list[float]):
    """One head, scores of zero, values that are unit vectors: the output is the attention itself, and token t has gate
    f_t because its value picks one weight of the gate."""
    T = len(gates)
    layers = one_layer(Forgetting(), 1, T)
    zeros = torch.zeros(1, 1, T, T, dtype=torch.float64)
    with torch.no_grad():
        gate = layers.kinds[0].scheme.gate
        gate.weight.zero_()
        gate.bias.zero_()
        gate.weight[0, 2 * T :] = torch.tensor([math.log(f / (1 - f)) for f in gates], dtype=torch.float64)
    return layers, (zeros, zeros, torch.eye(T, dtype=torch.float64)[None, None])


@pytest.mark.parametrize("chunks", [(), (1, 2), (2, 1), (1, 1, 1)])
def test_distances_zero_one_and_two_by_hand(chunks: tuple[int, ...]) -> None:
    """A key's own gate does not count and the query's does: weights 1, f_m and f_m f_(m-1)."""
    a, b, c = 0.5, 0.8, 0.3
    layers, qkv = by_hand([a, b, c])
    weights = torch.tensor([[1, 0, 0], [b, 1, 0], [c * b, c, 1]], dtype=torch.float64)
    found = attended(layers, qkv, chunks=chunks)[0, 0]
    assert worst(found, weights / weights.sum(-1, keepdim=True)) < TIGHT


def test_a_narrow_cache_keeps_the_gates_wide() -> None:
    layers, qkv = by_hand([0.99, 0.7, 0.9123, 0.51, 0.8888])
    layers, qkv = layers.float(), [t.float() for t in qkv]
    x, whole = joined(*qkv), attended(layers, qkv)
    cache = layers.new_cache(1, dtype=torch.bfloat16)
    with torch.no_grad():
        steps = torch.cat([layers(x[:, t : t + 1], cache=cache) for t in range(5)], dim=1)
    assert worst((steps - x)[..., :5], whole.transpose(1, 2).flatten(-2)) < 1e-6


def test_constant_gates_are_alibi_with_slope_minus_log_f() -> None:
    """f_h = exp(-slope_h) for every token."""
    layers, qkv = one_layer(Forgetting(), HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    with torch.no_grad():
        gate = layers.kinds[0].scheme.gate
        gate.weight.zero_()
        gate.bias.copy_(torch.tensor([-math.log(math.expm1(s)) for s in alibi_slopes(HEADS)], dtype=torch.float64))
    alibi = attended(one_layer(Alibi(), HEADS, HEAD_DIM), qkv)
    assert worst(attended(layers, qkv), alibi) < TIGHT
    assert worst(attended(layers, qkv, chunks=(3, 1, 5)), alibi) < TIGHT


def test_open_gates_forget_nothing() -> None:
    layers, qkv = one_layer(Forgetting(), HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    with torch.no_grad():
        layers.kinds[0].scheme.gate.weight.zero_()
        layers.kinds[0].scheme.gate.bias.fill_(60)
    plain = naive(qkv, lambda q, keys, *_: [dot(q, k) / math.sqrt(len(q)) for k in keys])
    assert worst(attended(layers, qkv), plain) < TIGHT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_neighbours_after_thousands_of_tokens(dtype: torch.dtype) -> None:
    """The sums reach -5e3; the bias of the last token's neighbours is still right to a thousandth of a logit."""
    T, layers = 8192, one_layer(Forgetting(bias_init=0.0), HEADS, HEAD_DIM).to(dtype)
    x = torch.randn(1, T, layers.dims.dim, generator=torch.Generator().manual_seed(0)).to(dtype) * 0.1
    scheme = layers.kinds[0].scheme
    with torch.no_grad():
        ctx, state = plan_of(layers, T, dtype).layers[0].prepared.ctx, scheme.key_state(x)
        bias = scheme.content_bias(x, ctx, state, None)
        query, key = torch.tensor(T - 1), torch.arange(T - 4, T)
        head = torch.arange(HEADS)[:, None]
        found = bias.fn(torch.tensor(0), head, query, key)
    log_f = state[0, :, :, 0].double()
    assert state.dtype == torch.float32
    assert log_f.sum(-1).max() < -3000
    expected = torch.stack([log_f[:, n + 1 :].sum(-1) for n in key.tolist()], -1)
    assert worst(found, expected) < 1e-3
    gates = (x.double() @ scheme.gate.weight.double().t() + scheme.gate.bias.double())[0].t()
    assert worst(log_f, -torch.log1p(torch.exp(-gates))) < (1e-6 if dtype == torch.float32 else 0.01)


def cable_logits(layers, x):
    """scale * q.k + p_m - p_n, p_t = -(softplus(w_h . x_0 + b_h) + ... + softplus(w_h . x_t + b_h))."""
    to_bias = layers.kinds[0].scheme.to_bias
    w, bias, rows = to_bias.weight.tolist(), to_bias.bias.tolist(), x.tolist()

    def logits(q: Row, keys: list[Row], seen: list[int], m: int, h: int, b: int) -> list[float]:
        p = [-math.log1p(math.exp(dot(w[h], x_t) + bias[h])) for x_t in rows[b]]
        p = [math.fsum(p[: t + 1]) for t in range(len(p))]
        return [dot(q, k) / math.sqrt(len(q)) + p[m] - p[n] for k, n in zip(keys, seen, strict=True)]

    return logits


@pytest.mark.parametrize("backend", ["eager", "blockwise", "sdpa", "flex"])
def test_cable(backend: str) -> None:
    """Veisi et al. 2025, arXiv:2503.08067."""
    layers = one_layer(Cable(), 4, HEAD_DIM, kv_heads=2, backend=backend)
    qkv = random_qkv(4, HEAD_DIM, kv_heads=2)
    expected = naive(qkv, cable_logits(layers, joined(*qkv)))
    assert worst(attended(layers, qkv), expected) < TIGHT
    assert worst(attended(layers, qkv, chunks=(4, 1, 3, 1)), expected) < TIGHT


def test_cable_is_a_forget_gate_of_the_other_sign() -> None:
    layers, qkv = one_layer(Cable(), HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    other = one_layer(Forgetting(), HEADS, HEAD_DIM)
    with torch.no_grad():
        other.kinds[0].scheme.gate.weight.copy_(-layers.kinds[0].scheme.to_bias.weight)
        other.kinds[0].scheme.gate.bias.copy_(-layers.kinds[0].scheme.to_bias.bias)
    assert worst(attended(layers, qkv), attended(other, qkv)) < TIGHT
