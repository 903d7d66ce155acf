"""Codecs of a model with two sides: what a codec says of one model, said of its encoder or its decoder."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from x_positional.pretrained.config_json.codecs import Codec, Fields, Hf
from x_positional.pretrained.family import Family


@dataclass(frozen=True)
class Sided:
    """A codec for one side: its fields stand under `encoder.` or `decoder.`."""

    side: str
    codec: Codec

    @property
    def said(self) -> tuple[str, ...]:
        return tuple(f"{self.side}.{path}" for path in self.codec.said)

    @property
    def keys(self) -> tuple[str, ...]:
        return self.codec.keys

    def read(self, hf: Hf) -> Fields:
        return {f"{self.side}.{path}": value for path, value in self.codec.read(hf).items()}

    def write(self, config: Fields) -> dict[str, Any]:
        return self.codec.write(of_side(config, self.side))


def of_side(fields: Fields, side: str) -> Fields:
    """The fields of one side by their own paths."""
    return {path.removeprefix(f"{side}."): v for path, v in fields.items() if path.startswith(f"{side}.")}


def encoder(codecs: Iterable[Codec]) -> tuple[Codec, ...]:
    """The same of the encoder."""
    return tuple(Sided("encoder", codec) for codec in codecs)


def decoder(codecs: Iterable[Codec]) -> tuple[Codec, ...]:
    """The same of the decoder."""
    return tuple(Sided("decoder", codec) for codec in codecs)


def both(codecs: Iterable[Codec]) -> tuple[Codec, ...]:
    """The same of both sides, which have one key for it."""
    codecs = tuple(codecs)
    return encoder(codecs) + decoder(codecs)


def encoder_alone(family: Family) -> Family:
    """The encoder of a family with two sides as a family of its own: what T5EncoderModel is."""
    fields = tuple(codec.codec for codec in family.fields if isinstance(codec, Sided) and codec.side == "encoder")
    names = {
        ours.removeprefix("encoder."): theirs for ours, theirs in family.names.items() if ours.startswith("encoder.")
    }
    idle = family.harmless | family.keys  # of the decoder and its head
    return replace(family, kind="encoder", architecture="", fields=fields, names=names, harmless=idle, optional={})
