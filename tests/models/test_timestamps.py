"""Irregular time series: float timestamps with every continuous scheme, cached and not.

B batch, T tokens.
"""

import pytest
import torch
from torch import Tensor

from tests.support.rounding import assert_same
from x_positional import ContinuousTransformerWrapper, Decoder
from x_positional.schemes import Axial, LogN, Mixed, Rope, Temperature
from x_positional.schemes.base import Dims
from x_positional.schemes.registry import REGISTRY

DIMS = Dims(dim=24, heads=2, kv_heads=2, head_dim=24, causal=True, embed_dim=24, max_seq_len=32)
B, T = 3, 11


def continuous() -> dict[str, object]:
    """Every registered scheme that reads positions and takes fractions, and the settings with frequencies of their own."""
    found: dict[str, object] = {}
    for kind, config in REGISTRY.items():
        if kind != "custom":
            caps = config().build(DIMS).capabilities()
            if caps.continuous and caps.uses_positions:
                found[kind] = kind
    own: dict[str, object] = {
        "learned": Rope(learned=True),
        "axial, pixel, learned": Axial(axes=1, freqs="pixel", learned=True),
        "mixed, one axis": Mixed(axes=1),
        "temperature": Temperature(floor_scale=0.7),
        "log_n": LogN(trained=2),
    }
    return found | own


SCHEMES = continuous()


def model_with(position: object) -> ContinuousTransformerWrapper:
    torch.manual_seed(0)
    stack = Decoder(dim=24, depth=2, heads=2, attn_dim_head=24, position=position)
    model = ContinuousTransformerWrapper(dim_in=5, dim_out=4, max_seq_len=32, attn_layers=stack).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model


def series() -> tuple[Tensor, Tensor]:
    """Values [B T 5] and rising times [B T] float64, other ones in each row, some at the same moment."""
    generator = torch.Generator().manual_seed(1)
    gaps = torch.rand(B, T, generator=generator, dtype=torch.float64) * 3
    gaps[:, 4] = 0
    return torch.randn(B, T, 5, generator=generator), gaps.cumsum(1)


def test_continuous_schemes_are_all_here() -> None:
    assert set(SCHEMES) >= {
        "rope",
        "xpos",
        "polar",
        "alibi",
        "dynamic",
        "sinusoidal",
        "scaled_sinusoidal",
        "axial",
        "mixed",
    }


@pytest.mark.parametrize("name", SCHEMES)
@torch.no_grad()
def test_times_are_read(name: str) -> None:
    """float64 and float32 times alike; other times, other outputs; whole numbers as integers."""
    model, (x, at) = model_with(SCHEMES[name]), series()
    out = model(x, positions=at)
    assert out.isfinite().all()
    assert (model(x, positions=at.float()) - out).abs().max() < 1e-4
    assert (model(x, positions=at * 1.5) - out).abs().max() > 1e-3
    assert_same(model(x, positions=at.round()), model(x, positions=at.round().long()))
    row = model(x[1:2], positions=at[1:2])
    assert_same(row, out[1:2])


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("chunk", [1, 4])
@torch.no_grad()
def test_times_in_a_cache(name: str, chunk: int) -> None:
    model, (x, at) = model_with(SCHEMES[name]), series()
    want, cache = model(x, positions=at), model.new_cache(B)
    got = [model(x[:, i : i + chunk], positions=at[:, i : i + chunk], cache=cache) for i in range(0, T, chunk)]
    assert_same(torch.cat(got, 1), want)


def relative() -> list[str]:
    """Where only distances count; but for xpos, whose factors leave the range of float32 that far from its centre."""
    models = {name: model_with(position) for name, position in SCHEMES.items() if name != "xpos"}
    return [name for name, m in models.items() if not m.attn_layers.kinds[0].scheme.capabilities().absolute]


@pytest.mark.parametrize("name", relative())
@torch.no_grad()
def test_a_clock_of_seconds_since_1970(name: str) -> None:
    """float64 times of today are as good as times from 0."""
    model, (x, at) = model_with(SCHEMES[name]), series()
    at = (at * 1024).round() / 1024  # exact at both places
    assert_same(model(x, positions=at + 1_700_000_000), model(x, positions=at))


def test_which_are_relative() -> None:
    assert set(relative()) >= {"rope", "polar", "alibi", "dynamic", "axial", "mixed", "learned"}
