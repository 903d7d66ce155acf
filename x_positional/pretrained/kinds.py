"""Which class a family's models are, and where in it the layers of a parameter are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from x_positional.config import LayersConfig, ModelConfig
from x_positional.pretrained.assemble import assembled
from x_positional.pretrained.family import Kind
from x_positional.pretrained.fields import Fields
from x_positional.wrappers import TokenEncoder, TransformerWrapper


@dataclass(frozen=True)
class Maker:
    """make: from fields by path, with or without a head. layers: the stack that a parameter belongs to."""

    make: Callable[[Fields, bool], nn.Module]
    layers: Callable[[Any, str], LayersConfig]


def model_config(fields: Fields) -> ModelConfig:
    """The config of fields by path. The scale of a tied head says nothing where the head is its own."""
    idle = set() if fields.get("tie_embedding") else {"tie_embedding_scale"}
    return ModelConfig.model_validate(assembled({path: value for path, value in fields.items() if path not in idle}))


def _text(fields: Fields, head: bool) -> nn.Module:
    config = model_config(fields)
    return (TransformerWrapper if head else TokenEncoder).from_config(config)


MAKERS: dict[Kind, Maker] = {
    "decoder": Maker(_text, lambda model, name: model.config.layers),
    "encoder": Maker(_text, lambda model, name: model.config.layers),
}


def make(kind: Kind, fields: Fields, head: bool) -> nn.Module:
    """The model, on the meta device: nothing is allocated."""
    with torch.device("meta"):
        return MAKERS[kind].make(fields, head)
