"""Attention by blocks in training: dropout, half precision and DeBERTa, exact and linear in memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.draws import draws
from tests.support.largest import largest_and_saved
from x_positional import Decoder, TransformerWrapper
from x_positional.attention import masks
from x_positional.attention.backends.base import Prepared, ScoreOps, SeededDropout
from x_positional.attention.backends.tiles import attend as tiles
from x_positional.attention.backends.tiles import geometry
from x_positional.modules.stack import set_activation_checkpointing
from x_positional.schemes.base import AttentionContext

BATCH, HEADS, LENGTH = 2, 2, 23
DEBERTA = {"kind": "deberta", "num_buckets": 6, "max_distance": 12}
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiles of five queries and seven keys, for any length."""
    for fewest in ("FEWEST", "FEWEST_TRAINING", "FEWEST_INFERENCE"):
        monkeypatch.setattr(tiles, fewest, 1)
    monkeypatch.setattr(geometry, "QUERIES", 5)
    monkeypatch.setattr(geometry, "KEYS", 7)


def causal_context() -> AttentionContext:
    index = torch.arange(LENGTH)[None]
    ctx = {"q_index": index, "kv_index": index, "q_positions": index, "kv_positions": index, "ordered": True}
    rule = masks.causal(index.expand(BATCH, -1), index.expand(BATCH, -1))
    return AttentionContext(**ctx, batch=BATCH, heads=HEADS, span=LENGTH, causal=True, visible=rule)


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """With dropout, drawn from the same seed in each call."""
    torch.manual_seed(5)
    out = tiles.attend_by_tiles(q, k, v, Prepared(ctx=causal_context(), bias=None), ScoreOps(scale=0.5, dropout=0.3))
    assert out is not None
    return out


def test_dropout_is_that_of_probabilities_and_their_gradients(small_tiles: None) -> None:
    shape = (BATCH, HEADS, LENGTH, 4)
    q, k, v = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for _ in range(3))
    hidden = torch.ones(LENGTH, LENGTH, dtype=torch.bool).triu(1)
    probabilities = (q @ k.mT * 0.5).masked_fill(hidden, float("-inf")).softmax(-1)
    dropped = attend(q, k, torch.eye(LENGTH, dtype=torch.float64).expand(BATCH, HEADS, -1, -1)).detach()
    kept = dropped != 0
    assert 0.6 < kept[..., ~hidden].double().mean() < 0.8
    expected = probabilities * kept * SeededDropout(0.3, 0).factor
    torch.testing.assert_close(dropped, expected.detach(), rtol=1e-12, atol=1e-12)
    weights = torch.randn(shape, dtype=torch.float64)
    want = torch.autograd.grad((expected @ v * weights).sum(), (q, k, v))
    loss = (attend(q, k, v) * weights).sum()
    for create_graph in (False, True):
        got = torch.autograd.grad(loss, (q, k, v), retain_graph=True, create_graph=create_graph)
        for found, exact in zip(got, want, strict=True):
            torch.testing.assert_close(found, exact, rtol=1e-11, atol=1e-11)


def test_dropout_keeps_its_share_and_each_part_its_own() -> None:
    found = [SeededDropout(rate, 7).kept([3, 4], 40_001) for rate in (0.1, 0.5, 1.0)]
    for rate, kept in zip((0.1, 0.5, 1.0), found, strict=True):
        assert kept.shape == (2, 40_001)
        assert abs(kept.double().mean().item() - (1 - rate)) < 5 * 0.5 / 80_000**0.5
        assert abs(SeededDropout(rate, 7).factor * (1 - rate) - (rate < 1)) < 2**-15
    assert not found[1][0].equal(found[1][1])
    assert SeededDropout(0.5, 7).kept([4], 40_001)[0].equal(found[1][1])


def model(position: object, length: int, **flags: Any) -> TransformerWrapper:
    torch.manual_seed(0)
    layers = Decoder(**{"dim": 8, "depth": 2, "heads": 2, "attn_dim_head": 4, "position": position, **flags})
    net = TransformerWrapper(num_tokens=11, max_seq_len=length, attn_layers=layers)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += torch.randn_like(parameter) / 4
    return net


def step(net: TransformerWrapper, length: int) -> list[Tensor]:
    tokens = torch.arange(BATCH * length).reshape(BATCH, length) % 11
    logits = net(tokens)
    weights = torch.randn(logits.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    parameters = [p for p in net.parameters() if p.requires_grad]
    found = torch.autograd.grad((logits * weights.to(logits)).sum(), parameters, allow_unused=True)
    return [logits, *(g for g in found if g is not None)]


@pytest.mark.parametrize("position", draws(["t5"], ["rope", "t5", "forgetting", "cope", "polar", DEBERTA]))
def test_dropout_repeats_with_its_seed_and_when_activations_are_recomputed(
    small_tiles: None, monkeypatch: pytest.MonkeyPatch, position: object
) -> None:
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)  # every layer runs by blocks
    found = []
    recomputed: Any
    for seed, recomputed in ((1, "none"), (1, "none"), (1, "blocks"), (2, "none")):
        net = set_activation_checkpointing(model(position, LENGTH, attn_dropout=0.3), recomputed)
        torch.manual_seed(seed)
        found.append(step(net, LENGTH))
    for other in found[1:3]:
        assert all(map(torch.equal, found[0], other))
    assert not torch.equal(found[0][0], found[3][0])


def distance(got: list[Tensor], want: list[Tensor]) -> float:
    """Relative, of all numbers together."""
    a, b = (torch.cat([t.double().flatten() for t in found]) for found in (got, want))
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize("position", draws(["t5", "polar"], ["t5", "alibi", "dynamic", "forgetting", "polar", DEBERTA]))
@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision_by_blocks_is_as_exact_as_eager(
    small_tiles: None, monkeypatch: pytest.MonkeyPatch, position: object, autocast: bool
) -> None:
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", None)  # every layer runs by blocks
    exact = step(model(position, LENGTH).double(), LENGTH)
    for dtype in HALF[:1] if autocast else HALF:
        errors = []
        for backend in ("auto", "eager"):
            net = model(position, LENGTH, backend=backend)
            with torch.autocast("cpu", dtype, enabled=autocast):
                found = step(net if autocast else net.to(dtype), LENGTH)
            assert found[0].dtype == dtype
            errors.append(distance(found, exact))
        assert errors[0] < 2 * errors[1] + torch.finfo(dtype).eps


CASES: dict[str, Callable[[int], TransformerWrapper]] = {
    "dropout": lambda n: model("rope", n, attn_dropout=0.1),
    "dropout and a bias": lambda n: model("t5", n, attn_dropout=0.1),
    "dropout and gates": lambda n: model("forgetting", n, attn_dropout=0.1),
    "half precision": lambda n: model("t5", n).bfloat16(),
    "deberta": lambda n: model(DEBERTA, n),
}


@pytest.mark.parametrize("case", CASES)
def test_memory_of_a_training_step_is_linear(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    monkeypatch.setattr(tiles, "FEWEST_TRAINING", 256)
    monkeypatch.setattr(geometry, "QUERIES", 16)
    monkeypatch.setattr(geometry, "KEYS", 64)
    found = []
    for length in (256, 512):
        net, tokens = CASES[case](length), torch.zeros(1, length, dtype=torch.long)
        found.append(largest_and_saved(lambda net=net, tokens=tokens: net(tokens).square().mean()))  # type: ignore[misc]
    (short, saved), (long, saved_long) = found
    assert short < 256**2 / 2
    assert long <= 2.2 * short
    assert saved_long <= 2.2 * saved
