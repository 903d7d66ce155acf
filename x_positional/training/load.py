"""Training configs from a YAML file and overrides: overrides win over the file, the file over the defaults."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from x_positional.config.models import ModelConfig
from x_positional.config.reading import parse_yaml, read_yaml
from x_positional.errors import ConfigError, UserError, listed, shown
from x_positional.schemes.registry import Config
from x_positional.schemes.suggest import messages
from x_positional.training.checkpoints.checkpoint import CONFIG
from x_positional.training.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from x_positional.training.finetune.config import ChatConfig, InitConfig, LoraConfig
from x_positional.training.overrides import override


class ModelFile(Config):
    """The names that overrides may use for a file that holds only a model."""

    model: ModelConfig
    """The model."""


class OtherSections(Config):
    """A training config whose model is not validated."""

    model: Any
    """Anything."""
    data: DataConfig = DataConfig()
    """As in `TrainConfig`."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """As in `TrainConfig`."""
    run: RunConfig = RunConfig()
    """As in `TrainConfig`."""
    init: InitConfig | None = None
    """As in `TrainConfig`."""
    chat: ChatConfig | None = None
    """As in `TrainConfig`."""
    lora: LoraConfig | None = None
    """As in `TrainConfig`."""


def load_config(file: Path, overrides: Mapping[str, Any] | None = None) -> TrainConfig:
    """Reads `file` (or `config.yaml` of a run directory), applies dotted `overrides` and validates once.

    Raises `UserError` with every problem of file and overrides together.
    """
    return config_of_fields(_read(file), overrides or {}, str(file))


def load_fields(file: Path, overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a training config after `overrides`, before they are validated.

    Raises `UserError` with every override that cannot be set.
    """
    raw = _read(file)
    if problems := override(TrainConfig, raw, overrides):
        raise UserError(listed(f"invalid overrides of {file}:", problems))
    return raw


def load_model(file: Path, overrides: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The model's fields in a training config or in a model file, and the problems of everything else.

    The model's fields are not validated: the validator does that, and reports everything at once.
    """
    raw = _read(file)
    if "model" not in raw:
        raw = {"model": raw}
        return raw["model"], override(ModelFile, raw, overrides)
    if not isinstance(raw["model"], dict):
        raise UserError(f"{file}: model={raw['model']!r} must be a mapping of the model's fields")
    problems = override(TrainConfig, raw, overrides)
    if not isinstance(raw["model"], dict):
        raise UserError(f"{file}: model={shown(raw['model'])} must be a section with the model's fields.")
    try:
        OtherSections.parse(raw)
    except ValidationError as error:
        problems += messages(OtherSections, error, raw)
    return raw["model"], problems


def parse_config(text: str, source: str) -> TrainConfig:
    """The config stored in a checkpoint. Raises `UserError` when this version cannot read it."""
    try:
        raw = parse_yaml(text, f"the config of {source}")
    except ConfigError as error:
        raise UserError(str(error)) from error
    return config_of_fields(raw, {}, source)


def _read(file: Path) -> dict[str, Any]:
    try:
        return read_yaml(file / CONFIG if file.is_dir() else file)
    except ConfigError as error:
        raise UserError(str(error)) from error


def config_of_fields(raw: dict[str, Any], overrides: Mapping[str, Any], source: str) -> TrainConfig:
    """The config of its fields, changed by dotted `overrides`. Raises `UserError` with every problem of both."""
    problems = override(TrainConfig, raw, overrides)
    try:
        config = TrainConfig.parse(raw)
    except ValidationError as error:
        problems += messages(TrainConfig, error, raw)
    else:
        if not problems:
            return config
    raise UserError(listed(f"invalid config {source}{' with these overrides' if overrides else ''}:", problems))
