"""Rows of conversations: several in one row, each a document of its own, so that none sees another.

Shapes: B batch, T tokens in one row.
"""

import bisect
import hashlib
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from x_positional.modules.cross_entropy import NO_TARGET
from x_positional.training.finetune.conversations import Conversation

PADDING = 0
"""The id after the last conversation of a row. It is a document of its own, and no target."""


class PackedRows:
    """Conversations in rows of `seq_len` tokens, visited in a new order each epoch: a pure function of (seed, index).

    Args:
        conversations: Of at most `seq_len` tokens each.
        seq_len: Tokens of a row.
        seed: Of the order.
        pack: Whether a row may hold several conversations.
    """

    bytes_per_token: None = None

    def __init__(self, conversations: Sequence[Conversation], seq_len: int, seed: int, *, pack: bool = True) -> None:
        self._conversations, self._seq_len, self._seed = conversations, seq_len, seed
        lengths = [len(one) for one in conversations]
        self._rows = packed(lengths, seq_len, seed) if pack else [[index] for index in range(len(lengths))]
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __len__(self) -> int:
        """Rows per epoch."""
        return len(self._rows)

    @property
    def conversations(self) -> int:
        """Number of conversations."""
        return len(self._conversations)

    @property
    def filled(self) -> float:
        """Fraction of the rows' tokens that belongs to conversations."""
        return sum(map(len, self._conversations)) / (len(self) * self._seq_len)

    def batch(self, first: int, count: int) -> dict[str, Tensor]:
        """Rows `first` to `first + count - 1` of the whole run, as arguments of `AutoregressiveWrapper`, [B, T] each."""
        return self.rows([self._place(index) for index in range(first, first + count)])

    def rows(self, places: Sequence[int]) -> dict[str, Tensor]:
        """Rows by their number: tokens, labels and document_ids [B, T]."""
        shape = len(places), self._seq_len
        tokens, labels = np.full(shape, PADDING, dtype=np.int64), np.full(shape, NO_TARGET, dtype=np.int64)
        documents = np.zeros(shape, dtype=np.int64)
        for row, place in enumerate(places):
            start = 0
            for document, index in enumerate(self._rows[place]):
                one = self._conversations[index]
                stop = start + len(one)
                tokens[row, start:stop] = one.tokens
                labels[row, start:stop] = np.where(one.targets, one.tokens, NO_TARGET)
                labels[row, start] = NO_TARGET
                documents[row, start:stop] = document
                start = stop
            documents[row, start:] = len(self._rows[place])
        named = {"tokens": tokens, "labels": labels, "document_ids": documents}
        return {name: torch.from_numpy(array) for name, array in named.items()}

    @property
    def fingerprint(self) -> str:
        """Identifies tokens and targets, in their order."""
        digest = hashlib.sha256()
        for one in self._conversations:
            digest.update(len(one).to_bytes(8, "little") + one.tokens.tobytes() + one.targets.tobytes())
        return digest.hexdigest()[:16]

    @property
    def checksum(self) -> int:
        """CRC-32 of every token."""
        total = 0
        for one in self._conversations:
            total = zlib.crc32(one.tokens.data, total)
        return total

    def _place(self, index: int) -> int:
        epoch, place = divmod(index, len(self))
        if epoch != self._epoch:
            random = np.random.Generator(np.random.PCG64([self._seed, epoch]))
            self._epoch, self._order = epoch, random.permutation(len(self))
        return int(self._order[place])


def packed(lengths: Sequence[int], seq_len: int, seed: int) -> list[list[int]]:
    """The conversations of each row. In random order, each goes to the row where it leaves the least room (best fit)."""
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), sorted
    for index in np.random.Generator(np.random.PCG64([seed, len(lengths)])).permutation(len(lengths)):
        length = lengths[index]
        place = bisect.bisect_left(room, (length, -1))
        left, row = room.pop(place) if place < len(room) else (seq_len, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(int(index))
        bisect.insort(room, (left - length, row))
    return rows
