"""Attention by blocks in training: dropout, half precision and DeBERTa, exact and linear in memory."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.support.block_models import (
    assert_linear_memory,
    by_small_blocks,
    gradients,
    model,
    same_as_eager,
    without_torch_kernel,
)
from tests.support.draws import draws
from x_positional import TransformerWrapper
from x_positional.attention import masks
from x_positional.attention.backends.base import Prepared, ScoreOps, SeededDropout
from x_positional.attention.backends.tiles import attend as tiles
from x_positional.modules.stack import set_activation_checkpointing
from x_positional.schemes.base import AttentionContext, Bias, IndexFn, PositionScheme

BATCH, HEADS, LENGTH = 2, 2, 23
DEBERTA = {"kind": "deberta", "num_buckets": 6, "max_distance": 12}
HALF = (torch.bfloat16, torch.float16)


@pytest.fixture
def small_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    by_small_blocks(monkeypatch)


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


CAP: dict[str, Any] = {"attn_softclamp_logits": True, "attn_logit_softclamp_value": 1.5}
SINKS: dict[str, Any] = {"attn_head_learned_sink": True}
LEFT: dict[str, Any] = {"mask": torch.arange(37) >= torch.tensor([[0], [6]])}
NEW: list[tuple[Any, dict[str, Any], dict[str, Any], bool]] = [
    ("rope", {**CAP, **SINKS, "window": 6}, LEFT, True),
    ("cope", CAP, LEFT, False),
    ("alibi", SINKS, {}, False),
    ("rope", SINKS, {}, False),
    ("t5", {**CAP, "attn_dropout": 0.0}, {}, False),
    ("cope", CAP, {}, True),
    (["t5", "forgetting"], {**CAP, **SINKS}, LEFT, True),
    *(("t5", flags, call, True) for flags in (CAP, SINKS) for call in ({}, LEFT)),
]


@pytest.mark.parametrize(("position", "flags", "call", "twice"), draws(NEW[:4], NEW))
def test_soft_caps_and_sinks_are_those_of_eager(
    small_tiles: None, position: object, flags: dict[str, Any], call: dict[str, Any], twice: bool
) -> None:
    same_as_eager(position, BATCH, call, twice, depth=1, **flags)


def test_the_table_of_a_wide_model_is_read_in_its_dtype(small_tiles: None) -> None:
    """ALiBi's slopes are float32 in a float64 model."""
    same_as_eager("alibi", BATCH, depth=1)


