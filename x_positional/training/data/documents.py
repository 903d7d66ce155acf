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
    """All files under `folder` that match `pattern`, sorted by name; hidden, empty and binary files are skipped."""
    documents = []
    for file in track(sorted(folder.glob(pattern)), "reading files"):
        relative = file.relative_to(folder)
        if not file.is_file() or any(part.startswith(".") for part in relative.parts):
            continue
        text = _read(file)
        if text and b"\0" not in text[:8192]:
            documents.append(Document(relative.as_posix(), text))
    if not documents:
        raise UserError(
            f"no text file in {folder} matches data.pattern={pattern!r} (hidden, empty and binary files are skipped)"
        )
    return documents


def file_document(file: Path) -> Document:
    """A text file as one document; raises `UserError` if it is empty or cannot be read."""
    text = _read(file)
    if not text:
        raise UserError(f"{file} is empty")
    return Document(file.name, text)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def split_documents(documents: Sequence[Document], fraction: float) -> tuple[list[Document], list[Document]]:
    """Split two or more documents into (training, validation), each with at least one.

    A hash of the name decides, so a file stays in its split when others are added or removed.
    """
    order = sorted(documents, key=lambda document: _unit_hash(document.name))
    below = sum(_unit_hash(document.name) < fraction for document in order)
    count = min(max(below, 1), len(order) - 1)
    chosen = {document.name for document in order[:count]}
    train = [document for document in documents if document.name not in chosen]
    return train, [document for document in documents if document.name in chosen]


def _unit_hash(name: str) -> float:
    """A number in [0, 1) that depends only on the name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
