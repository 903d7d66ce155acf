"""Axial rotary embedding against explicit loops over axes and pairs, and against RoPE where it is the same.

B batch, T tokens, H heads, D head dim, A position axes, R rotated width.
"""

import cmath
import math
import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.support.axial_positions import HEAD_DIM, HEADS, coordinates, dims
from tests.support.naive_attention import Row, attended, dot, naive, one_layer, random_qkv, worst
from x_positional import check
from x_positional.errors import PositionError
from x_positional.schemes import Axial, AxialEmbedding, Rope

TIGHT = 1e-6

VARIANTS = {
    "rows and columns": Axial(),
    "interleaved": Axial(interleaved=True, theta=100.0),
    "three axes": Axial(axes=3, theta=50.0),
    "three axes, interleaved": Axial(axes=3, interleaved=True),
    "part of the head": Axial(dim=8),
    "pixel": Axial(freqs="pixel"),
    "pixel, three axes, far": Axial(freqs="pixel", max_freq=256.0, axes=3, interleaved=True),
    "pixel, a pair for each of three axes": Axial(freqs="pixel", axes=3, dim=6),
    "periods": Axial(freqs="period", theta=100.0),
    "one axis": Axial(axes=1, theta=300.0),
}


def rate(config: Axial, i: int, each: int) -> float:
    """Pair i of the `each` pairs of an axis, in radians per unit of its coordinate."""
    if config.freqs != "pixel":
        return config.theta ** (-2 * i / (2 * each)) * (2 * math.pi if config.freqs == "period" else 1)
    return math.pi * (1 + (config.max_freq / 2 - 1) * i / (each - 1) if each > 1 else 1)


