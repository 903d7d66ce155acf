"""Weight-only int8: matrices as 8-bit integers with one scale a row, multiplied without a copy in floats where a kernel allows it.

A row w of a matrix is stored as integers q in [-127, 127] and a scale s: q = round(w / s) and s = max |w| / 127, so that
|w - s q| <= s / 2 for every entry. Inputs, products and sums stay in the dtype of the input. Weights and scales are frozen;
gradients of inputs flow, so adapters such as LoRA can be trained on top.

N outputs or rows of a table, K inputs or channels of a table, R input rows, E experts.
"""

import platform
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from x_positional.attention.integers import dequantize_rows, quantize_rows
from x_positional.schemes.precision import wide_dtype

PACKED_ROWS = 8
"""Most input rows for which torch's packed kernel beats a matrix product with the dequantized weight."""
FUSED_ROWS = {("cpu", 2): 2, ("cpu", 4): 8, ("cpu", 8): 8, ("cuda", 2): 1, ("cuda", 4): 1}
"""Most input rows for which a compiled sum over products, which reads the weight as integers, beats a matrix product; by device
and bytes of an input. Measured on CPUs; on CUDA a single row is never worth a matrix product. `generate(compile=True)` replaces
both on a CPU, by the kernel of `generation/step/products.py`."""
CHUNK = 2**18
"""Entries that are dequantized at once on a CPU: in float32 1 MB, which stays in the cache of a core until it is read."""
ALIGNED = 32
"""The packed kernel loads as many bytes of the input at once, from addresses that are multiples of it."""


def int8_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """[... K] -> [... N]: `F.linear` with the matrix of `dequantize_rows`, whose rows are scaled after the product."""
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
    differentiable = x.requires_grad and torch.is_grad_enabled()
    out = _Product.apply(x, weight, scale) if differentiable else _product(x, weight, scale)
    return out if bias is None else out + bias.to(out.dtype)


def _product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """[... K] x [N K] -> [... N], by whichever kernel is fastest for this number of rows."""
    device, rows = x.device.type, x.numel() // weight.shape[1]
    if torch.compiler.is_compiling():
        if rows <= FUSED_ROWS.get((device, x.dtype.itemsize), 0):
            return _fused(x, weight, scale)
    elif rows <= PACKED_ROWS and x.dtype == torch.bfloat16 and device == "cpu" and HAS_PACKED:
        flat = x.reshape(-1, weight.shape[1]).contiguous()
        if weight.shape[1] % 16 == 0 and (flat.data_ptr() | weight.data_ptr()) % ALIGNED == 0:
            out = torch._weight_int8pack_mm(flat, weight, scale.to(x.dtype))  # type: ignore[attr-defined]
            return out.view(*x.shape[:-1], weight.shape[0])
    return _dequantized(x, weight, scale)


def _fused(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """A sum over products, in one loop over the integers once it is compiled."""
    wide = wide_dtype(x.dtype)
    out = (weight.to(wide) * x[..., None, :].to(wide)).sum(-1) * scale.to(wide)
    return out.to(x.dtype)


def _dequantized(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """A matrix product with the integers as floats, which every float dtype holds exactly."""
    unit = _unit(x.dtype)
    if x.device.type == "cpu" and weight.numel() > CHUNK and not torch.compiler.is_compiling():
        parts = weight.split(max(1, CHUNK // weight.shape[1]))
        out = torch.cat([F.linear(x, _floats(part, x.dtype)) for part in parts], dim=-1)
    else:
        out = F.linear(x, _floats(weight, x.dtype))
    return out * (scale * unit).to(out.dtype)


def _unit(dtype: torch.dtype) -> int:
    """What integers are divided by in products. float16 would overflow in sums of integers up to 127."""
    return 128 if dtype == torch.float16 else 1


def _floats(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The integers as multiples of 1 / `_unit`, without rounding."""
    floats, unit = weight.to(dtype), _unit(dtype)
    return floats if unit == 1 else floats / unit


def _has_packed_kernel() -> bool:
    """Whether torch has a vectorised int8 kernel for this processor: of bfloat16 alone, and not in its Windows builds."""
    vectorised = torch.backends.cpu.get_cpu_capability() in ("AVX2", "AVX512")
    return vectorised and platform.system() != "Windows" and "_weight_int8pack_mm" in dir(torch)


HAS_PACKED = _has_packed_kernel()
"""Whether `torch._weight_int8pack_mm` is worth calling."""


class _Product(torch.autograd.Function):
    """`_product` with the gradient of its input. Keeps the integers for the backward pass, not the matrix in floats."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(weight, scale)
        ctx.dtype = x.dtype
        return _product(x, weight, scale)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        weight, scale = ctx.saved_tensors
        grad = grads[0]
        scaled = grad * (scale * _unit(grad.dtype)).to(grad.dtype)
        return (scaled @ _floats(weight, grad.dtype)).to(ctx.dtype), None, None


def frozen(tensor: Tensor) -> nn.Parameter:
    """A parameter without a gradient."""
    return nn.Parameter(tensor, requires_grad=False)


class IntegerWeights(nn.Module):
    """A module with int8 parameters, into which no floats are loaded: copying would truncate them."""

    integers: ClassVar[tuple[str, ...]] = ("weight",)
    """Names of the int8 parameters."""

    def scales(self) -> list[nn.Parameter]:
        """Their scales."""
        names = ["scale" if name == "weight" else f"{name}_scale" for name in self.integers]
        return [self.get_parameter(name) for name in names]

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = [prefix + name for name in self.integers if isinstance(state_dict.get(prefix + name), Tensor)]
        wrong = [name for name in given if state_dict[name].dtype != torch.int8]
        error_msgs += [
            f"{name} has dtype {state_dict[name].dtype}, but this model is quantized to int8. Load these weights into a "
            "model that is not quantized, then quantize it."
            for name in wrong
        ]
        if not wrong:
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
            )


class Int8Linear(IntegerWeights, nn.Linear):
    """`nn.Linear` with an int8 weight [N K] and scales [N].

    A subclass, so that adapters recognize it. Its weight is no float matrix: `plain_weight` gives None.

    Args:
        layer: what it replaces. It shares the bias.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__(layer.in_features, layer.out_features, bias=False, device="meta")
        weight, scale = quantize_rows(layer.weight)
        self.weight, self.scale, self.bias = frozen(weight), frozen(scale), layer.bias
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        return int8_linear(input, self.weight, self.scale, self.bias)

    def matrix(self) -> Tensor:
        """[N K] in the dtype of the scales."""
        return dequantize_rows(self.weight, self.scale)


class Int8Embedding(IntegerWeights, nn.Embedding):
    """`nn.Embedding` with an int8 table [N K] and scales [N], for a table that is also the matrix of the logits.

    Args:
        layer: what it replaces.
    """

    def __init__(self, layer: nn.Embedding):
        super().__init__(layer.num_embeddings, layer.embedding_dim, device="meta")
        weight, scale = quantize_rows(layer.weight)
        self.weight, self.scale = frozen(weight), frozen(scale)
        self.train(layer.training)

    def forward(self, input: Tensor) -> Tensor:
        return dequantize_rows(F.embedding(input, self.weight), self.scale[input])

    def unembed(self, x: Tensor) -> Tensor:
        """[... K] -> the products with every row [... N]."""
        return int8_linear(x, self.weight, self.scale)
