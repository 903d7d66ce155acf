"""Dynamic position bias (Wang et al. 2021, arXiv:2108.00154, section 3.3): a network over the distance, in plain floats."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from tests.support.naive_attention import attended, naive, one_layer, pairwise, random_qkv, worst
from tests.support.scheme_logits import dynamic_logit, network
from x_positional.schemes import Dynamic

HEADS, HEAD_DIM = 3, 5
TIGHT = 1e-12

VARIANTS = {
    "plain": Dynamic(),
    "shallow": Dynamic(depth=1),
    "deep": Dynamic(depth=3, dim=7),
    "log": Dynamic(log_distance=True),
    "norm": Dynamic(norm=True),
    "log, norm, deep": Dynamic(log_distance=True, norm=True, depth=3, dim=9),
}


@pytest.mark.parametrize(("name", "config"), VARIANTS.items(), ids=VARIANTS)
def test_its_layers_are_as_many_as_asked_for(name: str, config: Dynamic) -> None:
    scheme = one_layer(config, HEADS, HEAD_DIM).kinds[0].scheme
    linear = [layer for layer in scheme.mlp if isinstance(layer, nn.Linear)]
    width = config.dim or 3 * HEADS * HEAD_DIM // 4
    assert [layer.in_features for layer in linear] == [1] + [width] * config.depth
    assert [layer.out_features for layer in linear] == [width] * config.depth + [HEADS]
    assert sum(isinstance(layer, nn.LayerNorm) for layer in scheme.mlp) == (config.depth if config.norm else 0)
    assert sum(isinstance(layer, nn.SiLU) for layer in scheme.mlp) == config.depth


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("causal", [True, False])
def test_dynamic_in_attention(config: Dynamic, causal: bool) -> None:
    layers, qkv = one_layer(config, HEADS, HEAD_DIM, causal=causal), random_qkv(HEADS, HEAD_DIM)
    expected = naive(qkv, pairwise(dynamic_logit(layers.kinds[0].scheme)), causal)
    assert worst(attended(layers, qkv), expected) < TIGHT


@pytest.mark.parametrize("chunks", [(4, 1, 3, 1), (1,) * 9, (2, 7)])
def test_dynamic_in_chunks(chunks: tuple[int, ...]) -> None:
    layers, qkv = one_layer(VARIANTS["log"], HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    expected = naive(qkv, pairwise(dynamic_logit(layers.kinds[0].scheme)))
    assert worst(attended(layers, qkv, chunks=chunks), expected) < TIGHT


@pytest.mark.parametrize("backend", ["blockwise", "sdpa", "flex"])
@pytest.mark.parametrize("causal", [True, False])
def test_dynamic_in_every_backend_with_grouped_heads(backend: str, causal: bool) -> None:
    layers = one_layer(VARIANTS["norm"], 4, HEAD_DIM, kv_heads=2, backend=backend, causal=causal)
    qkv = random_qkv(4, HEAD_DIM, kv_heads=2)
    expected = naive(qkv, pairwise(dynamic_logit(layers.kinds[0].scheme)), causal)
    assert worst(attended(layers, qkv), expected) < TIGHT


@pytest.mark.parametrize("dtype", [torch.int64, torch.float64])
@pytest.mark.parametrize("start", [0, 65_535, 2**20])
def test_dynamic_at_far_uneven_and_fractional_positions(dtype: torch.dtype, start: int) -> None:
    layers, qkv = one_layer(VARIANTS["plain"], HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 5, 3, 70, 71, 9, 300, 2, 1]]).to(dtype) + start
    if dtype == torch.float64:
        positions = positions * 0.75
    expected = naive(qkv, pairwise(dynamic_logit(layers.kinds[0].scheme), positions))
    assert worst(attended(layers, qkv, positions), expected) < TIGHT


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("autocast", [False, True])
def test_a_narrow_model_reads_every_distance(config: Dynamic, autocast: bool) -> None:
    """bfloat16 has no 257: the network works in float32 whatever its weights are stored in."""
    scheme = one_layer(config, HEADS, HEAD_DIM).kinds[0].scheme.bfloat16()
    distance = torch.tensor([-4095, -257, -256, 0, 1, 255, 256, 257, 511, 777, 4095, 65_535])
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = scheme.of_distance(distance)
    exact = deepcopy(scheme).double()
    expected = torch.tensor([network(exact, d) for d in distance.tolist()], dtype=torch.float64).t()
    assert found.dtype == torch.float32
    size = expected.abs().clamp(min=1)
    assert worst(found / size, expected / size) < 1e-5
    assert (found[:, 6] != found[:, 7]).all()
