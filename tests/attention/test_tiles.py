"""Attention by blocks of queries: exact at every edge of a block, differentiable twice, and linear in memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.support.draws import draws
from tests.support.largest import largest_and_saved
from x_positional import Alibi, Decoder, TransformerWrapper
from x_positional.attention.backends.tiles import attend, distance, geometry, gradients
from x_positional.schemes.base import AttentionContext
from x_positional.schemes.cope import CountTerm
from x_positional.schemes.distance import BandTerm
from x_positional.schemes.gates import GateTerm
from x_positional.schemes.spans import Span
from x_positional.schemes.terms import ScoreBlock
from x_positional.testing import Sizes
from x_positional.testing.subject import Subject
from x_positional.testing.suite import run_check

SCHEMES: list[Any] = ["cope", "t5", "forgetting", "polar", "alibi", "dynamic", ["t5", "forgetting"], ["rope", "cope"]]
CHECKS = ("backends_agree", "gradients_agree", "gradcheck", "cached_equals_full")


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of four queries for any length, and counts over three keys at a time."""
    for fewest in ("FEWEST", "FEWEST_TRAINING", "FEWEST_INFERENCE"):
        monkeypatch.setattr(attend, fewest, 1)
    monkeypatch.setattr(geometry, "QUERIES", 4)
    monkeypatch.setattr(geometry, "KEYS", 6)
    monkeypatch.setattr(distance, "KERNEL_QUERIES", 4)
    monkeypatch.setattr(CountTerm, "width", 3)


def result(scheme: object, check: str) -> Any:
    return run_check(check, Subject(scheme, Sizes(), torch.device("cpu")))


@pytest.mark.parametrize(
    ("scheme", "check"),
    draws(
        [(s, c) for s in SCHEMES[:4] for c in CHECKS[1:3]] + [("dynamic", CHECKS[0])],
        [(s, c) for s in SCHEMES for c in CHECKS],
    ),
)
def test_small_blocks_pass_the_contract(small_blocks: None, scheme: object, check: str) -> None:
    found = result(scheme, check)
    assert found.verdict == "pass", found.detail


def forgets_the_edge(original: Callable[..., Any]) -> Callable[..., Any]:
    """The last key of a block is taken for visible to all of its queries."""

    def edges(self: AttentionContext, queries: Span, keys: Span) -> list[Span]:
        spans = original(self, queries, keys)
        return [Span(span.start, span.stop - 1) for span in spans if span.start < span.stop - 1]

    return edges


def shifted_band(original: Callable[..., Any]) -> Callable[..., Any]:
    """Blocks after the first read the bias of the next distance."""

    def of_block(self: BandTerm, band: Tensor, block: ScoreBlock) -> Tensor:
        found = original(self, band, block)
        return found.roll(1, -1) if block.queries.start else found

    return of_block


def next_distance(original: Callable[..., Any]) -> Callable[..., Any]:
    """torch's kernel reads the bias of the next distance."""

    def by_distance(self: BandTerm, inputs: Sequence[Tensor]) -> tuple[Tensor, int]:
        table, low = original(self, inputs)
        return table, low + 1

    return by_distance


