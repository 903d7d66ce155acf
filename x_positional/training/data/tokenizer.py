"""Tokenizers for training: bytes (the default) or a `tokenizer.json`."""

import codecs
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from x_positional.errors import PretrainedError, UserError, import_extra
from x_positional.pretrained.folder import list_folder
from x_positional.pretrained.tokenizers.text import TOKENIZER, TextStream, folder_tokenizer
from x_positional.training.data.hub import is_hub_name, one_line


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

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]: ...

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

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        return [self.encode(text.encode("utf-8", "replace")) for text in texts]

    def decoder(self) -> StreamDecoder:
        return ByteDecoder()


class JsonTokenizer:
    """A `tokenizer.json` of the tokenizers package.

    Args:
        file: The `tokenizer.json`.
        document_end: Id that ends a document.
    """

    name: str = TOKENIZER

    def __init__(self, file: Path, document_end: int | None = None) -> None:
        backend = import_extra("tokenizers", f"data.tokenizer={str(file)!r} needs", "pretrained").Tokenizer
        if not file.is_file():
            raise UserError(
                f"data.tokenizer={str(file)!r} is not a file; use 'bytes' or the path of a tokenizer.json or its folder, "
                "or a name on the Hub"
            )
        try:
            self._backend: Any = backend.from_file(str(file))
        except Exception as error:  # the package raises bare Exception for every malformed file
            raise UserError(f"cannot read {file} as a tokenizer.json: {error}") from error
        self._backend.no_padding()  # some files contain the settings of the last call, which would cut documents
        self._backend.no_truncation()
        self.file: Path | None = file
        self.vocab_size: int = self._backend.get_vocab_size()
        self.document_end: int | None = document_end

    def encode(self, text: bytes) -> np.ndarray:
        return self._ids(self._backend.encode(text.decode("utf-8", errors="replace"), add_special_tokens=False))

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """In several threads."""
        clean = [text.encode("utf-8", "replace").decode() for text in texts]  # JSON can contain lone surrogates
        return [self._ids(encoding) for encoding in self._backend.encode_batch(clean, add_special_tokens=False)]

    def _ids(self, encoding: Any) -> np.ndarray:
        return np.asarray(encoding.ids, dtype=np.uint16 if self.vocab_size <= 1 << 16 else np.uint32)

    def decode(self, ids: list[int]) -> str:
        return self._backend.decode(ids, skip_special_tokens=True)

    def decoder(self) -> StreamDecoder:
        return TextStream(self.decode)


def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names: `bytes`, a `tokenizer.json`, a folder with one, or that of a model on the Hub.

    In a folder or on the Hub, the EOS token of `tokenizer_config.json` ends documents.

    Raises:
        UserError: It cannot be read.
    """
    if name == "bytes":
        return ByteTokenizer()
    path = Path(name)
    if is_hub_name(name):
        path = _download(name)
    return _from_folder(path) if path.is_dir() else JsonTokenizer(path)


def _from_folder(folder: Path) -> JsonTokenizer:
    try:
        found = folder_tokenizer(list_folder(folder))
    except PretrainedError as error:
        raise UserError(f"data.tokenizer: {error}") from error
    return JsonTokenizer(folder / TOKENIZER, found.backend.token_to_id(found.special.get("eos_token", "")))


def _download(name: str) -> Path:
    """The folder with the tokenizer files of a model on the Hub; from the local cache of the Hub where there is no network."""
    what = f"data.tokenizer={name!r} does not exist here"
    hub = import_extra("huggingface_hub", f"{what}, and reading it from the Hub needs", "pretrained")
    try:
        return Path(hub.snapshot_download(name, allow_patterns=[TOKENIZER, "tokenizer_config.json"]))
    except Exception as error:  # the Hub's client raises many kinds: no such model, no network, no permission
        raise UserError(f"{what}, and it cannot be read from the Hub: {one_line(error)}") from error