def rotated(x: Row, position: Sequence[float], config: Axial) -> list[float]:
    """Each pair of channels as a complex number times e^(i angle), one axis after the other."""
    R, out = config.dim or len(x), list(x)
    each = R // (2 * config.axes)
    for axis in range(config.axes):
        for i in range(each):
            f = axis * each + i
            first, second = (2 * f, 2 * f + 1) if config.interleaved else (f, f + R // 2)
            turned = complex(x[first], x[second]) * cmath.exp(1j * position[axis] * rate(config, i, each))
            out[first], out[second] = turned.real, turned.imag
    return out


def logits(config: Axial, positions: Tensor):
    at = positions.tolist()

    def of(query: Row, keys: list[Row], seen: list[int], m: int, h: int, b: int) -> list[float]:
        turned = rotated(query, at[b][m], config)
        pairs = zip(keys, seen, strict=True)
        return [dot(turned, rotated(key, at[b][n], config)) / math.sqrt(len(query)) for key, n in pairs]

    return of


def found(config: Axial, positions: Tensor, **how) -> Tensor:
    given = positions if config.axes > 1 else positions[..., 0]
    return attended(one_layer(config, HEADS, HEAD_DIM, **how), random_qkv(HEADS, HEAD_DIM), given)


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
@pytest.mark.parametrize("causal", [True, False])
def test_axial_in_attention(config: Axial, causal: bool) -> None:
    positions = coordinates(config.axes)
    expected = naive(random_qkv(HEADS, HEAD_DIM), logits(config, positions), causal)
    assert worst(found(config, positions, causal=causal), expected) < TIGHT


@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_fractions_and_negative_coordinates(config: Axial) -> None:
    positions = coordinates(config.axes, -100, 100).double() / 100
    expected = naive(random_qkv(HEADS, HEAD_DIM), logits(config, positions))
    assert worst(found(config, positions), expected) < TIGHT


@pytest.mark.parametrize("backend", ["eager", "blockwise", "sdpa", "flex"])
def test_every_backend_with_grouped_heads(backend: str) -> None:
    qkv, positions = random_qkv(4, HEAD_DIM, kv_heads=2), coordinates(2)
    layers = one_layer(Axial(), 4, HEAD_DIM, kv_heads=2, backend=backend)
    assert worst(attended(layers, qkv, positions), naive(qkv, logits(Axial(), positions))) < TIGHT


@pytest.mark.parametrize("by", [(1, 0), (0, 1000), (7, 2**17), (-3, 5)])
def test_only_distances_along_each_axis_count(by: tuple[int, int]) -> None:
    positions = coordinates(2).double()  # a whole number below 0 may be -1, which is no token
    assert worst(found(Axial(), positions + torch.tensor(by)), found(Axial(), positions)) < TIGHT


def test_one_axis_is_rope() -> None:
    at = torch.tensor([[0, 1, 5, 255, 2**20 - 1]])
    ours, rope = AxialEmbedding(12, 1).tables(at), Rope().build(dims()).tables(at)
    assert torch.equal(ours.q_cos, rope.q_cos)
    assert torch.equal(ours.q_sin, rope.q_sin)


def test_a_position_without_axes_is_the_same_on_every_axis() -> None:
    at = torch.tensor([[0, 3, 700]])
    scheme = AxialEmbedding(12, 3)
    assert torch.equal(scheme.tables(at).k_sin, scheme.tables(at[..., None].expand(-1, -1, 3)).k_sin)


def test_frequencies_by_hand() -> None:
    """R = 8: two pairs an axis. theta = 100 gives 1 and 0.1; pixel with max_freq = 10 gives pi and 5 pi."""
    scheme = AxialEmbedding(8, theta=100.0)
    assert scheme.inv_freq(torch.device("cpu")).tolist() == pytest.approx([1, 0.1, 1, 0.1])
    pixel = AxialEmbedding(8, freqs="pixel").inv_freq(torch.device("cpu")) / math.pi
    assert pixel.tolist() == pytest.approx([1, 5, 1, 5])
    period = AxialEmbedding(8, theta=100.0, freqs="period").inv_freq(torch.device("cpu")) / math.pi
    assert period.tolist() == pytest.approx([2, 0.2, 2, 0.2])


@pytest.mark.parametrize(
    ("config", "head_dim", "words"),
    [
        (Axial(), 10, "rotary width is 10 \\(head_dim=10\\); 2 axes .* multiple of 4 up to head_dim. Set dim=8"),
        (Axial(axes=3), 64, "multiple of 6 .* Set dim=60"),
        (Axial(dim=16), 12, "rotary width is 16 .* Set dim=12"),
        (Axial(dim=0), 12, "rotary width is 0 "),
        (Axial(axes=3), 4, "Use fewer axes"),
        (Axial(freqs="pixel", theta=100.0), 12, "theta=100 is for freqs='lang'"),
        (Axial(max_freq=256.0), 12, "max_freq=256 is for freqs='pixel'"),
        (Axial(theta=100.0, dim=4), 12, "theta=100 has no effect"),
        (Axial(freqs="pixel", max_freq=256.0, axes=3), 6, "max_freq=256 has no effect"),
    ],
)
def test_what_cannot_work(config: Axial, head_dim: int, words: str) -> None:
    (problem,) = config.problems(dims(head_dim))
    assert re.search(words, problem), problem


def test_pixel_frequencies_are_not_for_whole_numbers() -> None:
    pixels, plain = (check(dim=24, depth=2, heads=2, position=Axial(freqs=f), max_seq_len=8) for f in ("pixel", "lang"))
    assert any("Pass float positions" in warning for warning in pixels.warnings)
    assert not any("Pass float positions" in warning for warning in plain.warnings)
    turned = AxialEmbedding(12, freqs="pixel").tables(torch.tensor([[0, 2, 4], [1, 3, 5]])).q_sin
    assert worst(turned, torch.zeros_like(turned)) < TIGHT


def test_too_few_axes_are_refused() -> None:
    with pytest.raises(PositionError, match="positions have 2 axes, and 3 are needed"):
        AxialEmbedding(12, 3).tables(torch.zeros(1, 4, 2))
