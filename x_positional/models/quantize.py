"""`quantize`: the matrices of a built model to 8-bit integers."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from x_positional.errors import ArgumentError, did_you_mean, listed, shown
from x_positional.modules.experts import Experts, Int8Experts
from x_positional.modules.plain import plain_weight
from x_positional.modules.quantized import Int8Embedding, Int8Linear
from x_positional.schemes.base import PositionScheme

Quantization = Literal["int8"]
QUANTIZED = (Int8Linear, Int8Embedding, Int8Experts)
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

Model = TypeVar("Model", bound=nn.Module)


class Quantizable(nn.Module):
    """A model that knows how its matrices are stored."""

    quantized: Quantization | None = None
    """What `quantize` made of its matrices; None if they are floats."""

    def logit_tables(self) -> Iterable[nn.Module]:
        """Embeddings that are also the matrix of the logits, which is read for every token."""
        return ()


def quantize(model: Model, quantization: Quantization = "int8") -> Model:
    """Replace the matrices of a model by int8 ones with a scale per row, in place: a quarter of the bytes of float32.

    Replaced are all linear layers, the stacked weights of experts, and a token embedding that is also the matrix of the
    logits. Other embeddings, convolutions, routers, norms, biases and position schemes stay: a token reads little of them. Each
    entry moves by at most half the scale of its row, which is its largest entry / 127.

    Quantized weights are frozen. Gradients of activations flow, so adapters can be trained on top. Caches that were filled
    before are stale.

    Args:
        model: any model or stack, in eval mode.
        quantization: "int8", weights only: activations and the cache stay in the dtype of the model.

    Returns:
        The same model.

    Raises:
        ArgumentError: if the name is unknown, or the model is in training mode, already quantized, has no matrices, or has
            some that cannot be replaced: wrapped by adapters, hooked, parametrized, not finite, of another dtype. The model is
            unchanged then.
    """
    check_quantization(quantization)
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"quantize needs a model; got {type(model).__name__}.")
    found = list(_matrices(model))
    if problems := _problems(model, found):
        raise ArgumentError(listed("this model cannot be quantized:", problems))
    replace_matrices(model)
    return model


def check_quantization(name: Any) -> None:
    """Raises ArgumentError for an unknown name, with the closest one."""
    if name not in get_args(Quantization):
        hint = did_you_mean(name, get_args(Quantization)) if isinstance(name, str) else "use 'int8'."
        raise ArgumentError(f"unknown quantize={shown(name)}; {hint}")


def replace_matrices(model: nn.Module) -> None:
    """Put quantized modules in place of those that hold matrices, one at a time, so that there is no second copy."""
    for name, _ in list(_matrices(model)):
        old = model.get_submodule(name)
        new = _replacement(old)
        for parent in list(model.modules()):
            for child, held in list(parent._modules.items()):
                if held is old:
                    setattr(parent, child, new)
    for module in model.modules():
        if isinstance(module, Quantizable):
            module.quantized = "int8"


def _replacement(module: nn.Module) -> nn.Module:
    kinds: list[tuple[type[Any], Callable[[Any], nn.Module]]]
    kinds = [(Experts, Int8Experts), (nn.Linear, Int8Linear), (nn.Embedding, Int8Embedding)]
    return next(make(module) for kind, make in kinds if isinstance(module, kind))


def _matrices(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules to replace, by name."""
    tied = {id(table) for m in model.modules() if isinstance(m, Quantizable) for table in m.logit_tables()}
    todo: list[tuple[str, nn.Module]] = [("", model)]
    seen: set[int] = set()
    while todo:
        name, module = todo.pop()
        if id(module) in seen or isinstance(module, PositionScheme):
            continue
        seen.add(id(module))
        if isinstance(module, nn.Linear | Experts) or id(module) in tied:
            yield name, module
        todo += [(f"{name}.{child}".lstrip("."), held) for child, held in module.named_children()]


def _problems(model: nn.Module, found: list[tuple[str, nn.Module]]) -> list[str]:
    problems = []
    if any(isinstance(module, QUANTIZED) for module in model.modules()):
        return ["it is already quantized."]
    if model.training:
        problems.append("it is in training mode, and int8 weights cannot be trained. Call model.eval() first.")
    if not found:
        problems.append("it has no matrices.")
    for name, module in found:
        problems += _module_problems(name, module)
    return problems


def _module_problems(name: str, module: nn.Module) -> list[str]:
    """Why a module cannot be replaced."""
    if isinstance(module, Experts):
        weights = [module.up, module.down]
        modified = type(module) is not Experts or bool(module._forward_hooks or module._forward_pre_hooks)
    else:
        weight = plain_weight(module)
        weights, modified = [] if weight is None else [weight], weight is None
    if modified:
        return [
            f"{name} is a modified {type(module).__name__}. Merge adapters, remove hooks and parametrizations first."
        ]
    for weight in weights:
        if weight.dtype not in FLOATS:
            return [f"{name} has dtype {weight.dtype}. Use one of {', '.join(map(str, FLOATS))}."]
        if not weight.is_meta and not torch.isfinite(weight).all():
            return [f"{name} has weights that are not finite."]
    return []
