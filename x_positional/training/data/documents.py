"""Named texts: the embedded documents of every Python installation, a file, or a folder; and their split by file."""

import hashlib
import sysconfig
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from x_positional.errors import UserError
from x_positional.training.progress import Track, silent

# Tests repeat one another, code pages are number tables, and the other names are not part of the language itself.
_LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages", "__pycache__"}
)
_LEFT_OUT_PREFIXES = ("_sysconfigdata", ".")


@dataclass(frozen=True)
class Document:
    """One text with the name that decides which side of the split it is on."""

    name: str
    text: bytes


def embedded_documents() -> list[Document]:
    """Python's documentation topics and standard library sources, sorted by name (about 10 MB)."""
    documents = [*_topics(), *_library_sources()]
    if not documents:
        raise UserError(
            "this Python has neither documentation topics nor library sources on disk, so there is no embedded text; "
            "name a text with --data PATH"
        )
    return documents


def _topics() -> Iterator[Document]:
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions ship them apart; the sources alone are enough
        return
    for name in sorted(topics):
        yield Document(f"topics/{name}", topics[name].encode())


def _library_sources() -> Iterator[Document]:
    root = Path(sysconfig.get_path("stdlib"))
    for file in sorted(root.rglob("*.py")):
        relative = file.relative_to(root)
        if _LEFT_OUT.isdisjoint(relative.parts) and not file.name.startswith(_LEFT_OUT_PREFIXES):
            text = _read(file)
            if text:
                yield Document(f"library/{relative.as_posix()}", text)


def folder_documents(folder: Path, pattern: str, track: Track = silent) -> list[Document]:
    """Every file under `folder` that matches `pattern`, without hidden, empty and binary ones, sorted by name."""
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
            f"no text in {folder} matches data.pattern={pattern!r}; hidden, empty and binary files are left out"
        )
    return documents


def file_document(file: Path) -> Document:
    """One text file as one document; raises `UserError` when it is empty or cannot be read."""
    text = _read(file)
    if not text:
        raise UserError(f"{file} is empty; there is nothing to train on")
    return Document(file.name, text)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read {file}: {error.strerror}") from error


def split(documents: Sequence[Document], fraction: float) -> tuple[list[Document], list[Document]]:
    """(train, validation) by file: a hash of the name decides, so a file never changes sides when others come or go.

    Both sides get at least one document; there must be two or more.
    """
    order = sorted(documents, key=lambda document: _unit_hash(document.name))
    wanted = sum(_unit_hash(document.name) < fraction for document in order)
    count = min(max(wanted, 1), len(order) - 1)
    chosen = {document.name for document in order[:count]}
    train = [document for document in documents if document.name not in chosen]
    return train, [document for document in documents if document.name in chosen]


def _unit_hash(name: str) -> float:
    """A number in [0, 1) that depends on the name only."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") / 2**64
