"""Tokenizers for training: bytes (the default) or a `tokenizer.json`."""

import codecs
from pathlib import Path
from typing import Protocol

import numpy as np

from x_positional.errors import UserError, import_extra
from x_positional.pretrained.tokenizers.text import TextStream


class StreamDecoder(Protocol):
    """Decodes a stream of ids into text; an incomplete character is held back until it is complete."""

    def feed(self, token: int) -> str: ...

    def finish(self) -> str: ...


class Tokenizer(Protocol):
    """What training and sampling need of a tokenizer."""

    name: str
    vocab_size: int
    document_end: int | None
    file: Path | None

    def encode(self, text: bytes) -> np.ndarray: ...

    def decoder(self) -> StreamDecoder: ...


class ByteDecoder:
    """Decodes UTF-8 byte by byte; ids above 255 and invalid sequences become the replacement character."""

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token: int) -> str:
        if token > 255:
            return self._utf8.decode(b"", final=True) + "\N{REPLACEMENT CHARACTER}"
        return self._utf8.decode(bytes([token]))

    def finish(self) -> str:
        return self._utf8.decode(b"", final=True)


class ByteTokenizer:
    """One token per byte. Byte 0, which text does not contain, ends a document."""

    name: str = "bytes"
    vocab_size: int = 256
    document_end: int | None = 0
    file: Path | None = None

    def encode(self, text: bytes) -> np.ndarray:
        return np.frombuffer(text, dtype=np.uint8)

    def decoder(self) -> StreamDecoder:
        return ByteDecoder()


class JsonTokenizer:
    """A `tokenizer.json` of the tokenizers package."""

    name: str = "tokenizer.json"
    document_end: int | None = None

    def __init__(self, file: Path) -> None:
        backend = import_extra("tokenizers", f"data.tokenizer={str(file)!r} needs", "pretrained").Tokenizer
        if not file.is_file():
            raise UserError(f"data.tokenizer={str(file)!r} is not a file; use 'bytes' or the path of a tokenizer.json")
        try:
            self._backend = backend.from_file(str(file))
        except Exception as error:  # the package raises bare Exception for every malformed file
            raise UserError(f"cannot read {file} as a tokenizer.json: {error}") from error
        self.file: Path | None = file
        self.vocab_size: int = self._backend.get_vocab_size()

    def encode(self, text: bytes) -> np.ndarray:
        ids = self._backend.encode(text.decode("utf-8", errors="replace"), add_special_tokens=False).ids
        return np.asarray(ids, dtype=np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=True)

    def decoder(self) -> StreamDecoder:
        return TextStream(self.decode)


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer `"bytes"`, or the one in the `tokenizer.json` at `name`; raises `UserError` if it cannot be read."""
    return ByteTokenizer() if name == "bytes" else JsonTokenizer(Path(name))
