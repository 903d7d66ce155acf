"""Methods whose parameters are the fields of a class of options."""

import functools
import inspect
import re
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Model = TypeVar("Model")
Options = TypeVar("Options")
Result = TypeVar("Result")


def parameters_of(
    options: Callable[Parameters, Options],
) -> Callable[[Callable[[Model, Options], Result]], Callable[Concatenate[Model, Parameters], Result]]:
    """Make a method `(self, options)` take the fields of `options` as its parameters.

    `model.stream(prompts, 20, seed=1)` then runs the method with `DecodeOptions(prompts, 20, seed=1)`. Every parameter
    keeps its name, default and position, for type checkers, editors, `inspect.signature` and `help`; it is declared,
    checked and described in the class alone.
    """
    fields = list(inspect.signature(options).parameters.values())
    descriptions = _descriptions(options, {parameter.name for parameter in fields})

    def decorate(method: Callable[[Model, Options], Result]) -> Callable[Concatenate[Model, Parameters], Result]:
        @functools.wraps(method)
        def call(self: Model, /, *args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
            try:
                inspect.signature(call).bind(self, *args, **kwargs)
            except TypeError as error:  # else it would name the constructor of the options
                raise TypeError(f"{method.__qualname__}: {error}") from None
            return method(self, options(*args, **kwargs))

        own = inspect.signature(method)
        first = next(iter(own.parameters.values()))
        call.__signature__ = own.replace(parameters=[first, *fields])  # type: ignore[attr-defined]
        call.__doc__ = f"{inspect.getdoc(method)}{descriptions}"
        return call

    return decorate


def _descriptions(options: Any, names: set[str]) -> str:
    """The `Args:` of a class of options and its bases, those of `names` alone; empty where it describes none."""
    lines: list[str] = []
    for cls in inspect.getmro(options):
        described = inspect.cleandoc(cls.__doc__ or "").partition("\n\nArgs:\n")[2]
        for entry in re.split(r"\n(?=    \w)", described) if described else []:
            lines += [entry] if entry.split(":")[0].strip() in names else []
    return "\n".join(["\n\nArgs:", *lines]) if lines else ""
