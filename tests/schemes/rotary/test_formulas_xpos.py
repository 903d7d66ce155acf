"""xPos against Sun et al. 2022 (arXiv:2212.10554): score_i gains a factor z_i^((m - n)/B), z_i = (2i/R + 0.4) / 1.4."""

import math

import pytest
import torch

from tests.support.naive_attention import attended, naive, one_layer, pairwise, random_qkv, worst
from tests.support.scheme_logits import xpos_logit
from x_positional.errors import PositionError
from x_positional.schemes import Rope, XPos, XPosEmbedding

HEADS, HEAD_DIM = 3, 10
TIGHT = 1e-6

VARIANTS = {
    "half": XPos(),
    "interleaved": XPos(interleaved=True),
    "fast": XPos(scale_base=7.0, center=4),
    "partial": XPos(dim=6, scale_base=20.0, center=-30),
    "last heads": XPos(heads=2, scale_base=30.0, interleaved=True),
    "scaled": XPos(interpolation_factor=2.0, base_rescale_factor=3.0, theta=600.0, scale_base=30.0),
}


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("chunks", [(), (4, 1, 3, 1), (1,) * 9])
def test_xpos_in_attention(config: XPos, chunks: tuple[int, ...]) -> None:
    qkv = random_qkv(HEADS, HEAD_DIM)
    found = attended(one_layer(config, HEADS, HEAD_DIM), qkv, chunks=chunks)
    assert worst(found, naive(qkv, pairwise(xpos_logit(config)))) < TIGHT


@pytest.mark.parametrize("backend", ["eager", "blockwise", "sdpa", "flex"])
def test_xpos_in_every_backend_with_grouped_heads(backend: str) -> None:
    config, qkv = XPos(scale_base=9.0), random_qkv(4, HEAD_DIM, kv_heads=2)
    found = attended(one_layer(config, 4, HEAD_DIM, kv_heads=2, backend=backend), qkv)
    assert worst(found, naive(qkv, pairwise(xpos_logit(config)))) < TIGHT


@pytest.mark.parametrize("length", [9, 512, 4096, 131_072])
def test_the_centre_follows_the_length_and_changes_nothing(length: int) -> None:
    qkv, near = random_qkv(HEADS, HEAD_DIM), torch.tensor([[0, 1, 2, 3, 4, 5, 6, 7, 8], [8, 7, 6, 5, 4, 3, 2, 1, 0]])
    config = XPos(scale_base=max(512.0, length / 60))
    layers = one_layer(config, HEADS, HEAD_DIM, max_seq_len=length)
    assert layers.kinds[0].scheme.center == length // 2
    for positions in (near, near + length - 9):
        assert worst(attended(layers, qkv, positions), naive(qkv, pairwise(xpos_logit(config), positions))) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("scale_base", "center"), [(64.0, 0), (64.0, 2000), (512.0, -300)])
def test_finite_and_right_up_to_the_limit(dtype: torch.dtype, scale_base: float, center: int) -> None:
    """Keys at both ends of what is allowed in one row: hidden scores reach e^80 there, and visible ones vanish."""
    config = XPos(scale_base=scale_base, center=center)
    qkv = [t.to(dtype) for t in random_qkv(HEADS, HEAD_DIM)]
    layers = one_layer(config, HEADS, HEAD_DIM).to(dtype)
    limit = layers.kinds[0].scheme.limit
    assert limit == math.floor(80 * scale_base / math.log(3.5)) + min(0, center)
    positions = torch.tensor([[0, 1, 2, 3, limit - 5, limit - 4, limit - 3, limit - 2, limit - 1]])
    expected = naive([t.double() for t in qkv], pairwise(xpos_logit(config), positions.expand(2, -1)))
    found = attended(layers, qkv, positions)
    assert worst(found, expected) < (5e-6 if dtype == torch.float32 else 0.05)


def test_finite_up_to_the_limit_of_float16() -> None:
    qkv = [t.half() for t in random_qkv(HEADS, HEAD_DIM)]
    layers = one_layer(XPos(), HEADS, HEAD_DIM).half()
    limit = layers.kinds[0].scheme.half_limit
    positions = torch.tensor([[0, 1, 2, 3, limit - 5, limit - 4, limit - 3, limit - 2, limit - 1]])
    expected = naive([t.double() for t in qkv], pairwise(xpos_logit(XPos()), positions.expand(2, -1)))
    assert worst(attended(layers, qkv, positions), expected) < 0.01


def test_positions_beyond_the_limit_are_refused() -> None:
    layers, qkv = one_layer(XPos(scale_base=64.0), HEADS, HEAD_DIM), random_qkv(HEADS, HEAD_DIM)
    limit = layers.kinds[0].scheme.limit
    assert limit == XPosEmbedding.reach(64.0)
    attended(layers, qkv, torch.arange(limit - 9, limit)[None])
    with pytest.raises(PositionError, match=f"position {limit} "):
        attended(layers, qkv, torch.arange(limit - 8, limit + 1)[None])


def test_a_length_beyond_the_reach_is_refused() -> None:
    reach = XPosEmbedding.reach(4.0)
    one_layer(XPos(scale_base=4.0), HEADS, HEAD_DIM, max_seq_len=reach)
    with pytest.raises(ValueError, match="overflow float32"):
        one_layer(XPos(scale_base=4.0), HEADS, HEAD_DIM, max_seq_len=reach + 1)


def test_a_very_large_scale_base_is_rope() -> None:
    qkv = random_qkv(HEADS, HEAD_DIM)
    rope = attended(one_layer(Rope(), HEADS, HEAD_DIM), qkv)
    assert worst(attended(one_layer(XPos(scale_base=1e12), HEADS, HEAD_DIM), qkv), rope) < TIGHT
    assert worst(attended(one_layer(XPos(scale_base=9.0), HEADS, HEAD_DIM), qkv), rope) > 1e-2


@pytest.mark.parametrize("shift", [1, 7, 1000, 20_000])
def test_only_distances_count(shift: int) -> None:
    qkv, layers = random_qkv(HEADS, HEAD_DIM), one_layer(XPos(), HEADS, HEAD_DIM)
    positions = torch.arange(9)[None].expand(2, -1)
    assert worst(attended(layers, qkv, positions + shift), attended(layers, qkv, positions)) < 2e-6


def test_the_decay_of_a_pair_by_hand() -> None:
    """R = 4: z = (2/7, 9/14). At distance B the first pair keeps 2/7 of its score, the second 9/14."""
    scheme = XPosEmbedding(4, scale_base=16.0)
    for channel, kept in ((0, 2 / 7), (1, 9 / 14)):
        x = torch.zeros(1, 1, 1, 4, dtype=torch.float64)
        x[..., channel] = 1
        score = {}
        for m in (0, 16):
            tables = scheme.tables(torch.tensor([[m]]))
            q, k = scheme.rotate_q(x, tables), scheme.rotate_k(x, scheme.tables(torch.tensor([[0]])))
            score[m] = float((q * k).sum())
        assert score[0] == pytest.approx(1, abs=TIGHT)
        assert score[16] == pytest.approx(kept * math.cos(16 * 100.0**-channel), abs=TIGHT)
