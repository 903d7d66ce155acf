"""Reads the attributes of x-transformers' modules into flags, and reports every attribute that is not in `module_specs`."""

from collections.abc import Mapping
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

from torch import nn

from x_positional.config.flags.reader import asks, same
from x_positional.config.flags.table import PLACES
from x_positional.pretrained.x_transformers.module_specs import MODULE_SPECS, PLAIN

BASE_ATTRIBUTES = frozenset(vars(nn.Module()))
"""Attributes of every nn.Module."""
Attributes = Mapping[str, Any]


def class_of(value: Any) -> str:
    """`x_transformers.Decoder`: top-level package and class name."""
    kind = type(value)
    return f"{kind.__module__.split('.')[0]}.{kind.__qualname__}"


def _attributes_of(module: nn.Module) -> dict[str, Any]:
    """Everything that was assigned to a module: values, modules, parameters, buffers."""
    own = {name: value for name, value in vars(module).items() if name not in BASE_ATTRIBUTES}
    return {**own, **module._modules, **module._parameters, **module._buffers}


def name_of(function: Any) -> str:
    """The name of a function, also of one inside `functools.partial`; "" for any other callable."""
    while isinstance(function, partial):
        function = function.func
    return function.__name__ if isinstance(function, FunctionType | BuiltinFunctionType) else ""


class ModuleReader:
    """Reads modules by their `ModuleSpec` and collects everything unsupported in `problems`."""

    def __init__(self) -> None:
        self.problems: list[str] = []

    def unsupported(self, path: str, what: str) -> None:
        """Add a problem: the path of the module, then `what`."""
        self.problems.append(f"{path or 'the model'} {what}.")

    def expect(self, condition: bool, path: str, what: str) -> None:
        """Add a problem unless `condition` holds."""
        if not condition:
            self.unsupported(path, what)

    def attributes(self, module: nn.Module, path: str) -> Attributes:
        """The attributes of a module; {} if its class is unsupported or an attribute is missing."""
        name = class_of(module)
        spec = MODULE_SPECS.get(name)
        if spec is None:
            self.unsupported(path, f"is a {name}, which is unsupported")
            return {}
        if module._forward_hooks or module._forward_pre_hooks:
            self.unsupported(path, "has hooks, which may change its output")
        attrs = _attributes_of(module)
        unknown, missing = attrs.keys() - spec.all, (spec.all - spec.optional) - attrs.keys()
        if unknown:
            self.unsupported(path, f"({name}) has unknown attributes: {', '.join(sorted(unknown))}")
        if missing:
            self.unsupported(
                path, f"({name}) has no {', '.join(sorted(missing))}, so it is not from x-transformers 2.31"
            )
            return {}
        for attribute in spec.implied:
            value = attrs[attribute]
            if (
                isinstance(value, nn.Module)
                and class_of(value) not in PLAIN
                and not any(True for _ in value.parameters())
            ):
                self.unsupported(f"{path}.{attribute}", f"is a {class_of(value)}, which is unsupported")
        return attrs

    def flags(self, module: nn.Module, attrs: Attributes, prefix: str = "") -> dict[str, Any]:
        """The flags that the `values` and `switches` of a module's spec reveal."""
        spec = MODULE_SPECS[class_of(module)]
        flags = {prefix + flag: attrs[attribute] for attribute, flag in spec.values.items()}
        flags |= {prefix + flag: True for attribute, flag in spec.switches.items() if attrs[attribute] is not None}
        return flags

    def is_instance(self, value: Any, path: str, *names: str) -> bool:
        """Whether a value is of one of these classes; adds a problem if not."""
        right = class_of(value) in names
        self.expect(right, path, f"is a {class_of(value)}; only {' or '.join(names)} is supported there")
        return right

    def dropout(self, value: Any, path: str) -> float:
        """The probability of a Dropout module; 0 and a problem for any other class."""
        return float(value.p) if self.is_instance(value, path, "torch.Dropout") else 0.0


def without_defaults(flags: Mapping[str, Any], *places: str) -> dict[str, Any]:
    """The flags whose values differ from x-transformers' defaults.

    places: entries of `config.flags.table.PLACES` that list the flags.
    """
    table = {name: flag for place in places for name, flag in PLACES[place].items()}
    return {name: value for name, value in flags.items() if name not in table or _differs(value, table[name])}


def _differs(value: Any, flag: Any) -> bool:
    return asks(value, flag.default) if flag.verdict == "refused" else not same(value, flag.default)
