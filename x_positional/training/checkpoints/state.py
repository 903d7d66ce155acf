"""Model and optimizer state as named tensors, and back."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from x_positional.errors import ArgumentError, UserError, listed
from x_positional.pretrained.adapters import adapter_parameters

_ADAMW_STATE = ("exp_avg", "exp_avg_sq", "step")
MAX_SHOWN = 8
"""Problems that a message lists; the rest are counted."""


def model_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with each shared tensor (tied embeddings) once, under its first name; of a model with adapters, theirs.

    Raises:
        ArgumentError: The model has buffers.
    """
    named = saved_parameters(model)
    state = model.state_dict(keep_vars=True)
    buffers = sorted(name for name, tensor in state.items() if not isinstance(tensor, nn.Parameter))
    if buffers:
        raise ArgumentError(f"checkpoints contain only parameters, but the model has buffers: {buffers}")
    return {name: parameter.detach().contiguous().cpu() for name, parameter in named.items()}


def load_model(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy `tensors` into the parameters of `model`.

    Raises:
        UserError: Names, shapes or dtypes do not match; the message lists every mismatch. The model is unchanged.
    """
    check_model(model, {name: (tensor.shape, tensor.dtype) for name, tensor in tensors.items()}, source)
    for name, parameter in saved_parameters(model).items():
        parameter.data.copy_(tensors[name])


def saved_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What a checkpoint holds: the adapters of a model that has some, since the rest never changes; otherwise all parameters."""
    return adapter_parameters(model) or dict(model.named_parameters())


def check_model(model: nn.Module, stored: Mapping[str, tuple[Sequence[int], torch.dtype]], source: Path) -> None:
    """Raise `UserError`, with every mismatch, unless `stored` are the shapes and dtypes of what is saved of `model`."""
    own = dict(saved_parameters(model))
    problems = [f"missing tensor {name}" for name in own if name not in stored]
    problems += [f"unexpected tensor {name}" for name in stored if name not in own]
    for name in own.keys() & stored.keys():
        shape, dtype = stored[name]
        if list(own[name].shape) != list(shape):
            problems.append(f"{name} has shape {list(shape)}; the model needs {list(own[name].shape)}")
        elif own[name].dtype != dtype:
            problems.append(f"{name} has dtype {dtype}; the model needs {own[name].dtype}")
    _raise_if_any(f"the weights in {source} do not match this model:", problems)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Both AdamW moments and the step count of every trainable parameter, keyed by `parameter/moment`."""
    tensors = {}
    for name, parameter in _trainable(model):
        state = optimizer.state[parameter]
        for part in _ADAMW_STATE:
            tensors[f"{name}/{part}"] = state[part].detach().clone().contiguous().cpu()
    return tensors


def load_optimizer(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], source: Path
) -> None:
    """Restore what `optimizer_tensors` returned.

    Raises:
        UserError: The tensors belong to other parameters.
    """
    check_optimizer(model, {name: tensor.shape for name, tensor in tensors.items()}, source)
    for name, parameter in _trainable(model):
        moments = {part: tensors[f"{name}/{part}"] for part in _ADAMW_STATE}
        optimizer.state[parameter] = {
            part: value.to(parameter.device, copy=True) if part == "step" else value.to(parameter, copy=True)
            for part, value in moments.items()
        }


def check_optimizer(model: nn.Module, stored: Mapping[str, Sequence[int]], source: Path) -> None:
    """Raise `UserError`, with every mismatch, unless `stored` are the shapes of AdamW's state for the parameters of `model`."""
    expected = {
        f"{name}/{part}": [] if part == "step" else list(parameter.shape)
        for name, parameter in _trainable(model)
        for part in _ADAMW_STATE
    }
    problems = [f"missing tensor {name}" for name in expected.keys() - stored.keys()]
    problems += [f"unexpected tensor {name}" for name in stored.keys() - expected.keys()]
    for name in expected.keys() & stored.keys():
        if list(stored[name]) != expected[name]:
            problems.append(f"{name} has shape {list(stored[name])}; expected {expected[name]}")
    _raise_if_any(f"the optimizer state in {source} does not match this model:", problems)


def parameters_of(model: nn.Module) -> dict[str, Tensor]:
    """What is saved of a model, by name, each once: the tensors themselves, sharded where the model is."""
    return {name: parameter.detach() for name, parameter in saved_parameters(model).items()}


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer, *, new: bool = False) -> dict[str, Tensor]:
    """The optimizer state by name, as in `optimizer_tensors`: the tensors themselves.

    Args:
        new: Replace the state by one to be read into.
    """
    for _, parameter in _trainable(model) if new else []:
        first, second = torch.zeros_like(parameter.detach()), torch.zeros_like(parameter.detach())
        step = torch.zeros((), dtype=torch.float32, device=parameter.device)
        optimizer.state[parameter] = {"exp_avg": first, "exp_avg_sq": second, "step": step}
    state = optimizer.state
    return {f"{name}/{part}": state[p][part].detach() for name, p in _trainable(model) for part in _ADAMW_STATE}


def _trainable(model: nn.Module) -> list[tuple[str, nn.Parameter]]:
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _raise_if_any(title: str, problems: list[str]) -> None:
    if problems:
        more = [f"and {len(problems) - MAX_SHOWN} more"] if len(problems) > MAX_SHOWN else []
        raise UserError(listed(title, [*sorted(problems)[:MAX_SHOWN], *more]))
