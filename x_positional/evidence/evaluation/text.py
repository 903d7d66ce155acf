"""The held-out text that is scored: ids, where they come from, and how many bytes of text they encode."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from x_positional.errors import UserError
from x_positional.evidence.evaluation.measure import summary_of_data
from x_positional.evidence.evaluation.results import DataSummary
from x_positional.progress import Track, silent
from x_positional.training.config import DataConfig
from x_positional.training.data.corpus import load_corpus, read_ids
from x_positional.training.data.documents import (
    Document,
    embedded_documents,
    file_document,
    folder_documents,
    split_documents,
)

Encode = Callable[[bytes], Sequence[int] | np.ndarray]
"""Text in UTF-8 -> ids, without tokens that begin or end every text."""
EMBEDDED = "held-out part of the embedded text"


@dataclass(frozen=True)
class HeldOut:
    """Ids to score."""

    tokens: np.ndarray
    """[N]."""
    summary: DataSummary

    def check_ids(self, num_tokens: int) -> None:
        """Raise `UserError` where an id is out of range of the model."""
        if not len(self.tokens):
            raise UserError(f"{self.summary.name} contains no tokens")
        low, high = int(self.tokens.min()), int(self.tokens.max())
        if low < 0 or high >= num_tokens:
            raise UserError(
                f"{self.summary.name} contains id {low if low < 0 else high}; the model has ids 0 to {num_tokens - 1}. "
                "Pass ids of the model's own tokenizer, or text"
            )


def of_run(data: DataConfig, num_tokens: int, seq_len: int, track: Track = silent) -> HeldOut:
    """The validation split of a run. Raises `UserError` as `load_corpus` does."""
    corpus = load_corpus(data, num_tokens, seq_len, track)
    split = corpus.validation
    return HeldOut(
        split.tokens, summary_of_data(f"validation split of {corpus.source}", split.tokens, split.text_bytes)
    )


def of_path(path: Path, encode: Encode | None, end: int | None, track: Track = silent) -> HeldOut:
    """The text or token ids at a path, all of them.

    Args:
        path: A text file, a folder of them, or ids in `.npy`.
        encode: The model's tokenizer; None where it has none.
        end: Id after each of several documents; None for none.
        track: Shows progress.

    Raises:
        UserError: It cannot be read, or is text and there is no tokenizer.
    """
    if not path.exists():
        raise UserError(f"--data {path}: no such file or folder; leave it out for the default text")
    if path.suffix == ".npy":
        tokens = read_ids(path, None)
        return HeldOut(tokens, summary_of_data(str(path), tokens, None))
    if encode is None:
        raise UserError(f"this model was trained on token ids, so --data must be ids in .npy; got {path}")
    documents = [file_document(path)] if path.is_file() else folder_documents(path, "**/*", track)
    return encoded(documents, str(path), encode, end, track)


def embedded(encode: Encode, end: int | None, track: Track = silent) -> HeldOut:
    """The part of the embedded text that training with the defaults holds out."""
    _, validation = split_documents(embedded_documents(), DataConfig().val_fraction)
    return encoded(validation, EMBEDDED, encode, end, track)


def encoded(
    documents: Sequence[Document], name: str, encode: Encode, end: int | None, track: Track = silent
) -> HeldOut:
    """All documents; of several, each followed by the `end` id, which counts as one byte of text."""
    end = end if len(documents) > 1 else None
    pieces: list[np.ndarray] = []
    for document in track(documents, "tokenizing"):
        ids = np.asarray(encode(document.text), dtype=np.int64)
        pieces.append(ids if end is None else np.append(ids, end))
    tokens = np.concatenate(pieces)
    size = sum(len(document.text) + (end is not None) for document in documents)
    if not len(tokens):
        raise UserError(f"{name} contains no tokens")
    return HeldOut(tokens, summary_of_data(name, tokens, size))
