"""A TrainConfig from a YAML file and overrides: overrides win over the file, the file over the defaults."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from x_positional.training import schema
from x_positional.training.checkpoint import CONFIG
from x_positional.training.config import TrainConfig
from x_positional.training.errors import UserError, listed


def load_config(file: Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read `file` (or `config.yaml` of a run folder), apply dotted `overrides` and validate once.

    Raises `UserError` with every problem of file and overrides together.
    """
    raw = read_yaml(file / CONFIG if file.is_dir() else file)
    problems = []
    for name, value in (overrides or {}).items():
        written = tuple(name.split("."))
        found = schema.resolve(TrainConfig, written)
        if len(found) == 1:
            place(raw, found[0], value)
        elif found:
            problems.append(f"{name} could be {' or '.join('.'.join(path) for path in found)}; write one of them")
        else:
            problems.append(f"{name} is unknown{schema.did_you_mean(schema.nearest(TrainConfig, written))}")
    try:
        config = TrainConfig.model_validate(raw)
    except ValidationError as error:
        problems += schema.explain(TrainConfig, error)
    else:
        if not problems:
            return config
    raise UserError(listed(f"{file} and the overrides do not make a run:" if overrides else f"{file} is no run:", problems))


def parse_config(text: str, source: str) -> TrainConfig:
    """The config kept inside a checkpoint; raises `UserError` when this version cannot read it."""
    try:
        return TrainConfig.model_validate(yaml.safe_load(text))
    except (yaml.YAMLError, ValidationError) as error:
        problems = schema.explain(TrainConfig, error) if isinstance(error, ValidationError) else [str(error)]
        raise UserError(listed(f"the config of {source} cannot be used:", problems)) from error


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in `file`; raises `UserError` when there is none."""
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{file} must be a YAML mapping with the section model, it is {type(raw).__name__}")
    return raw


def place(raw: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    """Set `raw[path[0]][path[1]]… = value`, making sections on the way.

    A position scheme written by name alone becomes a section when something inside it is set, and a list of one is
    looked through: `position: rope` and `position.theta` give `{kind: rope, theta: …}`. A number picks from a list.
    """
    here: Any = raw
    for index, part in enumerate(path[:-1]):
        key: Any = int(part) if isinstance(here, list) else part
        inner = here.setdefault(key, {}) if isinstance(here, dict) else here[key]
        if isinstance(inner, list) and len(inner) == 1 and not path[index + 1].isdigit():
            here, key, inner = inner, 0, inner[0]
        if isinstance(inner, str):
            inner = {"kind": inner}
            here[key] = inner
        if inner is None:
            inner = {}
            here[key] = inner
        if not isinstance(inner, (dict, list)):
            raise UserError(f"{'.'.join(path)} cannot be set: {'.'.join(path[: index + 1])} is {inner!r}, not a section")
        here = inner
    last: Any = int(path[-1]) if isinstance(here, list) else path[-1]
    here[last] = value
