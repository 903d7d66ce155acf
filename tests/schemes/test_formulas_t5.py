"""T5's relative bias against Raffel et al. 2020 (arXiv:1910.10683): buckets by exact integer arithmetic, then the bias."""

import pytest
import torch

from tests.support.naive_attention import attended, naive, one_layer, pairwise, random_qkv, worst
from tests.support.scheme_logits import bucket, t5_logit
from x_positional import Encoder
from x_positional.schemes import T5, T5Bias, t5_buckets

HEADS, HEAD_DIM = 3, 5
TIGHT = 1e-12

SIZES = [(32, 128), (32, 256), (64, 128), (32, 512), (320, 800), (8, 20), (7, 9), (4, 3), (5, 1000), (33, 4096)]


@pytest.mark.parametrize(("num_buckets", "max_distance"), SIZES)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("autocast", [None, torch.bfloat16, torch.float16])
def test_buckets_are_the_exact_ones(
    num_buckets: int, max_distance: int, causal: bool, autocast: torch.dtype | None
) -> None:
    far = [*range(-40, 700), *range(700, max_distance + 60, 37), 2**20]
    far += [] if causal else [-d for d in far]
    with torch.autocast("cpu", dtype=autocast or torch.bfloat16, enabled=autocast is not None):
        found = t5_buckets(torch.tensor(far), num_buckets, max_distance, causal).tolist()
    assert found == [bucket(d, num_buckets, max_distance, causal) for d in far]


def test_buckets_by_hand() -> None:
    """32 buckets to 128 in a decoder: 16 exact, then 8 to an octave over two; an encoder has half of them a side."""
    causal = t5_buckets(torch.tensor([-3, 0, 1, 15, 16, 17, 31, 32, 63, 64, 113, 127, 128, 9999]), 32, 128, True)
    assert causal.tolist() == [0, 0, 1, 15, 16, 16, 21, 21, 26, 26, 31, 31, 31, 31]
    both = t5_buckets(torch.tensor([0, 7, 8, 11, 12, 127, -1, -7, -8, -127, -9999]), 32, 128, False)
    assert both.tolist() == [0, 7, 8, 8, 9, 15, 17, 23, 24, 31, 31]


@pytest.mark.parametrize(
    "config", [T5(), T5(num_buckets=8, max_distance=6), T5(num_buckets=6, max_distance=7, scale=3.0)]
)
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("backend", ["eager", "blockwise", "sdpa", "flex"])
def test_t5_in_attention(config: T5, causal: bool, backend: str) -> None:
    layers, qkv = one_layer(config, HEADS, HEAD_DIM, causal=causal, backend=backend), random_qkv(HEADS, HEAD_DIM)
    expected = naive(qkv, pairwise(t5_logit(layers.kinds[0].scheme, causal)), causal)
    assert worst(attended(layers, qkv), expected) < TIGHT


@pytest.mark.parametrize("chunks", [(4, 1, 3, 1), (1,) * 9, (2, 7)])
def test_t5_in_chunks(chunks: tuple[int, ...]) -> None:
    layers = one_layer(T5(num_buckets=8, max_distance=6), HEADS, HEAD_DIM)
    qkv = random_qkv(HEADS, HEAD_DIM)
    expected = naive(qkv, pairwise(t5_logit(layers.kinds[0].scheme, True)))
    assert worst(attended(layers, qkv, chunks=chunks), expected) < TIGHT


@pytest.mark.parametrize("start", [0, 65_535, 2**20])
@pytest.mark.parametrize("causal", [True, False])
def test_t5_at_far_and_uneven_positions(start: int, causal: bool) -> None:
    layers, qkv = (
        one_layer(T5(num_buckets=12, max_distance=90), HEADS, HEAD_DIM, causal=causal),
        random_qkv(HEADS, HEAD_DIM),
    )
    positions = start + torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 5, 3, 70, 71, 9, 300, 2, 1]])
    expected = naive(qkv, pairwise(t5_logit(layers.kinds[0].scheme, causal), positions), causal)
    assert worst(attended(layers, qkv, positions), expected) < TIGHT


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("causal", [True, False])
def test_a_narrow_model_has_the_same_buckets(dtype: torch.dtype, causal: bool) -> None:
    """Each bucket's number is its row: the bias tells which rows were read."""
    scheme = T5Bias(HEADS, causal, 32, 512).to(dtype)
    with torch.no_grad():
        scheme.table.copy_(torch.arange(32)[:, None].expand(-1, HEADS))
    distance = torch.arange(-600 if not causal else 0, 600)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        rows = scheme.of_distance(distance)[1].long().tolist()
    assert rows == [bucket(d, 32, 512, causal) for d in distance.tolist()]


def test_a_table_for_each_layer() -> None:
    """Layers share one scheme, or have as many schemes as there are layers, which take part one by one."""
    stacks = {
        each: Encoder(dim=15, depth=3, heads=3, attn_dim_head=5, position=T5(per_layer=each)) for each in (True, False)
    }
    assert [len(stack.schemes) for stack in stacks.values()] == [3, 1]
    layers, x = stacks[True].double(), torch.randn(1, 7, 15, dtype=torch.float64)
    before = layers(x)
    for scheme in layers.schemes:
        kept = scheme.table.detach().clone()
        torch.nn.init.normal_(scheme.table)
        assert worst(layers(x), before) > 1e-4
        scheme.table.data.copy_(kept)
    assert worst(layers(x), before) < TIGHT
