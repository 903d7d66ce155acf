"""The kernel for few rows: products against float64, what it refuses, and which products of a graph it replaces.

B rows of the input, K inputs, N outputs.
"""

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._inductor.decomposition import select_decomp_table
from torch.fx.experimental.proxy_tensor import make_fx

from tests.support.quantized import product_bound
from x_positional.attention.integers import quantize_rows
from x_positional.generation.step import products
from x_positional.generation.step.compiled import cpp_compilers
from x_positional.generation.step.products import MAX_ROWS, FewRows, build, few_rows
from x_positional.modules.quantized import int8_linear

pytestmark = pytest.mark.skipif(not cpp_compilers(), reason="no C++ compiler")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.int8]
SHAPES = [(1, 1), (7, 33), (16, 64), (70, 515)]
KERNEL = torch.ops.x_positional.few_rows.default
Case = tuple[Tensor, Tensor]


def cases(dtype: torch.dtype) -> list[Case]:
    """Inputs [B K], one of them transposed, one of a row of a wider tensor; matrices [N K], one of them a slice."""
    generator = torch.Generator().manual_seed(0)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    found: list[Case] = []
    for height, columns in SHAPES:
        w = (randn(height, columns + 3) * 40).to(dtype)
        for rows in (1, 2, 3, 8, 15, MAX_ROWS):
            found.append((randn(rows, columns), w[:, :columns].contiguous()))
        found += [(randn(columns, 5).t(), w[:, 3:]), (randn(4, 2, columns)[:, 1], w[:, 3:])]
    return found


def within_bound(product: Callable[[Tensor, Tensor], Tensor], case: Case) -> bool:
    x, w = case
    got, want = product(x, w), x.double() @ w.double().t()
    bound = product_bound(x, w.double(), torch.zeros(w.shape[0]))
    return got.dtype == torch.float32 and got.is_contiguous() and bool(((got.double() - want).abs() <= bound).all())


@pytest.mark.parametrize("dtype", DTYPES)
def test_products_equal_those_in_float64(dtype: torch.dtype) -> None:
    assert build()
    assert [(x.shape, w.shape) for x, w in cases(dtype) if not within_bound(few_rows, (x, w))] == []


def test_threads_share_the_rows_of_the_matrix() -> None:
    assert build()
    x, w = cases(torch.int8)[-3]
    want = KERNEL(x, w, 1)
    for threads in (2, 3, 64):
        assert torch.equal(KERNEL(x, w, threads), want)


def without_the_rest(x: Tensor, w: Tensor) -> Tensor:
    """Leaves out the columns that fill no register."""
    whole = w.shape[1] // 16 * 16
    return few_rows(x[:, :whole], w[:, :whole])


def with_columns_of_a_contiguous_matrix(x: Tensor, w: Tensor) -> Tensor:
    """Ignores the distance of rows in memory."""
    return few_rows(x, torch.as_strided(w, w.shape, (w.shape[1], 1)))


def summed_in_half(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x.bfloat16(), w.bfloat16()).float()


@pytest.mark.parametrize("broken", [without_the_rest, with_columns_of_a_contiguous_matrix, summed_in_half])
def test_a_wrong_product_is_found(broken: Callable[[Tensor, Tensor], Tensor]) -> None:
    assert build()
    assert not all(within_bound(broken, case) for case in cases(torch.int8))


@pytest.mark.parametrize(
    ("x", "w"),
    [
        (torch.randn(2, 8).double(), torch.randn(4, 8)),
        (torch.randn(2, 8), torch.randn(4, 9)),
        (torch.randn(2, 8), torch.randn(8, 4).t()),
        (torch.randn(2, 8), torch.randn(4, 8).double()),
        (torch.randn(8), torch.randn(4, 8)),
    ],
)
def test_what_it_cannot_multiply_is_refused(x: Tensor, w: Tensor) -> None:
    assert build()
    with pytest.raises((ValueError, RuntimeError), match="few_rows"):
        few_rows(x, w)


def rewritten(function: Callable[..., Tensor], *inputs: Any) -> tuple[int, Tensor]:
    """How many kernels are in the graph of a function, and what the graph computes."""
    with torch.no_grad():
        traced = make_fx(function, decomposition_table=select_decomp_table(), tracing_mode="fake")(*inputs)
    FewRows()(traced.graph)
    traced.recompile()
    return sum(node.target is KERNEL for node in traced.graph.nodes), traced(*inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 1, 33), (8, 1, 33), (3, 33)])
def test_linear_layers_use_it(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert build()
    x, w, bias = torch.randn(shape).to(dtype), torch.randn(12, 33).to(dtype), torch.randn(12).to(dtype)
    for inputs in ((x, w), (x, w, bias)):
        kernels, got = rewritten(F.linear, *inputs)
        assert kernels == 1
        torch.testing.assert_close(got, F.linear(*inputs))


def with_a_computed_matrix(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w * 2)


def test_other_products_stay() -> None:
    w = torch.randn(12, 33)
    assert rewritten(F.linear, torch.randn(MAX_ROWS + 1, 33), w)[0] == 0
    assert rewritten(F.linear, torch.randn(1, 33), w)[0] == 0, "torch's product of one row in float32 is faster"
    assert rewritten(F.linear, torch.randn(1, 33).bfloat16(), w.bfloat16())[0] == 1
    assert rewritten(F.linear, torch.randn(2, 33).double(), w.double())[0] == 0
    assert rewritten(with_a_computed_matrix, torch.randn(2, 33), w)[0] == 0
    assert rewritten(torch.mm, torch.randn(2, 12), w)[0] == 0, "its rows are not contiguous"


def test_int8_products_use_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums over products as well as products with the dequantized matrix."""
    assert build()
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    weight, scale = quantize_rows(torch.randn(12, 33))
    for rows in (1, 8, MAX_ROWS):
        x = torch.randn(rows, 1, 33)
        kernels, got = rewritten(int8_linear, x, weight, scale, None)
        assert kernels == 1
        torch.testing.assert_close(got, int8_linear(x, weight, scale))


def test_without_a_kernel_there_is_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fails(*args: Any) -> None:
        raise OSError("error: no such header")

    monkeypatch.setattr(products.CppCodeCache, "load", fails)
    with caplog.at_level(logging.WARNING):
        assert not build.__wrapped__()
    assert (
        "products.cpp does not compile, so decoding uses torch's slower products: error: no such header" in caplog.text
    )
