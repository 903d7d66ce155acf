"""Packages that only some files need, asked for when they are needed."""

import importlib
from typing import Any

from x_positional.errors import PretrainedError


def needed(package: str, what: str, extra: str = "pretrained") -> Any:
    """The module of a package. Raises PretrainedError that says what needs it and how to install it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = package.split(".")[0]
        raise PretrainedError(
            f"the package {name} is missing:", [f"{what} it: pip install 'x-positional[{extra}]'"]
        ) from error
