"""The model class of each kind of family, and which config a parameter belongs to."""

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
from x_positional.pretrained.config_json.canonical import AnyConfig, assemble
from x_positional.pretrained.config_json.codecs import Fields
from x_positional.pretrained.config_json.encoder_decoder import side_fields
from x_positional.pretrained.family import Kind

SIDES = ("encoder", "decoder")


@dataclass(frozen=True)
class ModelKind:
    """How to build the models of a kind of family."""

    config: Callable[[Fields], Any]
    """Fields by path -> config."""
    build: Callable[[Fields, bool], nn.Module]
    """(Fields, whether there is a head) -> model."""
    stack_prefixes: tuple[str, ...] = ("",)
    """What the paths of its stacks start with."""
    head: str = "to_logits.weight"
    """Parameter of the head."""
    embeddings: tuple[str, ...] = ("token_emb.weight",)
    """Parameters of the embedding that the head may be tied to, of which a family has one; () where it cannot be."""
    tied: str = "tie_embedding"
    """Field that ties head and embedding."""


def model_config(fields: Fields) -> ModelConfig:
    """The config of fields by path. The scale of a tied head is dropped where the head is not tied."""
    unused = set() if fields.get("tie_embedding") else {"tie_embedding_scale"}
    return ModelConfig.model_validate(assemble({path: value for path, value in fields.items() if path not in unused}))


def seq2seq_config(fields: Fields) -> Seq2SeqConfig:
    """The config of fields under `encoder.` and `decoder.`, and of those of the whole model."""
    sides = {side: model_config(side_fields(fields, side)) for side in SIDES}
    whole = {path: value for path, value in fields.items() if path.split(".")[0] not in SIDES}
    return Seq2SeqConfig.model_validate({**whole, **sides})


def vision_config(fields: Fields) -> VisionConfig:
    """The config of fields by path. Settings of the head are dropped where there is none."""
    unused = {"logits_bias", "register_heads"} if fields.get("num_classes") is None else set()
    return VisionConfig.model_validate(assemble({path: value for path, value in fields.items() if path not in unused}))


def side_of(config: AnyConfig, parameter: str) -> tuple[ModelConfig | VisionConfig, str]:
    """The config of the side that a parameter belongs to, and its name there."""
    if not isinstance(config, Seq2SeqConfig):
        return config, parameter
    side, _, rest = parameter.partition(".")
    return (config.encoder, rest) if side == "encoder" else (config.decoder, rest.removeprefix("net."))


def layers_of(config: AnyConfig, parameter: str) -> LayersConfig:
    """The stack that a parameter belongs to."""
    return side_of(config, parameter)[0].layers


def kind_of(config: AnyConfig) -> Kind:
    """The kind of family that such a model belongs to."""
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


MODEL_KINDS: dict[Kind, ModelKind] = {
    "decoder": ModelKind(model_config, _text),
    "encoder": ModelKind(model_config, _text),
    "seq2seq": ModelKind(
        seq2seq_config,
        lambda fields, head: XTransformer.from_config(seq2seq_config(fields)),
        stack_prefixes=("encoder.", "decoder."),
        head="decoder.net.to_logits.weight",
        embeddings=("decoder.net.token_emb.weight", "encoder.token_emb.weight"),
        tied="decoder.tie_embedding",
    ),
    "vision": ModelKind(vision_config, _image, embeddings=()),
}


def build_on_meta(kind: Kind, fields: Fields, head: bool) -> nn.Module:
    """The model on the meta device, without allocating memory."""
    with torch.device("meta"):
        return MODEL_KINDS[kind].build(fields, head)
