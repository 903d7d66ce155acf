"""Small models whose attention runs by blocks, and what their tests compare."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.largest import largest_and_saved
from x_positional import Decoder, TransformerWrapper
from x_positional.attention.backends import texts
from x_positional.attention.backends.tiles import attend, geometry
from x_positional.schemes import traced
from x_positional.schemes.cope import CountTerm

LENGTH = 37


def by_small_blocks(monkeypatch: pytest.MonkeyPatch, queries: int = 5, keys: int = 7) -> None:
    """Blocks of a few queries and keys for any length, counts over three keys at a time, and texts of any size."""
    for fewest in ("FEWEST", "FEWEST_TRAINING", "FEWEST_INFERENCE"):
        monkeypatch.setattr(attend, fewest, 1)
    for fewest in ("FEWEST", "FEWEST_PACKED", "SHORTEST"):
        monkeypatch.setattr(texts, fewest, 1)
    monkeypatch.setattr(traced, "FEWEST_LOOKUP", 1)
    monkeypatch.setattr(texts, "BLOCK", queries)
    monkeypatch.setattr(geometry, "QUERIES", queries)
    monkeypatch.setattr(geometry, "KEYS", keys)
    monkeypatch.setattr(CountTerm, "width", keys // 2)


def without_torch_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that does not run by blocks fails."""
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)


def model(position: object, *, kind: type = Decoder, length: int = LENGTH, **flags: Any) -> TransformerWrapper:
    """Small, with every parameter perturbed."""
    torch.manual_seed(0)
    layers = kind(**{"dim": 8, "depth": 2, "heads": 2, "attn_dim_head": 4, "position": deepcopy(position), **flags})
    net = TransformerWrapper(num_tokens=11, max_seq_len=length, attn_layers=layers)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += torch.randn_like(parameter) / 4
    return net


def gradients(
    net: TransformerWrapper, batch: int, length: int = LENGTH, call: dict[str, Any] | None = None, twice: bool = False
) -> list[Tensor]:
    """Logits, the gradient of a projection of them for every parameter, and if `twice` that of the square of all of these."""
    tokens = torch.arange(batch * length).reshape(batch, length) % 11
    logits = net(tokens, **(call or {}))
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    parameters = [p for p in net.parameters() if p.requires_grad]
    loss = (logits * weights.to(logits)).sum()
    found = list(torch.autograd.grad(loss, parameters, allow_unused=True, create_graph=twice))
    if twice:
        total = torch.stack([g.square().sum() for g in found if g is not None]).sum()
        found += torch.autograd.grad(total, parameters, allow_unused=True)
    return [logits, *(g for g in found if g is not None)]


def same_as_eager(
    position: object, batch: int, call: dict[str, Any] | None = None, twice: bool = False, **flags: Any
) -> None:
    """Logits and gradients of `auto` are those of eager in float64."""
    names = (flags.pop("backend", "auto"), "eager")
    nets = [model(position, backend=name, **flags).double() for name in names]
    got, want = (gradients(net, batch, call=call, twice=twice) for net in nets)
    for found, expected in zip(got, want, strict=True):
        torch.testing.assert_close(
            found, expected, rtol=1e-9, atol=1e-9 * max(1.0, float(expected.detach().abs().max()))
        )


def assert_linear_memory(
    monkeypatch: pytest.MonkeyPatch, make: Callable[[int], Callable[[], Tensor]], length: int = 160
) -> None:
    """A training step holds no tensor of N x N, and twice the length takes twice the memory. make: a length -> its loss."""
    by_small_blocks(monkeypatch, 8, 64)
    (short, saved), (long, saved_long) = (largest_and_saved(make(n)) for n in (length, 2 * length))
    assert short < length**2 / 2
    assert long <= 2.2 * short
    assert saved_long <= 2.2 * saved
