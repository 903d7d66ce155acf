"""Documents to train on (a file, a folder, or the embedded text) and their split into training and validation."""

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from x_positional.errors import UserError
from x_positional.progress import Track, silent

# Tests are repetitive, code pages are tables of numbers, and the rest is not part of the standard library.
_EXCLUDED = frozenset(
    {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__"}
)
_EXCLUDED_PREFIXES = ("_sysconfigdata", ".")

_HEAD = 1 << 16
"""Bytes of a file that show whether it is text."""
_TO_TEXT = "write the texts to a .txt file, one after the other, or to a folder with one file each"
_TO_IDS = "save token ids as a one-dimensional integer .npy, or raw integers as .bin with data.dtype"
_ALONE = "a folder holds either texts or one kind of table"
_FORMATS: dict[str, tuple[str, str]] = {
    ".parquet": ("a Parquet table", _ALONE),
    ".arrow": ("an Arrow table", _ALONE),
    ".feather": ("an Arrow table", "write it as Parquet"),
    ".jsonl": ("JSON lines", _ALONE),
    ".ndjson": ("JSON lines", _ALONE),
    ".jsonl.gz": ("JSON lines", _ALONE),
    ".npz": ("a NumPy archive", _TO_IDS),
    ".pt": ("a PyTorch file", _TO_IDS),
    ".pth": ("a PyTorch file", _TO_IDS),
    ".safetensors": ("tensors", _TO_IDS),
    ".h5": ("an HDF5 file", _TO_IDS),
    ".hdf5": ("an HDF5 file", _TO_IDS),
}
"""Suffixes of data formats that are not text, what they are and what to do instead. Case is ignored. Tables reach this module
only beside texts."""
_MAGIC: tuple[tuple[bytes, str, str], ...] = (
    (b"PAR1", "a Parquet table", "give it the suffix .parquet"),
    (b"ARROW1", "an Arrow table", "give it the suffix .arrow"),
    (b"\x1f\x8b", "compressed with gzip", "decompress it first"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "decompress it first"),
    (b"BZh", "compressed with bzip2", "decompress it first"),
    (b"\xfd7zXZ", "compressed with xz", "decompress it first"),
    (b"PK\x03\x04", "a zip archive", "unpack it first"),
    (b"%PDF", "a PDF", _TO_TEXT),
    (b"\x93NUMPY", "a NumPy array", "give it the suffix .npy"),
    (b"\xff\xfe", "UTF-16 text", "convert it to UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it to UTF-8"),
)
"""First bytes of formats that are not UTF-8 text."""


@dataclass(frozen=True)
class Document:
    """A text, and the name that decides which split it belongs to."""

    name: str
    text: bytes


def embedded_documents() -> list[Document]:
    """Python's documentation topics and standard library sources, sorted by name (about 10 MB)."""
    documents = [*_topics(), *_library_sources()]
    if not documents:
        raise UserError(
            "the embedded text is unavailable: this Python has neither its documentation topics nor its library sources "
            "on disk. Pass a text with --data PATH"
        )
    return documents


def _topics() -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # packaged separately by some distributions; the sources suffice
        return
    for name in sorted(topics):
        yield Document(f"topics/{name}", topics[name].encode())


def _library_sources() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if _EXCLUDED.isdisjoint(relative.parts) and not file.name.startswith(_EXCLUDED_PREFIXES):
            text = _read(file)
            if text:
                yield Document(f"library/{relative.as_posix()}", text)


def folder_documents(folder: Path, pattern: str, track: Track = silent) -> list[Document]:
    """All files under `folder` that match `pattern`, sorted by name; hidden, empty and binary files are skipped.

    Raises:
        UserError: The folder contains tables or tensors too: skipping them would leave out the data.
    """
    documents = []
    for file in track(matching(folder, pattern), "reading files"):
        known = _format(file)
        if known is not None:
            raise UserError(f"{file} is {known[0]}, not text; {known[1]}. Choose with data.pattern, as '**/*.txt'")
        text = _read(file)
        if text and _not_text(text) is None:
            documents.append(Document(file.relative_to(folder).as_posix(), text))
    if not documents:
        raise UserError(
            f"no text file in {folder} matches data.pattern={pattern!r} (hidden, empty and binary files are skipped)"
        )
    return documents


def matching(folder: Path, pattern: str) -> list[Path]:
    """Files of a folder that match `data.pattern`, sorted; hidden ones are left out."""
    try:
        found = sorted(folder.glob(pattern))
    except (ValueError, NotImplementedError) as error:
        raise UserError(
            f"data.pattern={pattern!r} is not a pattern of relative paths, as '**/*.txt': {error}"
        ) from error
    hidden = {file for file in found if any(part.startswith(".") for part in file.relative_to(folder).parts)}
    return [file for file in found if file not in hidden and file.is_file()]


def file_document(file: Path) -> Document:
    """A text file as one document; raises `UserError` if it is empty, not text or cannot be read."""
    known = _format(file)
    if known is not None:
        raise UserError(f"{file} is {known[0]}, not text; {known[1]}")
    text = _read(file)
    if not text:
        raise UserError(f"{file} is empty")
    found = _not_text(text)
    if found is not None:
        raise UserError(f"{file} is {found[0]}, not text; {found[1]}")
    return Document(file.name, text)


def _format(file: Path) -> tuple[str, str] | None:
    """What a file is, by its name, and what to do instead; None where the name does not tell."""
    return next((known for suffix, known in _FORMATS.items() if file.name.lower().endswith(suffix)), None)


def _not_text(content: bytes) -> tuple[str, str] | None:
    """What a file that is not text is, and what to do instead; None for text, in UTF-8 or another 8-bit encoding."""
    head = content[:_HEAD]
    # No text contains NUL, and few control characters other than tab, line feed, form feed, carriage return and escape.
    control = len(head) - len(head.translate(None, bytes(set(range(32)) - {9, 10, 12, 13, 27})))
    if b"\0" not in head and control <= 0.01 * len(head) + 1:
        return None
    for magic, what, remedy in _MAGIC:
        if content.startswith(magic):
            return what, remedy
    return "a binary file", f"convert it to text, or {_TO_IDS}"


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def split_documents(documents: Sequence[Document], fraction: float) -> tuple[list[Document], list[Document]]:
    """Split two or more documents into (training, validation), each with at least one.

    A hash of the name decides, so a file stays in its split when others are added or removed.
    """
    order = sorted(documents, key=lambda document: unit_hash(document.name))
    below = sum(unit_hash(document.name) < fraction for document in order)
    count = min(max(below, 1), len(order) - 1)
    chosen = {document.name for document in order[:count]}
    train = [document for document in documents if document.name not in chosen]
    return train, [document for document in documents if document.name in chosen]


def unit_hash(name: str) -> float:
    """A number in [0, 1) that depends only on the name."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8], "big") / 2**64
