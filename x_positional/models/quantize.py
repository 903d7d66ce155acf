"""`quantize`: the matrices of a built model to 8-bit integers."""

from collections.abc import Callable, Iterable
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import Tensor, nn

from x_positional.errors import ArgumentError, PretrainedError, did_you_mean, listed, shown
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
    found = _matrices(model)
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
    for _, module in _matrices(model):
        _replace(model, module)
    _mark(model)


class QuantizeLoaded:
    """Quantizes a model on the meta device while its parameters are read, so that one matrix at a time is in floats.

    Args:
        model: without values yet.
        quantization: None does nothing.
    """

    def __init__(self, model: nn.Module, quantization: Quantization | None):
        self.model = model
        self.waiting = {} if quantization is None else {id(module): name for name, module in _matrices(model)}
        if quantization is not None:
            _mark(model)

    def __call__(self, parameter: str) -> None:
        """Call after a parameter got its value. Raises PretrainedError for weights that cannot be quantized."""
        module = self.model.get_submodule(parameter.rpartition(".")[0])
        if id(module) not in self.waiting or any(weight.is_meta for weight in _weights(module) or ()):
            return
        if problems := _module_problems(self.waiting.pop(id(module)), module):
            raise PretrainedError("this model cannot be quantized:", problems)
        _replace(self.model, module)


def _replace(model: nn.Module, old: nn.Module) -> None:
    """Put a quantized module wherever a model holds `old`."""
    kinds: list[tuple[type[Any], Callable[[Any], nn.Module]]]
    kinds = [(Experts, Int8Experts), (nn.Linear, Int8Linear), (nn.Embedding, Int8Embedding)]
    new = next(make(old) for kind, make in kinds if isinstance(old, kind))
    for parent in list(model.modules()):
        for child, held in list(parent._modules.items()):
            if held is old:
                setattr(parent, child, new)


def _mark(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, Quantizable):
            module.quantized = "int8"


def _matrices(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """The modules to replace, by name."""
    found = []
    tied = {id(table) for m in model.modules() if isinstance(m, Quantizable) for table in m.logit_tables()}
    todo: list[tuple[str, nn.Module]] = [("", model)]
    seen: set[int] = set()
    while todo:
        name, module = todo.pop()
        if id(module) in seen or isinstance(module, PositionScheme):
            continue
        seen.add(id(module))
        if isinstance(module, nn.Linear | Experts) or id(module) in tied:
            found.append((name, module))
        todo += [(f"{name}.{child}".lstrip("."), held) for child, held in module.named_children()]
    return found


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


def _weights(module: nn.Module) -> list[Tensor] | None:
    """The matrices of a module; None if it is modified."""
    if not isinstance(module, Experts):
        weight = plain_weight(module)
        return None if weight is None else [weight]
    modified = type(module) is not Experts or bool(module._forward_hooks or module._forward_pre_hooks)
    return None if modified else [module.up, module.down]


def _module_problems(name: str, module: nn.Module) -> list[str]:
    """Why a module cannot be replaced."""
    weights = _weights(module)
    if weights is None:
        return [
            f"{name} is a modified {type(module).__name__}. Merge adapters, remove hooks and parametrizations first."
        ]
    for weight in weights:
        if weight.dtype not in FLOATS:
            return [f"{name} has dtype {weight.dtype}. Use one of {', '.join(map(str, FLOATS))}."]
        if not weight.is_meta and not torch.isfinite(weight).all():
            return [f"{name} has weights that are not finite."]
    return []
