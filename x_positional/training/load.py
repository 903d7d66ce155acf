"""Configs from a YAML file and overrides: overrides win over the file, the file over the defaults."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from x_positional.config.layers import ModelConfig
from x_positional.config.suggest import sentences
from x_positional.errors import UserError, listed
from x_positional.schemes.registry import Config
from x_positional.training.checkpoints.checkpoint import CONFIG
from x_positional.training.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from x_positional.training.schema import hint, resolve


class ModelFile(Config):
    """The names that overrides may use where a file holds a model alone."""

    model: ModelConfig


class Beside(Config):
    """The sections of a run, the model left unread."""

    model: Any
    data: DataConfig = DataConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    run: RunConfig = RunConfig()


def load_config(file: Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Read `file` (or `config.yaml` of a run folder), apply dotted `overrides` and validate once.

    Raises `UserError` with every problem of file and overrides together.
    """
    return _validated(read_yaml(file / CONFIG if file.is_dir() else file), overrides or {}, str(file))


def load_model(file: Path, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The fields of the model in a training config or in a file of its own, with what is wrong around them.

    The fields themselves are not validated: that is for the validator, which reports everything at once.
    """
    raw = read_yaml(file / CONFIG if file.is_dir() else file)
    if "model" not in raw:
        raw = {"model": raw}
        return raw["model"], override(ModelFile, raw, overrides)
    problems = override(TrainConfig, raw, overrides)
    try:
        Beside.model_validate(raw)
    except ValidationError as error:
        problems += sentences(Beside, error, raw)
    return raw["model"], problems


def parse_config(text: str, source: str) -> TrainConfig:
    """The config kept inside a checkpoint; raises `UserError` when this version cannot read it."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"the config of {source} is not YAML: {error}") from error
    return _validated(raw, {}, source)


def read_yaml(file: Path) -> dict[str, Any]:
    """The mapping in `file`; raises `UserError` when there is none."""
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the config {file}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is not YAML: {error}") from error
    if not isinstance(raw, dict):
        raise UserError(f"{file} must hold sections and keys, the first of them model; it holds {type(raw).__name__}")
    return raw


def _validated(raw: dict[str, Any], overrides: Mapping[str, Any], source: str) -> TrainConfig:
    problems = override(TrainConfig, raw, overrides)
    try:
        config = TrainConfig.model_validate(raw)
    except ValidationError as error:
        problems += sentences(TrainConfig, error, raw)
    else:
        if not problems:
            return config
    raise UserError(listed(f"{source}{' with these overrides' if overrides else ''} is no valid config:", problems))


def override(kind: type[BaseModel], raw: dict[str, Any], overrides: Mapping[str, Any]) -> list[str]:
    """Put each override into `raw` at the place its name means; returns those that have none."""
    problems = []
    for name, value in overrides.items():
        written = tuple(name.split("."))
        found = resolve(kind, written)
        if len(found) == 1:
            problems += place(raw, found[0], value)
        elif found:
            problems.append(f"{name} could be {' or '.join('.'.join(path) for path in found)}; write one of them.")
        else:
            problems.append(f"{name} is unknown; {hint(kind, written)}")
    return problems


def place(raw: dict[str, Any], path: tuple[str, ...], value: Any) -> list[str]:
    """Set `raw[path[0]][path[1]]… = value`, making sections on the way; returns what stands in the way.

    A position scheme written by name alone becomes a section when something inside it is set, and a list of one is
    looked through: `position: rope` and `position.theta` give `{kind: rope, theta: …}`. A number picks from a list.
    """
    here: Any = raw
    for index, part in enumerate(path[:-1]):
        key: Any = int(part) if isinstance(here, list) else part
        inner = _opened(None if isinstance(here, dict) and key not in here else here[key], path[index + 1])
        if not isinstance(inner, dict) and not (isinstance(inner, list) and _is_index(inner, path[index + 1])):
            return [f"{'.'.join(path)} cannot be set: {'.'.join(path[: index + 1])} is {inner!r}"]
        here[key] = inner
        if isinstance(inner, list) and not path[index + 1].isdigit():
            inner[0] = _opened(inner[0], path[index + 1])
            inner = inner[0]
        here = inner
    here[int(path[-1]) if isinstance(here, list) else path[-1]] = value
    return []


def _opened(value: Any, inside: str) -> Any:
    """`value` as something that `inside` can be set in: nothing is an empty section, a name is a scheme."""
    if value is None:
        return {}
    if isinstance(value, str):
        value = {"kind": value}
    return [value] if inside.isdigit() and isinstance(value, dict) else value


def _is_index(items: list[Any], part: str) -> bool:
    return int(part) < len(items) if part.isdigit() else len(items) == 1
