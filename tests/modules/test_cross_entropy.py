"""Cross entropy by chunks: exact in value, first and second derivatives, and never with all logits at once."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from tests.support.draws import draws
from tests.support.largest import Largest
from x_positional.modules import cross_entropy
from x_positional.modules.cross_entropy import (
    NO_TARGET,
    PLAIN,
    TokenLoss,
    Unembedding,
    chunks_pay,
    cross_entropy_by_chunks,
)

M, V = 6, 11
SOME, FIRST_CHUNK, NONE, ALL = [2, 9, 16], [0, 1, 2, 3, 4], list(range(17)), []
"""Rows without a target, of 17."""


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 5 rows, the last of which has 2."""
    monkeypatch.setattr(cross_entropy, "ROWS", 5)


class Case:
    """Tensors that a loss of 17 rows depends on, and the map from hidden states to logits in two forms."""

    def __init__(
        self,
        dtype: torch.dtype,
        bias: bool = False,
        cap: float | None = None,
        missing: list[int] = ALL,
        rows: int = 17,
        loss: TokenLoss = PLAIN,
    ):
        random = torch.Generator().manual_seed(rows)
        shapes = [(rows, M), (V, M), (V,)][: 3 if bias else 2]
        self.tensors = [torch.randn(s, generator=random, dtype=torch.float64).to(dtype) for s in shapes]
        for tensor in self.tensors:
            tensor.requires_grad_()
        self.targets = torch.randint(V, (rows,), generator=random)
        self.targets[missing] = NO_TARGET
        self.cap, self.loss = cap, loss

    def logits(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        z = F.linear(x * 0.5, weight, bias)
        return z if self.cap is None else self.cap * torch.tanh(z / self.cap)

    def whole(self, x: Tensor, *others: Tensor) -> Tensor:
        z = self.logits(x, *others)
        wide = z.to(torch.promote_types(z.dtype, torch.float32))
        smoothing, counts = self.loss.label_smoothing, self.targets != NO_TARGET
        found = F.cross_entropy(wide, self.targets, ignore_index=NO_TARGET, reduction="sum", label_smoothing=smoothing)
        return found + self.loss.z_loss * wide[counts].exp().sum(-1).log().square().sum()

    def chunked(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        def no_function(x: Tensor) -> Tensor:
            raise AssertionError("logits come from the tensors")

        return cross_entropy_by_chunks(
            x, self.targets, no_function, Unembedding(weight, bias, 0.5, self.cap), self.loss
        )

    def recomputed(self, x: Tensor, *others: Tensor) -> Tensor:
        return cross_entropy_by_chunks(x, self.targets, lambda part: self.logits(part, *others), None, self.loss)

    def results(self, loss: Callable[..., Tensor]) -> list[Tensor]:
        """The loss, and the gradients of a multiple of it."""
        value = loss(*self.tensors)
        return [value.detach(), *torch.autograd.grad(value * 0.3, self.tensors)]


WAYS = [Case.chunked, Case.recomputed]
LOSSES = [PLAIN, TokenLoss(label_smoothing=0.15), TokenLoss(z_loss=0.03), TokenLoss(0.15, 0.03)]
FORMS = [(False, None), (True, None), (False, 3.0), (True, 3.0)]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("bias", "cap"), FORMS)
@pytest.mark.parametrize("missing", [ALL, SOME, FIRST_CHUNK, NONE])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("rows", draws((17,), (17, 20, 25)))
def test_loss_and_gradients_are_those_of_whole_logits(
    way: Any, bias: bool, cap: float | None, missing: list[int], rows: int, loss: TokenLoss
) -> None:
    case = Case(torch.float64, bias, cap, missing, rows, loss)
    for got, want in zip(case.results(way.__get__(case)), case.results(case.whole), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("cap", [None, 3.0])
@pytest.mark.parametrize("loss", [PLAIN, LOSSES[-1]])
def test_half_precision_is_as_close_to_float64_as_whole_logits(
    way: Any, bias: bool, cap: float | None, loss: TokenLoss
) -> None:
    """Sums of chunks are float32; each rounding of bfloat16 is 2^-9 of a value, and a result has a few of them."""
    case, exact = (Case(dtype, bias, cap, SOME, loss=loss) for dtype in (torch.bfloat16, torch.float64))
    with torch.no_grad():
        for rounded, tensor in zip(case.tensors, exact.tensors, strict=True):
            tensor.copy_(rounded)
    found, want = case.results(way.__get__(case)), exact.results(exact.whole)
    assert [t.dtype for t in found] == [torch.float32] + [torch.bfloat16] * len(case.tensors)
    for a, b in zip(found, want, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=0, atol=8 * 2**-9 * b.abs().max().item())


@pytest.mark.parametrize("way", WAYS)
def test_autocast_keeps_the_gradients_of_float32_parameters(way: Any) -> None:
    case = Case(torch.float32, bias=True, missing=SOME)
    want = case.results(case.whole)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded, found = case.results(case.whole), case.results(way.__get__(case))
    assert [t.dtype for t in found] == [torch.float32] * 4
    for a, b, c in zip(found, want, rounded, strict=True):
        assert not torch.equal(a, b), "products are rounded to bfloat16"
        torch.testing.assert_close(a, b, rtol=0, atol=8 * 2**-9 * b.abs().max().item())
        torch.testing.assert_close(a, c, rtol=0, atol=8 * 2**-9 * b.abs().max().item())


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("bias", "cap"), draws(FORMS[-1:], FORMS))
@pytest.mark.parametrize("loss", draws([PLAIN, LOSSES[-1]], LOSSES))
def test_second_derivatives(way: Any, bias: bool, cap: float | None, loss: TokenLoss) -> None:
    case = Case(torch.float64, bias, cap, [2], rows=7 if loss is PLAIN else 3, loss=loss)
    assert gradcheck(way.__get__(case), case.tensors)
    assert gradgradcheck(way.__get__(case), case.tensors)


def test_only_wanted_gradients_are_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted, original = [], cross_entropy._sum_of_chunks

    def recorded(*args: Any, **options: Any) -> Any:
        wanted.append(args[5])
        return original(*args, **options)

    monkeypatch.setattr(cross_entropy, "_sum_of_chunks", recorded)
    case = Case(torch.float64, bias=True)
    x, weight, bias = case.tensors
    case.chunked(x, weight.detach(), bias.detach()).backward()
    case.chunked(x.detach(), weight, bias.detach()).backward()
    assert x.grad is not None
    assert weight.grad is not None
    assert bias.grad is None
    with torch.no_grad():
        assert case.chunked(x, weight, bias).item() == pytest.approx(case.whole(x, weight, bias).item(), abs=1e-13)
    assert wanted == [(True, False, False), (False, True, False), (False, False, False)]


def test_the_loss_can_be_differentiated_again() -> None:
    case = Case(torch.float64)
    value = case.chunked(*case.tensors)
    first = torch.autograd.grad(value, case.tensors, retain_graph=True)
    assert all(map(torch.equal, first, torch.autograd.grad(value, case.tensors, retain_graph=True)))
    assert all(map(torch.equal, [2 * g for g in first], torch.autograd.grad(2 * value, case.tensors)))


def test_without_autocast_dtypes_must_agree_as_in_a_linear_layer() -> None:
    x, weight = Case(torch.float64).tensors[0], Case(torch.float32).tensors[1]
    case = Case(torch.float64)
    with pytest.raises(RuntimeError, match="same dtype"):
        cross_entropy_by_chunks(x, case.targets, lambda part: F.linear(part, weight), Unembedding(weight))


@pytest.mark.parametrize("columns", [512, 1024])
@pytest.mark.parametrize("all_count", [True, False])
@pytest.mark.parametrize("loss", [PLAIN, LOSSES[-1]])
def test_no_tensor_holds_the_logits_of_all_rows(columns: int, all_count: bool, loss: TokenLoss) -> None:
    """Buffers have the rows of a chunk; everything else is as large as an input."""
    x, weight, targets = torch.randn(100, 4), torch.randn(columns, 4), torch.arange(100)
    with Largest() as largest:
        cross_entropy._sum_of_chunks(x, weight, None, targets, 2.0, (True, True, False), all_count, loss)
    assert largest.elements == 5 * columns


@pytest.mark.parametrize("all_count", [True, False])
@pytest.mark.parametrize(("dtype", "unit"), [(torch.float64, 1e-14), (torch.bfloat16, 8 * 2**-9)])
@pytest.mark.parametrize("loss", [PLAIN, LOSSES[-1]])
def test_both_treatments_of_rows_without_a_target_agree(
    all_count: bool, dtype: torch.dtype, unit: float, loss: TokenLoss
) -> None:
    """On a GPU such rows are multiplied by 0, since counting them would force a device sync."""
    case = Case(torch.float64, True, 3.0, SOME, loss=loss)
    x, weight, bias = (t.detach().to(dtype) for t in case.tensors)
    rows = case.targets >= 0
    given, targets = (x[rows], case.targets[rows]) if all_count else (x, case.targets)
    found = cross_entropy._sum_of_chunks(given * 0.5, weight, bias, targets, 3.0, (True, True, True), all_count, loss)
    total, dx, *others = case.results(case.whole)
    for got, want in zip(found, [total * 0.3, (dx[rows] if all_count else dx) / 0.5, *others], strict=True):
        scaled = got.double() * 0.3
        torch.testing.assert_close(scaled, want, rtol=0, atol=unit * want.abs().max().item())


@pytest.mark.parametrize(
    ("rows", "columns", "width", "recomputed", "pays"),
    [
        (2048, 2**15, 512, False, True),
        (512, 2**15, 512, False, False),  # few logits
        (2048, 2**17, 4096, False, False),  # the matrix is larger
        (2048, 2**15, 512, True, False),  # computing again takes time
        (2**14, 2**15, 512, True, True),
    ],
)
def test_chunks_are_used_where_they_pay(rows: int, columns: int, width: int, recomputed: bool, pays: bool) -> None:
    assert chunks_pay(rows, columns, width, torch.device("cpu"), recomputed) is pays


@pytest.mark.parametrize("loss", LOSSES)
def test_the_loss_of_each_row_is_weighted_freely(loss: TokenLoss) -> None:
    """Each row has its own gradient, which backward computes with the logits of its chunk alone."""
    case, weights = Case(torch.float64, True, 3.0, SOME), torch.linspace(0.5, 2, 17, dtype=torch.float64)
    each = replace(loss, reduction="none")

    def weighted(x: Tensor, *others: Tensor) -> Tensor:
        return cross_entropy_by_chunks(x, case.targets, lambda part: case.logits(part, *others), None, each) @ weights

    def whole(x: Tensor, *others: Tensor) -> Tensor:
        return each.of_logits(case.logits(x, *others), case.targets) @ weights

    for got, want in zip(case.results(weighted), case.results(whole), strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=1e-13)
    with torch.no_grad():
        assert weighted(*case.tensors).item() == pytest.approx(whole(*case.tensors).item(), abs=1e-13)
