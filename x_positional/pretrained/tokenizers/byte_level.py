"""A tokenizer whose ids are the bytes of a text, in the form that published models have."""

from typing import Any

from x_positional.pretrained.extras import needed
from x_positional.pretrained.tokenizers.text import TextTokenizer

DOCUMENT_END = 0
"""Byte 0, which no text has."""


def byte_tokenizer() -> TextTokenizer:
    """Id = byte. The end of a document is said by id alone: as a special token its letter would be found in texts.

    Raises PretrainedError without the package tokenizers.
    """
    needed("tokenizers", "tokenizer.json needs")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    backend: Any = Tokenizer(models.BPE(vocab={letter: byte for byte, letter in enumerate(letters())}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return TextTokenizer(backend, {}, (DOCUMENT_END,), None, "bytes")


def letters() -> list[str]:
    """The letter that stands for each byte in files of byte-level tokenizers: itself where it prints, and letters from
    256 on for the others, in their order."""
    printing = {*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)}
    others = iter(range(256, 512))
    return [chr(byte) if byte in printing else chr(next(others)) for byte in range(256)]
