"""What a quantized model must compute, and ways to quantize wrongly."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.support.wrapped_layers import replace_all
from x_positional.attention.integers import STEPS, dequantize_rows
from x_positional.modules.experts import Experts, Int8Experts
from x_positional.modules.quantized import Int8Embedding, Int8Linear
from x_positional.testing.expect import SAFETY


def floats_of(model: nn.Module) -> nn.Module:
    """A float64 copy of a quantized model with plain layers, which hold the matrices that its integers stand for."""
    exact = copy.deepcopy(model).double()

    def plain(layer: nn.Module) -> nn.Module:
        if isinstance(layer, Int8Linear):
            new = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
            new.weight, new.bias = nn.Parameter(layer.matrix()), layer.bias
            return new
        if isinstance(layer, Int8Embedding):
            return nn.Embedding.from_pretrained(dequantize_rows(layer.weight, layer.scale))
        return layer

    replace_all(exact, plain)
    stacked: list[Any] = [module for module in exact.modules() if isinstance(module, Int8Experts)]
    for module in stacked:
        up, down = dequantize_rows(module.up, module.up_scale), dequantize_rows(module.down, module.down_scale)
        module.__class__, module.up_scale, module.down_scale = Experts, None, None
        module.up, module.down = nn.Parameter(up), nn.Parameter(down)
    return exact


def product_bound(x: Tensor, matrix: Tensor, bias: Tensor) -> Tensor:
    """[R N] How far x @ matrix.mT + bias may be from the exact result, for x [R K] and the float64 matrix [N K].

    With u the unit roundoff of the dtype: the product, its scale, and the sum with the bias are rounded once each. The K
    additions of the product, in float32 or wider, add up to sqrt(K) u' times the sum of the sizes of its terms, which is
    more than any partial sum. float16 also rounds what is below its smallest normal number to multiples of 2^-24.
    """
    terms = x.double().abs() @ matrix.abs().mT
    info, wide = torch.finfo(x.dtype), torch.finfo(torch.promote_types(x.dtype, torch.float32))
    additions = SAFETY * wide.eps * matrix.shape[1] ** 0.5 * terms
    return additions + 3 * info.eps * (terms + bias.double().abs()) + 3 * info.smallest_normal * info.eps


def truncated(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Rounds towards zero."""
    scale = weight.abs().amax(-1) / STEPS
    return (weight / scale[..., None]).trunc().to(torch.int8), scale


def by_columns(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Scales of columns, used as those of rows of a square matrix."""
    scale = weight.abs().amax(-2) / STEPS
    return (weight / scale[..., None, :]).round().to(torch.int8), scale


def wide_steps(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Scales for 8 bits without a sign: large entries wrap around."""
    scale = weight.abs().amax(-1) / 255
    return (weight / scale[..., None]).round().to(torch.int16).to(torch.int8), scale


def narrow_scales(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Scales that were rounded to bfloat16 after the division."""
    scale = weight.abs().amax(-1) / STEPS
    return (weight / scale[..., None]).round().to(torch.int8), scale.bfloat16().to(weight.dtype)


BROKEN: list[Callable[[Tensor], tuple[Tensor, Tensor]]] = [truncated, by_columns, wide_steps, narrow_scales]
