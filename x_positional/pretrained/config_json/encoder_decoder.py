"""Codecs of encoder-decoders: a codec of one model, applied to the encoder or to the decoder."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from x_positional.pretrained.config_json.codecs import Codec, Fields, Hf
from x_positional.pretrained.config_json.nested_sides import NestedSide
from x_positional.pretrained.family import Family


@dataclass(frozen=True)
class SideCodec:
    """A codec whose fields are under `encoder.` or `decoder.`."""

    side: str
    codec: Codec

    @property
    def sets(self) -> tuple[str, ...]:
        return tuple(f"{self.side}.{path}" for path in self.codec.sets)

    @property
    def keys(self) -> tuple[str, ...]:
        return self.codec.keys

    def to_fields(self, hf: Hf) -> Fields:
        return {f"{self.side}.{path}": value for path, value in self.codec.to_fields(hf).items()}

    def to_hf(self, fields: Fields) -> dict[str, Any]:
        return self.codec.to_hf(side_fields(fields, self.side))


def side_fields(fields: Fields, side: str) -> Fields:
    """The fields of one side, with its prefix removed."""
    return {path.removeprefix(f"{side}."): v for path, v in fields.items() if path.startswith(f"{side}.")}


def for_encoder(codecs: Iterable[Codec]) -> tuple[Codec, ...]:
    """These codecs for the encoder."""
    return tuple(SideCodec("encoder", codec) for codec in codecs)


def for_decoder(codecs: Iterable[Codec]) -> tuple[Codec, ...]:
    """These codecs for the decoder."""
    return tuple(SideCodec("decoder", codec) for codec in codecs)


def for_both(codecs: Iterable[Codec]) -> tuple[Codec, ...]:
    """These codecs for both sides, which share their keys."""
    codecs = tuple(codecs)
    return for_encoder(codecs) + for_decoder(codecs)


def encoder_only(family: Family) -> Family:
    """The encoder of an encoder-decoder family as a family of its own, as T5EncoderModel is."""
    codecs: tuple[Codec, ...] = tuple(
        c.codec for c in family.codecs if isinstance(c, SideCodec) and c.side == "encoder"
    )
    codecs += tuple(replace(c, prefix="") for c in family.codecs if isinstance(c, NestedSide) and c.side == "encoder")
    names = {
        ours.removeprefix("encoder."): theirs for ours, theirs in family.names.items() if ours.startswith("encoder.")
    }
    unused = family.ignored_keys | family.keys  # of the decoder and its head
    return replace(
        family, kind="encoder", architecture="", codecs=codecs, names=names, ignored_keys=unused, optional={}
    )
