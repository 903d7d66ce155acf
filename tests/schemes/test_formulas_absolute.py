"""Positions that are added to the embeddings, term by term: learned table, sinusoids in both layouts, scaled sinusoids.

A layer whose attention gives nothing returns its input plus what the scheme adds.
"""

import math

import pytest
import torch
from torch import Tensor

from tests.support.naive_attention import one_layer as attention_layer
from tests.support.naive_attention import worst
from x_positional import Decoder, TransformerWrapper
from x_positional.errors import IncompatibleConfig, PositionError
from x_positional.modules.stack import AttentionLayers
from x_positional.schemes import Absolute, ScaledSinusoidal, Sinusoidal, SinusoidalEmbedding
from x_positional.schemes.registry import SchemeConfig

TIGHT = 1e-6
FAR = [0, 1, 255, 256, 257, 511, 777, 4095, 65_535, 131_071, 2**20 - 1]


def one_layer(position: SchemeConfig, width: int, max_seq_len: int | None = None) -> AttentionLayers:
    layers = attention_layer(position, 1, width // 3, max_seq_len=max_seq_len)
    torch.nn.init.zeros_(layers.blocks[0].attn.to_out.weight)
    return layers


def added(
    layers: AttentionLayers, T: int, positions: Tensor | None = None, mask: Tensor | None = None, chunk: int = 0
) -> Tensor:
    """[2 T M]: what the scheme adds to T embeddings, `chunk` tokens at a time through a cache if it is given."""
    x = torch.randn(2, T, layers.dims.dim, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    cache = layers.new_cache(2) if chunk else None
    parts = x.split(chunk or T, dim=1)
    with torch.no_grad():
        return torch.cat([layers(p, cache=cache, positions=positions, mask=mask) for p in parts], dim=1) - x


def waves(t: float, width: int, layout: str, theta: float = 10_000.0) -> list[float]:
    """sin(t theta^(-2i/M)) and cos of the same, in turn or one after the other; an odd width ends with a sine."""
    pairs = range((width + 1) // 2)
    sines, cosines = ([f(t * theta ** (-2 * i / width)) for i in pairs] for f in (math.sin, math.cos))
    if layout == "concat":
        return (sines + cosines)[:width]
    return [wave for both in zip(sines, cosines, strict=True) for wave in both][:width]


@pytest.mark.parametrize("width", [12, 9])
@pytest.mark.parametrize("layout", ["interleaved", "concat"])
@pytest.mark.parametrize("theta", [10_000.0, 50.0])
@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_sinusoids(width: int, layout: str, theta: float, chunk: int) -> None:
    layers = one_layer(Sinusoidal(layout=layout, theta=theta), width)
    expected = torch.tensor([waves(t, width, layout, theta) for t in range(7)], dtype=torch.float64)
    assert worst(added(layers, 7, chunk=chunk), expected.expand(2, -1, -1)) < TIGHT


@pytest.mark.parametrize("chunk", [0, 3])
def test_sinusoids_with_an_offset_and_both_ends(chunk: int) -> None:
    """w_i = theta^(-i / (M/2 - 1)): the first is 1, the last 1 / theta; positions begin at 2."""
    layers = one_layer(Sinusoidal(layout="concat", theta=50.0, offset=2, endpoint=True), 12)
    expected = torch.tensor(
        [[f((t + 2) * 50.0 ** (-i / 5)) for f in (math.sin, math.cos) for i in range(6)] for t in range(7)],
        dtype=torch.float64,
    )
    assert worst(added(layers, 7, chunk=chunk), expected.expand(2, -1, -1)) < TIGHT


def test_both_ends_need_two_pairs() -> None:
    with pytest.raises(IncompatibleConfig, match="endpoint=True divides by the width - 2, and the width is 2"):
        Decoder(dim=2, depth=1, heads=1, position=Sinusoidal(endpoint=True))


@pytest.mark.parametrize("layout", ["interleaved", "concat"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("autocast", [False, True])
def test_sinusoids_are_exact_at_far_positions_in_every_dtype(layout: str, dtype: torch.dtype, autocast: bool) -> None:
    scheme = SinusoidalEmbedding(24, layout=layout).to(dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        found = scheme.waves(torch.tensor([FAR]))
        embedded = scheme.embed(torch.zeros(1, len(FAR), 24, dtype=dtype), torch.tensor([FAR]))
    expected = torch.tensor([waves(t, 24, layout) for t in FAR], dtype=torch.float64)
    assert worst(found[0], expected) < TIGHT
    assert embedded.dtype == dtype
    assert worst(embedded[0], expected) < TIGHT + torch.finfo(dtype).eps / 2


def test_layouts_are_a_permutation_apart() -> None:
    by_turns, one_after_other = (SinusoidalEmbedding(12, layout=layout) for layout in ("interleaved", "concat"))
    positions = torch.tensor([FAR])
    order = torch.arange(12).view(-1, 2).t().flatten()
    assert torch.equal(by_turns.waves(positions)[..., order], one_after_other.waves(positions))


@pytest.mark.parametrize("shift", [1, 17, 4096])
def test_a_shift_is_a_rotation_of_each_pair(shift: int) -> None:
    """PE(t + k) = R_k PE(t), whatever t is."""
    scheme = SinusoidalEmbedding(12)
    before, after = (scheme.waves(torch.tensor([FAR]) + k)[0].double() for k in (0, shift))
    for i in range(6):
        c, s = math.cos(shift * 10_000 ** (-i / 6)), math.sin(shift * 10_000 ** (-i / 6))
        sine, cosine = before[:, 2 * i], before[:, 2 * i + 1]
        assert worst(after[:, 2 * i], sine * c + cosine * s) < TIGHT
        assert worst(after[:, 2 * i + 1], cosine * c - sine * s) < TIGHT


@pytest.mark.parametrize("theta", [10_000.0, 50.0])
def test_scaled_sinusoids(theta: float) -> None:
    """g [sin(t w), cos(t w)] with w_i = theta^(-i / (M/2)) and one learned g."""
    layers = one_layer(ScaledSinusoidal(theta=theta), 12)
    g = layers.kinds[0].scheme.scale.item()
    assert abs(g - 12**-0.5) > 1e-3, "the parameter was to be perturbed"
    expected = torch.tensor(
        [[g * f(t * theta ** (-i / 6)) for f in (math.sin, math.cos) for i in range(6)] for t in range(7)],
        dtype=torch.float64,
    )
    assert worst(added(layers, 7), expected.expand(2, -1, -1)) < TIGHT


def test_the_scale_starts_at_one_over_the_root_of_the_width() -> None:
    stack = Decoder(dim=48, depth=2, heads=2, position="scaled_sinusoidal")
    model = TransformerWrapper(num_tokens=5, max_seq_len=8, attn_layers=stack)
    assert model.attn_layers.schemes[0].scale.tolist() == pytest.approx([48**-0.5])


@pytest.mark.parametrize(("offset", "scale"), [(0, None), (0, 1.0), (2, None), (2, 1.0), (3, 0.3)])
@pytest.mark.parametrize("chunk", [0, 1, 3])
def test_learned_table_with_an_offset(offset: int, scale: float | None, chunk: int) -> None:
    """scale * E[t + offset]; without a scale, the width to the power of -1/2."""
    layers = one_layer(Absolute(offset=offset, scale=scale), 12, max_seq_len=7)
    table = layers.kinds[0].scheme.table.tolist()
    assert len(table) == 7 + offset
    factor = 12**-0.5 if scale is None else scale
    expected = torch.tensor([[factor * c for c in table[t + offset]] for t in range(7)], dtype=torch.float64)
    assert worst(added(layers, 7, chunk=chunk), expected.expand(2, -1, -1)) < 1e-12
    uneven = torch.tensor([[6, 0, 2], [5, 5, 1]])
    assert worst(added(layers, 3, uneven), expected[uneven]) < 1e-12


def test_the_last_row_is_the_last_position() -> None:
    layers = one_layer(Absolute(offset=2), 12, max_seq_len=7)
    added(layers, 1, torch.tensor([[6]]))
    with pytest.raises(PositionError, match="position 7 "):
        added(layers, 1, torch.tensor([[7]]))
    with pytest.raises(PositionError, match="position 7 "):
        added(layers, 8)


def test_padding_on_the_left_takes_no_row() -> None:
    layers, mask = one_layer(Absolute(offset=2), 12, max_seq_len=7), torch.ones(2, 6, dtype=torch.bool)
    mask[1, :4] = False
    whole, padded = added(layers, 6), added(layers, 6, mask=mask)
    assert worst(padded[0], whole[0]) < 1e-12
    assert worst(padded[1, 4:], whole[1, :2]) < 1e-12


def test_rows_before_the_offset_get_no_gradient() -> None:
    layers = one_layer(Absolute(offset=2), 12, max_seq_len=7)
    layers(torch.randn(2, 5, 12, dtype=torch.float64)).square().sum().backward()
    used = layers.kinds[0].scheme.table.grad.abs().sum(-1) > 0
    assert used.tolist() == [False, False, True, True, True, True, True, False, False]
