"""The conversations of a run: read, split into training and validation, and packed into rows."""

import hashlib
import math
import os
from dataclasses import dataclass
from pathlib import Path

from x_positional.errors import PretrainedError, UserError
from x_positional.pretrained.commit import open_folder
from x_positional.pretrained.folder import Folder
from x_positional.pretrained.integrity import ORIGIN
from x_positional.pretrained.source import Source
from x_positional.pretrained.tensors.write import write_json
from x_positional.pretrained.tokenizers.text import TOKENIZER, TextTokenizer
from x_positional.pretrained.tokenizers.write import write_tokenizer
from x_positional.progress import Track, silent
from x_positional.training.config import TrainConfig
from x_positional.training.finetune.base import base_source
from x_positional.training.finetune.config import ChatConfig
from x_positional.training.finetune.conversations import Conversation, Reader, fitted
from x_positional.training.finetune.packing import PackedRows
from x_positional.training.loop.processes import launched_processes

ROUND = 64
"""Rows of data.seq_len=None are as long as the longest conversation, rounded up to a multiple of this."""


@dataclass(frozen=True)
class Conversations:
    """Training and validation rows, and the tokenizer that made them."""

    train: PackedRows
    validation: PackedRows
    source: str
    base: Source
    """The model that the run starts from."""
    tokenizer: TextTokenizer
    notes: tuple[str, ...]
    """What was truncated or left out."""
    bytes_per_token: None = None

    @property
    def fingerprint(self) -> str:
        """Identifies the conversations: a resumed run must see the same rows."""
        return f"{self.train.fingerprint}-{self.validation.fingerprint}"

    @property
    def checksum(self) -> str:
        """CRC-32 of every training and validation token."""
        return f"{self.train.checksum:08x}-{self.validation.checksum:08x}"

    @property
    def tokenizer_name(self) -> str:
        """As in the record of a checkpoint."""
        return "bytes" if self.tokenizer.source == "bytes" else TOKENIZER

    @property
    def document_end(self) -> int | None:
        """As in the record of a checkpoint: the token after a completion or a text."""
        return next(iter(self.tokenizer.ends), None)

    def write_tokenizer(self, folder: Path) -> None:
        """Write tokenizer, chat template and the published config.json to the folder of a checkpoint."""
        if self.tokenizer_name == TOKENIZER:
            write_tokenizer(self.tokenizer, folder, _folder(self.base))
        origin = published_config(self.base)
        if origin is not None:
            write_json(folder / ORIGIN, origin)

    def describe(self) -> str:
        """One line: source, conversations and rows."""
        return (
            f"data {self.source} | {self.train.conversations:,} conversations in {len(self.train):,} rows "
            f"({self.train.filled:.0%} filled) | {self.validation.conversations:,} held out"
        )


def published_config(source: Source) -> dict[str, object] | None:
    """The config.json of the published model that a run descends from; None for runs that began with random weights."""
    hf = source.config
    return hf.get(ORIGIN) if "class" in hf else hf


def _folder(source: Source) -> Folder | None:
    return open_folder(source.path) if source.path.is_dir() else None


def load_conversations(config: TrainConfig, track: Track = silent) -> tuple[TrainConfig, Conversations]:
    """The data of `config.data.path`, and the config with the row length that was chosen for them.

    Raises:
        UserError: Lines are malformed or too long, there is no chat template, or nothing to train on or to hold out.
    """
    chat, init = config.chat, config.init
    if chat is None or init is None or config.data.path is None:
        raise UserError("a run on conversations needs chat, init.source and data.path")
    base, file = base_source(init.source), Path(config.data.path)
    try:
        tokenizer = base.tokenizer()
    except PretrainedError as error:
        raise UserError(str(error)) from error
    reader = Reader(tokenizer, chat)
    found = reader.read(file, track)
    held_out = None if chat.validation is None else reader.read(Path(chat.validation), track)
    longest = max(len(one) for _, one in [*found, *(held_out or ())])
    limit = config.data.seq_len
    if limit is None:
        limit = min(config.model.max_seq_len, math.ceil(longest / ROUND) * ROUND)
    kept, notes = fitted(found, limit, chat, file)
    if held_out is None:
        kept, validation = _split(kept, config.data.val_fraction, file)
    else:
        validation, more = fitted(held_out, limit, chat, Path(chat.validation or ""))
        notes += more
    rows = [PackedRows(part, limit, config.run.seed, pack=chat.pack) for part in (kept, validation)]
    corpus = Conversations(rows[0], rows[1], str(file), base, tokenizer, tuple(notes))
    return _resolved(config, chat, limit, len(rows[0])), corpus


def _resolved(config: TrainConfig, chat: ChatConfig, seq_len: int, rows: int) -> TrainConfig:
    """The config with the row length, and with the steps of `chat.epochs` where `run.steps` is not set."""
    fields = {name: getattr(config, name) for name in type(config).model_fields}
    fields["data"] = config.data.model_copy(update={"seq_len": seq_len})
    if "steps" not in config.run.model_fields_set:
        step = config.run.batch_size * config.run.accumulate * max(1, launched_processes(os.environ))
        fields["run"] = config.run.model_copy(update={"steps": max(1, math.ceil(chat.epochs * rows / step))})
    return TrainConfig.model_validate(fields)


def _split(
    conversations: list[Conversation], fraction: float, file: Path
) -> tuple[list[Conversation], list[Conversation]]:
    """(training, validation). A hash of the tokens decides, so that equal conversations are in one part."""
    digests = [hashlib.sha256(one.tokens.tobytes()).digest() for one in conversations]
    border = sorted(digests)[min(len(digests) - 1, max(1, round(fraction * len(digests))))]
    train = [one for one, digest in zip(conversations, digests, strict=True) if digest >= border]
    validation = [one for one, digest in zip(conversations, digests, strict=True) if digest < border]
    if not train or not validation:
        raise UserError(
            f"{file}: {len(conversations)} conversations cannot be split into training and validation; add some, or set "
            "chat.validation to a file"
        )
    return train, validation