class Slope(PositionScheme):
    """A learned slope of each head, as a function alone."""

    def __init__(self, heads: int):
        super().__init__()
        self.slope = nn.Parameter(torch.linspace(0.3, 0.6, heads))

    def bias(self, ctx: AttentionContext) -> Bias:
        q, k = ctx.q_positions.expand(ctx.batch, -1), ctx.kv_positions.expand(ctx.batch, -1)

        def fn(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return -self.slope[h] * (q[b, i] - k[b, j]).abs().to(self.slope.dtype).sqrt()

        return Bias(fn, ctx.mask_batch, len(self.slope))


class Lookup(Slope):
    """A learned number of each head and distance, counted from the end, as a function alone."""

    def __init__(self, heads: int, negative: bool = False):
        super().__init__(heads)
        self.table, self.first = nn.Parameter(torch.linspace(-1, 1, heads * 40).view(heads, 40)), -40 if negative else 0

    def bias(self, ctx: AttentionContext) -> Bias:
        q, k = ctx.q_positions.expand(ctx.batch, -1), ctx.kv_positions.expand(ctx.batch, -1)
        fn: IndexFn = lambda b, h, i, j: self.table[h, (q[b, i] - k[b, j]).clamp(0, 39) + self.first]  # noqa: E731
        return Bias(fn, ctx.mask_batch, len(self.table))


class Mixed(Lookup):
    """A function that reads a product of its own parameters."""

    def bias(self, ctx: AttentionContext) -> Bias:
        product, lookup = self.table * self.slope[:, None], super().bias(ctx)
        return Bias(lambda b, h, i, j: product[h, i % 40] + lookup.fn(b, h, i, j), ctx.mask_batch, len(self.table))


class Hidden(torch.autograd.Function):
    """An operation that tracing cannot see into."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0]


class Opaque(Slope):
    """A function whose parameter tracing does not find."""

    def bias(self, ctx: AttentionContext) -> Bias:
        plain = super().bias(ctx)

        def fn(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return plain.fn(b, h, i, j) + Hidden.apply(self.slope).sum()  # type: ignore[no-any-return]

        return Bias(fn, plain.batch, plain.heads)


FUNCTIONS = [
    (Slope(2), False),
    (Lookup(2), False),
    (Mixed(2), True),
    (Lookup(2, True), False),
    (Slope(2), True),
    (Lookup(2), True),
]


@pytest.mark.parametrize(("position", "twice"), draws(FUNCTIONS[:3], FUNCTIONS))
@pytest.mark.parametrize("call", draws([LEFT], [{}, LEFT]))
def test_learned_functions_are_those_of_eager(
    small_tiles: None, monkeypatch: pytest.MonkeyPatch, position: PositionScheme, twice: bool, call: dict[str, Any]
) -> None:
    without_torch_kernel(monkeypatch)
    same_as_eager(position, BATCH, call, twice, depth=1)


def test_a_function_that_tracing_cannot_follow_runs_in_the_kernel(small_tiles: None) -> None:
    same_as_eager(Opaque(2), BATCH, depth=1)


KEPT: list[tuple[Any, dict[str, Any], bool]] = [("rope", {}, True), ("t5", LEFT, False)]
EVERY_KEPT = [
    (p, call, twice)
    for p in ("rope", "t5", "alibi", "none", ["rope", "t5"], "dynamic", "polar")
    for call in ({}, LEFT)
    for twice in (False, True)
]


@pytest.mark.parametrize(("position", "call", "twice"), draws(KEPT, EVERY_KEPT))
def test_kept_tokens_are_those_of_eager(
    small_tiles: None, monkeypatch: pytest.MonkeyPatch, position: object, call: dict[str, Any], twice: bool
) -> None:
    without_torch_kernel(monkeypatch)
    same_as_eager(position, BATCH, call, twice, window=6, keep_first=2, depth=1)


@pytest.mark.parametrize("position", draws(["t5"], ["rope", "t5", "forgetting", "cope", "polar", DEBERTA]))
def test_dropout_repeats_with_its_seed_and_when_activations_are_recomputed(
    small_tiles: None, monkeypatch: pytest.MonkeyPatch, position: object
) -> None:
    without_torch_kernel(monkeypatch)
    found = []
    recomputed: Any
    for seed, recomputed in ((1, "none"), (1, "none"), (1, "blocks"), (2, "none")):
        net = set_activation_checkpointing(model(position, length=LENGTH, attn_dropout=0.3), recomputed)
        torch.manual_seed(seed)
        found.append(gradients(net, BATCH, LENGTH))
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
    without_torch_kernel(monkeypatch)
    exact = gradients(model(position, length=LENGTH).double(), BATCH, LENGTH)
    for dtype in HALF[:1] if autocast else HALF:
        errors = []
        for backend in ("auto", "eager"):
            net = model(position, length=LENGTH, backend=backend)
            with torch.autocast("cpu", dtype, enabled=autocast):
                found = gradients(net if autocast else net.to(dtype), BATCH, LENGTH)
            assert found[0].dtype == dtype
            errors.append(distance(found, exact))
        assert errors[0] < 2 * errors[1] + torch.finfo(dtype).eps


SMALL = {"depth": 1, "ff_mult": 1}
CASES: dict[str, Callable[[int], TransformerWrapper]] = {
    "dropout": lambda n: model("rope", length=n, attn_dropout=0.1, **SMALL),
    "dropout and a bias": lambda n: model("t5", length=n, attn_dropout=0.1, **SMALL),
    "dropout and gates": lambda n: model("forgetting", length=n, attn_dropout=0.1, **SMALL),
    "half precision": lambda n: model("t5", length=n, **SMALL).bfloat16(),
    "deberta": lambda n: model(DEBERTA, length=n, **SMALL),
    "a soft cap": lambda n: model("rope", length=n, **CAP, **SMALL),
    "sinks and a bias": lambda n: model("t5", length=n, **SINKS, **SMALL),
    "a learned function": lambda n: model(Slope(2), length=n, **SMALL),
    "kept tokens": lambda n: model("rope", length=n, window=32, keep_first=2, **SMALL),
}


@pytest.mark.parametrize("case", CASES)
def test_memory_of_a_training_step_is_linear(monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    def step(length: int) -> Callable[[], Tensor]:
        net, tokens = CASES[case](length), torch.zeros(1, length, dtype=torch.long)
        return lambda: net(tokens).square().mean()

    assert_linear_memory(monkeypatch, step)
