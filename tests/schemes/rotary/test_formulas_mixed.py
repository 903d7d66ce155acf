"""RoPE-Mixed against Heo et al. 2024 (arXiv:2403.13298) in explicit loops: angles, sharing of heads, and how it starts.

B batch, T tokens, H heads, G key heads, D head dim, A position axes.
"""

import cmath
import math
import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.support.axial_positions import coordinates, dims
from tests.support.naive_attention import Row, attended, dot, naive, one_layer, random_qkv, worst
from x_positional import ContinuousTransformerWrapper, Decoder, Encoder
from x_positional.errors import PositionError
from x_positional.schemes import Axial, AxialEmbedding, Mixed, MixedEmbedding, Rope

HEADS, HEAD_DIM = 4, 12
TIGHT = 1e-6

VARIANTS = {
    "rows and columns": Mixed(),
    "interleaved": Mixed(interleaved=True, theta=100.0),
    "three axes": Mixed(axes=3),
    "part of the head": Mixed(dim=8, interleaved=True),
    "one axis": Mixed(axes=1),
}


def rotated(x: Row, position: Sequence[float], rates: list[list[float]], interleaved: bool) -> list[float]:
    """Each pair times e^(i angle), angle = sum over axes of position * rate (eq. 14)."""
    out, half = list(x), len(rates)
    for f, rate in enumerate(rates):
        first, second = (2 * f, 2 * f + 1) if interleaved else (f, f + half)
        angle = math.fsum(p * r for p, r in zip(position, rate, strict=True))
        turned = complex(x[first], x[second]) * cmath.exp(1j * angle)
        out[first], out[second] = turned.real, turned.imag
    return out


