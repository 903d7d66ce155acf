"""What the attributes of a living module say, where nothing may stay that is not understood."""

from collections.abc import Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import nn

from x_positional.config.flags.reader import asks, same
from x_positional.config.flags.table import PLACES
from x_positional.pretrained.x_transformers.module_specs import KNOWN, PLAIN

OWN = frozenset(vars(nn.Module()))
"""What every module has."""
Members = Mapping[str, Any]


def class_of(value: Any) -> str:
    """`x_transformers.Decoder`: the package and the name of a class."""
    kind = type(value)
    return f"{kind.__module__.split('.')[0]}.{kind.__qualname__}"


def members(module: nn.Module) -> dict[str, Any]:
    """Everything that was put into a module: values, modules, parameters, buffers."""
    own = {name: value for name, value in vars(module).items() if name not in OWN}
    return {**own, **module._modules, **module._parameters, **module._buffers}


def name_of(function: Any) -> str:
    """The name of a function, under the arguments that are bound to it."""
    while isinstance(function, partial):
        function = function.func
    return function.__name__ if isinstance(function, FunctionType | BuiltinFunctionType) else ""


class Reader:
    """Reads modules by what is known of their classes. problems: what is not understood."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def strange(self, path: str, what: str) -> None:
        """Note what is not understood."""
        self.problems.append(f"{path or 'the model'} {what}.")

    def expect(self, right: bool, path: str, what: str) -> None:
        """Note it unless it is right."""
        if not right:
            self.strange(path, what)

    def members(self, module: nn.Module, path: str) -> Members:
        """The attributes of a module of a known class; {} where they are not what the class has."""
        name = class_of(module)
        known = KNOWN.get(name)
        if known is None:
            self.strange(path, f"is a {name}, which is not understood")
            return {}
        if module._forward_hooks or module._forward_pre_hooks:
            self.strange(path, "has hooks, which may change what it computes")
        held = members(module)
        unknown, missing = held.keys() - known.all, (known.all - known.some) - held.keys()
        if unknown:
            self.strange(path, f"({name}) has {', '.join(sorted(unknown))}, which is not understood")
        if missing:
            self.strange(path, f"({name}) has no {', '.join(sorted(missing))}, so it is not of x-transformers 2.31")
            return {}
        for attribute in known.rest:
            value = held[attribute]
            if (
                isinstance(value, nn.Module)
                and class_of(value) not in PLAIN
                and not any(True for _ in value.parameters())
            ):
                self.strange(f"{path}.{attribute}", f"is a {class_of(value)}, which is not understood")
        return held

    def said(self, module: nn.Module, held: Members, prefix: str = "") -> dict[str, Any]:
        """The flags that the attributes of a module say."""
        known = KNOWN[class_of(module)]
        told = {prefix + flag: held[attribute] for attribute, flag in known.says.items()}
        told |= {prefix + flag: True for attribute, flag in known.there.items() if held[attribute] is not None}
        return told

    def is_a(self, value: Any, path: str, *names: str) -> bool:
        """Whether a value is of one of these classes; noted where it is not."""
        right = class_of(value) in names
        self.expect(right, path, f"is a {class_of(value)} where {' or '.join(names)} is understood")
        return right

    def dropout(self, value: Any, path: str) -> float:
        """The share that a Dropout drops."""
        return float(value.p) if self.is_a(value, path, "torch.Dropout") else 0.0


def without_defaults(flags: Mapping[str, Any], *places: str) -> dict[str, Any]:
    """Without what says what the default of x-transformers says."""
    table = {name: flag for place in places for name, flag in PLACES[place].items()}
    return {name: value for name, value in flags.items() if name not in table or _differs(value, table[name])}


def _differs(value: Any, flag: Any) -> bool:
    return asks(value, flag.default) if flag.verdict == "refused" else not same(value, flag.default)
