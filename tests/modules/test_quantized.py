"""Int8 matrices: the bound of their rounding, products against float64, gradients of inputs, and what is refused.

R rows of the input, N rows and K columns of a matrix.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

from tests.support.quantized import BROKEN, product_bound
from x_positional.attention.integers import dequantize_rows, quantize_rows
from x_positional.modules import quantized
from x_positional.modules.quantized import CHUNK, Int8Linear, int8_linear

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(5, 33), (7, 64), (96, 48), (3, 1), (CHUNK // 512 + 9, 512)]


def matrix(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Rows of very different sizes, one of them zero."""
    generator = torch.Generator().manual_seed(sum(shape))
    rows = torch.randn(shape, generator=generator) * torch.logspace(-4, 1, shape[-2])[:, None]
    rows[..., shape[-2] // 2, :] = 0.0
    return rows.to(dtype)


def within_half_a_step(weight: Tensor, integers: Tensor, scale: Tensor) -> bool:
    """Whether |w - s q| <= s / 2, but for the rounding of w / s."""
    error = (weight.double() - dequantize_rows(integers, scale.double())).abs()
    slack = torch.finfo(torch.float32).eps * weight.double().abs()
    return bool((error <= scale.double()[..., None] / 2 + slack).all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(16, 16), (3, 8, 5)])
def test_no_entry_moves_by_more_than_half_a_step(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    weight = matrix(*shape, dtype=dtype)
    integers, scale = quantize_rows(weight)
    assert (integers.dtype, scale.dtype, scale.shape) == (torch.int8, dtype, weight.shape[:-1])
    assert within_half_a_step(weight, integers, scale)
    assert integers.min() >= -127


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tiny_rows_of_half_precision(dtype: torch.dtype) -> None:
    """Scales there are subnormal, with an error of up to a half."""
    weight = torch.logspace(-9, -2, 4000).to(dtype)[:, None] * torch.tensor([1.0, -0.49, 0.01]).to(dtype)
    assert within_half_a_step(weight, *quantize_rows(weight))


@pytest.mark.parametrize("broken", BROKEN)
def test_a_wrong_rounding_is_found(broken) -> None:
    weight = matrix(16, 16)
    assert not within_half_a_step(weight, *broken(weight))


def inputs(rows: int, columns: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Contiguous, strided, and at an address that is no multiple of a register."""
    x = torch.randn(rows, columns + 1, generator=torch.Generator().manual_seed(rows)).to(dtype)
    return {
        "plain": x[:, 1:].contiguous(),
        "strided": x[:, 1:],
        "off": x.flatten()[1 : 1 + rows * columns].view(rows, columns),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_products_equal_those_of_the_float_matrix(rows: int, columns: int, dtype: torch.dtype) -> None:
    weight, scale = quantize_rows(matrix(rows, columns, dtype=dtype))
    bias = matrix(rows, 2, dtype=dtype)[:, 0]
    want_matrix = dequantize_rows(weight, scale.double())
    for tokens in (1, 3, 8, 9, 40):
        for x in inputs(tokens, columns, dtype).values():
            want = F.linear(x.double(), want_matrix, bias.double())
            bound = product_bound(x, want_matrix, bias)
            for got in (int8_linear(x, weight, scale, bias), quantized._fused(x, weight, scale) + bias):
                assert got.dtype == dtype
                assert ((got.double() - want).abs() <= bound).all()
    assert int8_linear(x[:0], weight, scale, bias).shape == (0, rows)
    assert int8_linear(x.view(2, 20, columns), weight, scale, bias).shape == (2, 20, rows)


def test_gradients_of_inputs() -> None:
    weight, scale = quantize_rows(matrix(6, 5, dtype=torch.float64))
    x = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: int8_linear(x, weight, scale), (x,), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: int8_linear(x, weight, scale).square(), (x,))


def test_the_backward_pass_keeps_integers() -> None:
    """No matrix in floats outlives the product."""
    layer, kept = Int8Linear(nn.Linear(64, 96)), []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(torch.randn(16, 64, requires_grad=True))
    assert {t.dtype for t in kept if t.numel() >= 96 * 64} == {torch.int8}


@pytest.mark.parametrize("rows", [1, 40])
def test_one_graph_in_training_and_decoding(rows: int) -> None:
    layer = Int8Linear(nn.Linear(32, 48))
    torch._dynamo.reset()
    graphs = CompileCounter()
    compiled = torch.compile(layer, fullgraph=True, backend=graphs)
    for grad in (True, False):
        x = torch.randn(rows, 32, requires_grad=grad)
        torch.testing.assert_close(compiled(x), layer(x))
    assert graphs.frame_count <= 2
    torch._dynamo.reset()


def test_under_autocast() -> None:
    """As a linear layer there: the result has the dtype of autocast."""
    layer = Int8Linear(nn.Linear(32, 48))
    for x in (torch.randn(2, 32), torch.randn(2, 32, requires_grad=True)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16


def test_floats_are_not_loaded_into_integers() -> None:
    plain = nn.Linear(8, 8)
    layer = Int8Linear(plain)
    before = layer.weight.clone()
    for strict in (True, False):
        with pytest.raises(RuntimeError, match=r"weight has dtype torch\.float32, but this model is quantized to int8"):
            layer.load_state_dict(plain.state_dict(), strict=strict)
    assert torch.equal(layer.weight, before)
    other = Int8Linear(nn.Linear(8, 8))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, before)
