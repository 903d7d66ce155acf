"""A module in eval mode, without switching a module that others may be using."""

import dataclasses
import sys
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import nn

from x_positional.errors import InputError

M = TypeVar("M")


def in_eval_mode(module: M) -> M:
    """The module itself if all of it is in eval mode, otherwise a twin that is.

    A twin shares parameters, buffers and hooks with the original, and has its own modules, so that neither another thread nor
    an overlapping stream sees a change of mode. It runs eagerly: a compiled module is used only if it is in eval mode already.

    Raises:
        InputError: part of it is in training mode, and a module's `forward` was replaced by a function.
    """
    if not isinstance(module, nn.Module) or not any(part.training for part in module.modules()):
        return module
    return _twin(module, {})


def _twin(module: nn.Module, known: dict[int, nn.Module]) -> Any:
    """known: the twins so far, by the original's id."""
    if id(module) in known:
        return known[id(module)]
    if _compiled(module):
        return _twin(vars(module)["_modules"]["_orig_mod"], known)
    forward = module.__dict__.get("forward")  # one of its own, as accelerate gives it
    if isinstance(module, torch.jit.ScriptModule) or not isinstance(forward, MethodType | None):
        raise InputError(
            f"the model is in training mode, and the forward of a {type(module).__name__} in it was replaced or scripted, so it "
            "cannot run in eval mode without a switch that other threads would see. Call model.eval() before generating."
        )
    twin = known[id(module)] = object.__new__(type(module))
    state = dict(module.__dict__)
    state.pop("_compiled_call_impl", None)
    own = {name: _with_twins(value, known) for name, value in state.items() if name not in _MODULE_STATE}
    children = {name: None if child is None else _twin(child, known) for name, child in state["_modules"].items()}
    twin.__dict__.update(state, **own, training=False, _modules=children)
    return twin


def _with_twins(value: Any, known: dict[int, nn.Module]) -> Any:
    """An attribute with twins in place of the modules in it; the same object where there are none."""
    if isinstance(value, nn.Module):
        return _twin(value, known)
    if isinstance(value, MethodType) and isinstance(value.__self__, nn.Module):
        return MethodType(value.__func__, _twin(value.__self__, known))
    if type(value) is list or type(value) is tuple:
        parts = [_with_twins(part, known) for part in value]
        return type(value)(parts) if any(a is not b for a, b in zip(parts, value, strict=True)) else value
    if type(value) is dict:
        entries = {key: _with_twins(part, known) for key, part in value.items()}
        return entries if any(entries[key] is not part for key, part in value.items()) else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {field.name: getattr(value, field.name) for field in dataclasses.fields(value) if field.init}
        changed = {name: _with_twins(part, known) for name, part in fields.items()}
        return dataclasses.replace(value, **changed) if any(changed[n] is not p for n, p in fields.items()) else value
    return value


def _compiled(module: nn.Module) -> bool:
    """Whether it came from torch.compile(module)."""
    return "torch._dynamo" in sys.modules and isinstance(module, torch._dynamo.OptimizedModule)


_MODULE_STATE = frozenset(vars(nn.Module()))
"""Attributes that torch itself keeps in a module."""
