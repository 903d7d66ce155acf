"""Which class a family's models are, and where in it the layers of a parameter are."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from x_positional.config.layers import LayersConfig
from x_positional.config.models import ModelConfig
from x_positional.config.seq2seq import Seq2SeqConfig
from x_positional.config.vision import VisionConfig
from x_positional.models.language import TokenEncoder, TransformerWrapper
from x_positional.models.seq2seq import XTransformer
from x_positional.models.vision import ViTransformerWrapper
from x_positional.pretrained.config_json.assemble import assembled
from x_positional.pretrained.config_json.canonical import AnyConfig
from x_positional.pretrained.config_json.codecs import Fields
from x_positional.pretrained.config_json.encoder_decoder import of_side
from x_positional.pretrained.family import Kind

SIDES = ("encoder", "decoder")


@dataclass(frozen=True)
class Maker:
    """config: of fields by path. make: the model of fields, with or without a head. layers: the stack in a config that a
    parameter belongs to. sides: what the paths of its stacks begin with. head, embedding: the parameters that may be one;
    tied: the field that says so; an embedding of "" is never the head."""

    config: Callable[[Fields], Any]
    make: Callable[[Fields, bool], nn.Module]
    layers: Callable[[Any, str], LayersConfig]
    sides: tuple[str, ...] = ("",)
    head: str = "to_logits.weight"
    embedding: str = "token_emb.weight"
    tied: str = "tie_embedding"


def model_config(fields: Fields) -> ModelConfig:
    """The config of fields by path. The scale of a tied head says nothing where the head is its own."""
    idle = set() if fields.get("tie_embedding") else {"tie_embedding_scale"}
    return ModelConfig.model_validate(assembled({path: value for path, value in fields.items() if path not in idle}))


def seq2seq_config(fields: Fields) -> Seq2SeqConfig:
    """The config of fields under `encoder.` and `decoder.`, and those of the whole."""
    sides = {side: model_config(of_side(fields, side)) for side in SIDES}
    whole = {path: value for path, value in fields.items() if path.split(".")[0] not in SIDES}
    return Seq2SeqConfig.model_validate({**whole, **sides})


def vision_config(fields: Fields) -> VisionConfig:
    """The config of fields by path."""
    return VisionConfig.model_validate(assembled(fields))


def part_of(config: AnyConfig, name: str) -> tuple[ModelConfig | VisionConfig, str]:
    """The config that a parameter belongs to, and its name there."""
    if not isinstance(config, Seq2SeqConfig):
        return config, name
    side, _, rest = name.partition(".")
    return (config.encoder, rest) if side == "encoder" else (config.decoder, rest.removeprefix("net."))


def kind_of(config: AnyConfig) -> Kind:
    """The kind of family that may have such a model."""
    if isinstance(config, VisionConfig):
        return "vision"
    if isinstance(config, Seq2SeqConfig):
        return "seq2seq"
    return "encoder" if config.layers.kind == "encoder" else "decoder"


def _text(fields: Fields, head: bool) -> nn.Module:
    config = model_config(fields)
    return (TransformerWrapper if head else TokenEncoder).from_config(config)


def _image(fields: Fields, head: bool) -> nn.Module:
    return ViTransformerWrapper.from_config(vision_config(fields if head else {**fields, "num_classes": None}))


def _layers(config: AnyConfig, name: str) -> LayersConfig:
    return part_of(config, name)[0].layers


MAKERS: dict[Kind, Maker] = {
    "decoder": Maker(model_config, _text, _layers),
    "encoder": Maker(model_config, _text, _layers),
    "seq2seq": Maker(
        seq2seq_config,
        lambda fields, head: XTransformer.from_config(seq2seq_config(fields)),
        _layers,
        sides=("encoder.", "decoder."),
        head="decoder.net.to_logits.weight",
        embedding="encoder.token_emb.weight",
        tied="decoder.tie_embedding",
    ),
    "vision": Maker(vision_config, _image, _layers, embedding=""),
}


def make(kind: Kind, fields: Fields, head: bool) -> nn.Module:
    """The model, on the meta device: nothing is allocated."""
    with torch.device("meta"):
        return MAKERS[kind].make(fields, head)
