"""The same weights under another config, without a copy of them."""

from pathlib import Path

import torch

from x_positional.config.models import ModelConfig
from x_positional.errors import ArgumentError, PretrainedError, listed
from x_positional.evidence.extension.methods import for_transformers
from x_positional.models.language import TransformerWrapper
from x_positional.pretrained.tensors.load import replace_parameter


def with_config(model: TransformerWrapper, config: ModelConfig) -> TransformerWrapper:
    """A model of another config that shares every parameter with `model`: training one trains both.

    Raises:
        ArgumentError: The config describes other parameters.
        IncompatibleConfig: The config cannot be built.
    """
    with torch.device("meta"):
        new = type(model).from_config(config)
    own, described = dict(model.named_parameters()), dict(new.named_parameters())
    problems = [f"{name} is in one of the two models only." for name in sorted(own.keys() ^ described.keys())]
    problems += [
        f"{name} has shape {list(own[name].shape)}; the config describes {list(described[name].shape)}."
        for name in own.keys() & described.keys()
        if own[name].shape != described[name].shape
    ]
    if problems:
        raise ArgumentError(listed("the config describes other parameters:", problems))
    for name, parameter in described.items():
        replace_parameter(new, parameter, own[name])
    new.origin = model.origin
    return new.train(model.training)


def write_extended(model: TransformerWrapper, folder: Path) -> str | None:
    """Write config and weights; the reason why transformers cannot read them, None where it can.

    Raises:
        PretrainedError: The folder cannot be written.
    """
    try:
        with_config(model, for_transformers(model.config)).save_pretrained(folder, format="hf", code=False)
    except PretrainedError as reason:
        model.save_pretrained(folder, format="native")
        return str(reason)
    return None
