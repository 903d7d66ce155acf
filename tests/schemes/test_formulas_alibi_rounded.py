"""ALiBi with products rounded to bfloat16 and then scaled, against the formula, one number after the other."""

import math
import struct

import pytest
import torch

from tests.support.naive_attention import Row, attended, dot, naive, one_layer, pairwise, random_qkv, worst
from x_positional.schemes import Alibi, RoundedAlibiBias, alibi_slopes
from x_positional.schemes.registry import SchemeConfig

HEADS, HEAD_DIM, SCALE = 6, 5, 0.3
TIGHT = 1e-6
FAR = torch.tensor([[300, 301, 302, 303, 304, 305, 306, 307, 308], [7, 9, 31, 200, 260, 513, 514, 515, 1031]])
ROUNDED = Alibi(rounding="bfloat16", scale=SCALE)


def bfloat16(x: float) -> float:
    """The nearest number with 8 bits of mantissa, ties to even, by the bits of a float32."""
    (bits,) = struct.unpack("<I", struct.pack("<f", x))
    bits += 0x7FFF + (bits >> 16 & 1)
    return struct.unpack("<f", struct.pack("<I", bits & 0xFFFF0000))[0]


def product(slope: float, position: float) -> float:
    return bfloat16(bfloat16(slope) * bfloat16(position))


def rounded_logit(left: list[float], right: list[float]):
    """q.k / sqrt(D) - scale * |r(s m) - r(s n)|, with the slope of the side that the key is on; no slope is none."""

    def logit(q: Row, k: Row, m: float, n: float, h: int) -> float:
        slopes = left if n <= m else right
        slope = slopes[h] if h < len(slopes) else 0.0
        return dot(q, k) / math.sqrt(len(q)) - SCALE * abs(product(slope, m) - product(slope, n))

    return logit


def usual(heads: int = HEADS) -> list[float]:
    return alibi_slopes(heads)


@pytest.mark.parametrize("positions", [None, FAR, FAR * 0.75], ids=["plain", "far", "fractional"])
@pytest.mark.parametrize("causal", [True, False])
def test_in_attention(positions: torch.Tensor | None, causal: bool):
    qkv, logit = random_qkv(HEADS, HEAD_DIM), rounded_logit(usual(), usual())
    found = attended(one_layer(ROUNDED, HEADS, HEAD_DIM, causal=causal), qkv, positions)
    assert worst(found, naive(qkv, pairwise(logit, positions), causal)) < TIGHT


def test_sides_and_free_heads():
    config = Alibi(rounding="bfloat16", scale=SCALE, variant="asymmetric", slopes=(0.9, 0.4, 0.05))
    qkv, left = random_qkv(HEADS, HEAD_DIM), [0.9, 0.4, 0.05]
    expected = naive(qkv, pairwise(rounded_logit(left, [s / 2 for s in left]), FAR), causal=False)
    assert worst(attended(one_layer(config, HEADS, HEAD_DIM, causal=False), qkv, FAR), expected) < TIGHT


@pytest.mark.parametrize("backend", ["eager", "blockwise", "sdpa", "flex"])
def test_in_chunks_in_every_backend_with_grouped_heads(backend: str):
    qkv, logit = random_qkv(HEADS, HEAD_DIM, kv_heads=2), rounded_logit(usual(), usual())
    layers = one_layer(ROUNDED, HEADS, HEAD_DIM, kv_heads=2, backend=backend)
    assert worst(attended(layers, qkv, FAR, chunks=(4, 1, 4)), naive(qkv, pairwise(logit, FAR))) < TIGHT


def test_rounding_can_be_seen_and_moves_with_the_text():
    """Six heads have slopes that are powers of two, which round only from position 256 on."""
    qkv = random_qkv(HEADS, HEAD_DIM)
    rounded, plain = (one_layer(c, HEADS, HEAD_DIM) for c in (ROUNDED, Alibi(scale=SCALE)))
    assert worst(attended(rounded, qkv), attended(plain, qkv)) < TIGHT
    assert worst(attended(rounded, qkv, FAR), attended(plain, qkv, FAR)) > 1e-2
    assert worst(attended(rounded, qkv, FAR), attended(rounded, qkv, FAR + 100)) > 1e-2
    assert rounded.kinds[0].scheme.capabilities().absolute


@pytest.mark.parametrize("config", [Alibi(scale=0.5), Alibi(scale=0.5, learned=True)])
def test_scale_without_rounding_is_in_the_slopes(config: SchemeConfig):
    qkv, halved = random_qkv(HEADS, HEAD_DIM), Alibi(slopes=tuple(s / 2 for s in usual()), learned=config.learned)
    one, other = (one_layer(c, HEADS, HEAD_DIM) for c in (config, halved))
    assert worst(attended(one, qkv), attended(other, qkv)) < TIGHT
    dims = one.dims
    same = config.resolved(dims) == halved.resolved(dims)
    assert same is not config.learned, "what is learned is the slope, and the scale stands beside it"
    assert ROUNDED.resolved(dims) != Alibi(rounding="bfloat16", slopes=tuple(s * SCALE for s in usual())).resolved(dims)


def test_learned_slopes_are_not_rounded():
    with pytest.raises(ValueError, match="small updates of a slope are rounded away"):
        one_layer(Alibi(learned=True, rounding="bfloat16"), HEADS, HEAD_DIM)
    assert not list(RoundedAlibiBias(HEADS, usual(), None, "bfloat16").parameters())