def logits(scheme: MixedEmbedding, positions: Tensor, group: int):
    at, rates = positions.tolist(), scheme.rate.tolist()

    def of(query: Row, keys: list[Row], seen: list[int], m: int, h: int, b: int) -> list[float]:
        mine = rates[h // group]
        turned = rotated(query, at[b][m], mine, scheme.interleaved)
        others = (rotated(key, at[b][n], mine, scheme.interleaved) for key, n in zip(keys, seen, strict=True))
        return [dot(turned, other) / math.sqrt(len(query)) for other in others]

    return of


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("causal", [True, False])
def test_mixed_in_attention(config: Mixed, kv_heads: int, causal: bool) -> None:
    qkv, positions = random_qkv(HEADS, HEAD_DIM, kv_heads=kv_heads), coordinates(config.axes, -20, 20).double() / 7
    layers = one_layer(config, HEADS, HEAD_DIM, kv_heads=kv_heads, causal=causal)
    expected = naive(qkv, logits(layers.schemes[0], positions, HEADS // kv_heads), causal)
    assert worst(attended(layers, qkv, positions if config.axes > 1 else positions[..., 0]), expected) < TIGHT


@pytest.mark.parametrize("chunks", [(4, 1, 3, 1), (1,) * 9])
@pytest.mark.parametrize("kv_heads", [4, 2])
def test_mixed_in_chunks(chunks: tuple[int, ...], kv_heads: int) -> None:
    qkv, positions = random_qkv(HEADS, HEAD_DIM, kv_heads=kv_heads), coordinates(3)
    layers = one_layer(Mixed(axes=3), HEADS, HEAD_DIM, kv_heads=kv_heads)
    expected = naive(qkv, logits(layers.schemes[0], positions, HEADS // kv_heads))
    assert worst(attended(layers, qkv, positions, chunks), expected) < TIGHT


def test_far_coordinates() -> None:
    qkv, positions = random_qkv(HEADS, HEAD_DIM), coordinates(2) + 2**20
    layers = one_layer(Mixed(), HEADS, HEAD_DIM)
    assert worst(attended(layers, qkv, positions), naive(qkv, logits(layers.schemes[0], positions, 1))) < TIGHT


def test_it_starts_as_turned_axial_embeddings() -> None:
    """Two blocks of d/4 frequencies theta^(-4i/d), the second at a right angle to the first; each head its own angle."""
    torch.manual_seed(5)
    d, theta = 16, 10.0
    rate = MixedEmbedding(d, 6, 6, theta=theta).rate
    directions = set()
    for head in rate.tolist():
        phi = math.atan2(head[0][1], head[0][0])
        directions.add(round(phi, 3))
        for i in range(d // 4):
            size = theta ** (-4 * i / d)
            assert head[i] == pytest.approx([size * math.cos(phi), size * math.sin(phi)], abs=TIGHT)
            right = phi + math.pi / 2
            assert head[d // 4 + i] == pytest.approx([size * math.cos(right), size * math.sin(right)], abs=TIGHT)
    assert len(directions) == 6


@pytest.mark.parametrize("axes", [1, 2, 3, 4])
def test_starting_directions_are_rotations(axes: int) -> None:
    """Orthogonal, of length 1 at the fastest pair, never mirrored, and on the average in no direction."""
    torch.manual_seed(6)
    heads, each = 400, 2
    rate = MixedEmbedding(2 * axes * each, heads, heads, axes).rate.detach().double()
    fastest = rate.unflatten(1, (axes, each))[:, :, 0]
    assert worst(fastest @ fastest.transpose(1, 2), torch.eye(axes).double().expand(heads, -1, -1)) < TIGHT
    assert worst(torch.linalg.det(fastest), torch.ones(heads).double()) < TIGHT
    if axes > 1:
        assert fastest.mean(0).abs().max() < 5 / math.sqrt(heads)


def test_one_axis_starts_as_rope() -> None:
    at = torch.tensor([[0, 1, 5, 255]])
    ours, rope = MixedEmbedding(12, 1, 1, 1, theta=100.0).tables(at), Rope(theta=100.0).build(dims()).tables(at)
    assert worst(ours.q_cos, rope.q_cos) < 1e-4  # rates are float32: off by 1e-7 of 255 radians


def test_unturned_it_is_axial() -> None:
    scheme, axial = MixedEmbedding(12, 2, 2, theta=100.0), AxialEmbedding(12, theta=100.0)
    each = axial.inv_freq(torch.device("cpu"))[:3].float()
    with torch.no_grad():
        scheme.rate.zero_()
        scheme.rate[:, :3, 0] = scheme.rate[:, 3:, 1] = each
    at = coordinates(2)
    assert worst(scheme.tables(at).q_sin, axial.tables(at).q_sin.expand(-1, 2, -1, -1)) < 1e-5


def test_every_layer_and_every_key_head_has_its_own() -> None:
    stack = Encoder(dim=24, depth=3, heads=4, attn_kv_heads=2, attn_dim_head=12, position=Mixed())
    rates = [scheme.rate for scheme in stack.position_schemes]
    assert [tuple(rate.shape) for rate in rates] == [(2, 6, 2)] * 3
    assert len({tuple(head.flatten().tolist()) for rate in rates for head in rate}) == 6


@pytest.mark.parametrize("layers", [Encoder, Decoder])
def test_gradients_reach_every_rate(layers: type[Encoder | Decoder]) -> None:
    stack = layers(dim=24, depth=2, heads=4, attn_kv_heads=2, attn_dim_head=12, position="mixed")
    model = ContinuousTransformerWrapper(dim_in=5, dim_out=3, max_seq_len=16, attn_layers=stack)
    model(torch.randn(2, 9, 5), positions=coordinates(2)).square().mean().backward()
    for scheme in stack.position_schemes:
        assert (scheme.rate.grad != 0).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rates_stay_float32_in_a_narrow_model(dtype: torch.dtype) -> None:
    scheme = MixedEmbedding(12, 2, 2)
    before, at = scheme.rate.detach().clone(), coordinates(2) + 2**20
    want = scheme.tables(at)
    scheme.to(dtype)
    assert scheme.rate.dtype == torch.float32
    assert torch.equal(scheme.rate, before)
    assert torch.equal(scheme.tables(at).q_cos, want.q_cos)


def test_without_axes_a_position_is_the_same_on_every_axis() -> None:
    scheme, at = MixedEmbedding(12, 4, 2, 3), torch.tensor([[0, 3, 70]])
    assert worst(scheme.tables(at).q_sin, scheme.tables(at[..., None].expand(-1, -1, 3)).q_sin) < TIGHT


def test_what_cannot_work() -> None:
    (problem,) = Mixed().problems(dims(10))
    assert re.search("mixed: rotary width is 10 .* multiple of 4 .* Set dim=8", problem)
    assert Mixed(dim=8).problems(dims(10)) == []
    with pytest.raises(PositionError, match="positions have 3 axes, and 2 are needed"):
        MixedEmbedding(12, 2, 2).tables(torch.zeros(1, 4, 3))
    assert Axial(axes=3).problems(dims()) == []
