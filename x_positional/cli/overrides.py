"""Dotted overrides from the command line: `--model.layers.depth 4` or `--model.layers.depth=4`."""

from collections.abc import Sequence
from typing import Any

import yaml

from x_positional.errors import UserError, listed


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Name -> value, the values read as YAML (numbers, true, null, lists and mappings in quotes).

    A name that is followed by nothing or by another option is a switch and means true. Raises `UserError` with every
    argument that cannot be read.
    """
    values: dict[str, Any] = {}
    problems = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if not argument.startswith("--") or argument == "--":
            problems.append(f"unexpected argument {argument!r}; overrides are written --section.name value")
            continue
        name, equals, text = argument[2:].partition("=")
        if not equals:
            text = queue.pop(0) if queue and not queue[0].startswith("--") else "true"
        name = name.replace("-", "_")
        if name in values:
            problems.append(f"--{name} is given twice")
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            problems.append(f"--{name} {text!r} cannot be read: {error}")
    if problems:
        raise UserError(listed("cannot read the command line:", problems))
    return values