def forgets_keys_of_other_blocks(original: Callable[..., Any]) -> Callable[..., Any]:
    """Keys before a block get no gate."""

    def add(self: GateTerm, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Any:
        before = scores[..., : block.earlier].clone()
        kept = original(self, scores, inputs, block)
        scores[..., : block.earlier] = before
        return kept

    return add


def counts_from_each_edge(original: Callable[..., Any]) -> Callable[..., Any]:
    """Counts start again from 0 at every few keys."""

    def add(self: CountTerm, scores: Tensor, inputs: Sequence[Tensor], block: ScoreBlock) -> Any:
        stop, kept = scores.shape[-1], []
        while stop:
            start = max(0, stop - self.width)
            kept = original(self, scores[..., start:stop], inputs, block)
            stop = start
        return kept

    return add


def no_gradient_before_a_block(original: Callable[..., Any]) -> Callable[..., Any]:
    """Keys before a block do not count in the gradient of its bias."""

    def differentiate(self: Any, grad: Tensor, kept: Any, sums: Sequence[Tensor | None], block: ScoreBlock) -> None:
        near = torch.cat([torch.zeros_like(grad[..., : block.earlier]), grad[..., block.earlier :]], -1)
        original(self, near, kept, sums, block)

    return differentiate


def keeps_what_was_there(original: Callable[..., Any]) -> Callable[..., Any]:
    """Sums along distances include numbers of a wider tile before."""

    def product(self: gradients.Skewed, *arguments: Any) -> Tensor:
        self.filled = 0
        return original(self, *arguments)

    return product


BROKEN = [
    ("polar", "backends_agree", AttentionContext, "edges_of", forgets_the_edge),
    (["alibi", "forgetting"], "backends_agree", BandTerm, "_of_block", shifted_band),
    ("alibi", "backends_agree", BandTerm, "by_distance", next_distance),
    ("forgetting", "backends_agree", GateTerm, "add", forgets_keys_of_other_blocks),
    ("cope", "backends_agree", CountTerm, "add", counts_from_each_edge),
    ("t5", "gradients_agree", gradients.Skewed, "product", keeps_what_was_there),
    (["t5", "forgetting"], "gradients_agree", BandTerm, "differentiate", no_gradient_before_a_block),
    ("forgetting", "gradients_agree", GateTerm, "differentiate", no_gradient_before_a_block),
    ("cope", "gradients_agree", CountTerm, "_sum_values", lambda original: lambda *_: None),
]


@pytest.mark.parametrize(("scheme", "check", "owner", "name", "broken"), BROKEN)
def test_broken_edges_are_rejected(
    small_blocks: None, monkeypatch: pytest.MonkeyPatch, scheme: Any, check: str, owner: type, name: str, broken: Any
) -> None:
    monkeypatch.setattr(owner, name, broken(getattr(owner, name)))
    found = result(scheme, check)
    assert found.verdict == "fail"
    assert found.margin is None or found.margin >= 10


def model(position: object, backend: str = "auto", length: int = 80) -> TransformerWrapper:
    torch.manual_seed(0)
    layers = Decoder(dim=8, depth=2, heads=2, attn_dim_head=4, position=position, backend=backend)
    net = TransformerWrapper(num_tokens=11, max_seq_len=length, attn_layers=layers)
    for name, parameter in net.named_parameters():
        if name.endswith("table"):  # which starts at 0 in CoPE
            torch.nn.init.normal_(parameter)
    return net


@pytest.mark.parametrize("position", draws(SCHEMES[:3], SCHEMES))
def test_gradients_of_all_gradients_are_those_of_eager(position: object) -> None:
    tokens, found = torch.arange(2 * 70).reshape(2, 70) % 11, []
    for backend in ("auto", "eager"):
        net = model(position, backend).double()
        net.load_state_dict(model(position).double().state_dict())
        parameters = [p for p in net.parameters() if p.requires_grad]
        first = torch.autograd.grad(net(tokens).square().mean(), parameters, create_graph=True, allow_unused=True)
        total = torch.stack([g.square().sum() for g in first if g is not None]).sum()
        second = torch.autograd.grad(total, parameters, allow_unused=True)
        found.append([g for g in (*first, *second) if g is not None])
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


def steep_difference(monkeypatch: pytest.MonkeyPatch) -> tuple[float, set[int]]:
    """ALiBi with steep heads beside eager: the largest difference of the result and the gradients, over float64's precision, and
    the numbers of heads that tiles were computed for."""
    monkeypatch.setattr(attend, "FEWEST_TRAINING", 1)
    monkeypatch.setattr(geometry, "QUERIES", 16)
    monkeypatch.setattr(geometry, "KEYS", 32)
    monkeypatch.setattr(distance, "KERNEL_QUERIES", 64)
    counts, heads_of = set(), gradients.KeyGradients.heads_of

    def counted(self: gradients.KeyGradients, tile: geometry.Tile) -> Span:
        heads = heads_of(self, tile)
        counts.add(heads.stop - heads.start)
        return heads

    monkeypatch.setattr(gradients.KeyGradients, "heads_of", counted)
    tokens, found = torch.arange(2 * 200).reshape(2, 200) % 11, []
    for backend in ("auto", "eager"):
        net = model(Alibi(slopes=(4.0, 2.0), learned=True), backend, length=200).double()
        out = net(tokens)
        found.append([out, *torch.autograd.grad(out.square().mean(), [p for p in net.parameters() if p.requires_grad])])
    scale = max(float(want.detach().abs().max()) for want in found[1])
    worst = max(float((got - want).detach().abs().max()) for got, want in zip(*found, strict=True))
    return worst / scale / torch.finfo(torch.float64).eps, counts


def test_keys_that_do_not_count_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    difference, heads = steep_difference(monkeypatch)
    assert difference < 1000
    assert heads == {0, 1, 2}


def test_leaving_out_keys_that_count_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    of = distance.DistanceBias.of.__func__  # type: ignore[attr-defined]

    def narrow(cls: Any, *arguments: Any) -> Any:
        bias = of(cls, *arguments)
        return replace(bias, margin=torch.full_like(bias.margin, 10.0))

    monkeypatch.setattr(distance.DistanceBias, "of", classmethod(narrow))
    assert steep_difference(monkeypatch)[0] > 10_000


def largest(position: object, length: int) -> tuple[int, int]:
    """Elements of the largest tensor of a training step, and the bytes that it saves."""
    net = model(position, length=length)
    return largest_and_saved(lambda: net(torch.zeros(1, length, dtype=torch.long)).square().mean())


@pytest.mark.parametrize("position", SCHEMES)
def test_no_tensor_of_a_training_step_grows_with_the_square_of_the_length(
    monkeypatch: pytest.MonkeyPatch, position: object
) -> None:
    monkeypatch.setattr(geometry, "QUERIES", 32)
    (short, saved), (long, saved_long) = largest(position, 512), largest(position, 1024)
    assert short < 512**2 / 2
    assert long <= 2.2 * short
    assert saved_long <= 2.2 * saved
