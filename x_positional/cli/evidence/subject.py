"""What a command measures: a run or a published model, opened in parts so that problems are found before weights are read."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from x_positional.cli.generate import checkpoint_tokenizer, load_net
from x_positional.cli.published import checkpoint_of, descends_from_published, is_published, loaded, opened
from x_positional.config.models import ModelConfig
from x_positional.errors import UserError
from x_positional.evidence.evaluation.passkey import Codec
from x_positional.evidence.evaluation.text import Encode, HeldOut, embedded, of_path, of_run
from x_positional.models.language import TransformerWrapper
from x_positional.pretrained.api import config_of
from x_positional.pretrained.source import Source
from x_positional.pretrained.tokenizers.text import TextTokenizer
from x_positional.progress import Track
from x_positional.training.checkpoints.checkpoint import Checkpoint
from x_positional.training.config import DataConfig
from x_positional.training.cpu import resolve_device
from x_positional.training.data.tokenizer import Tokenizer
from x_positional.training.load import parse_config


@dataclass(frozen=True)
class Subject:
    """A model and its text, before either is read."""

    name: str
    path: Path
    """The folder or file of the weights."""
    config: ModelConfig
    trained_length: int
    published: bool
    from_hub: bool
    encode: Encode | None
    """Text to ids; None for a run on token ids."""
    end: int | None
    """Id after each document."""
    start_token: int | None
    """Id at the start of every text, for models that have one."""
    codec: Codec | None
    own_text: Callable[[Track], HeldOut]
    """The validation split of a run, or the held-out part of the embedded text."""
    load: Callable[[], TransformerWrapper]
    data: DataConfig | None = None
    """What a run was trained on; None for a published model."""

    def text(self, data: Path | None, track: Track) -> HeldOut:
        """The text to score: `data`, or else the model's own. Raises UserError, also for ids that the model lacks."""
        found = self.own_text(track) if data is None else of_path(data, self.encode, self.end, track)
        found.check_ids(self.config.num_tokens)
        return found


def open_subject(path: Path, console: Console, *, device: str, dtype: str | None = None) -> Subject:
    """Open a run, a published model, a GGUF file or a name on the Hub. Raises UserError and PretrainedError."""
    if is_published(path) or descends_from_published(path):
        return _published(path, opened(path, console), console, device, dtype)
    if dtype is not None:
        raise UserError(
            f"--dtype needs a published model, but {path} is neither a folder with config.json nor a GGUF file"
        )
    return _run(path, checkpoint_of(path), device)


def _published(path: Path, source: Source, console: Console, device: str, dtype: str | None) -> Subject:
    config = config_of(source)
    if not isinstance(config, ModelConfig) or config.layers.kind != "decoder":
        kind = source.config.get("model_type")
        raise UserError(f"{source.path} contains a {kind} model, which does not predict the next token")
    tokenizer = source.tokenizer()
    encode, end = encoder(tokenizer), tokenizer.ends[0] if tokenizer.ends else None
    return Subject(
        name=source.path.name if path.exists() else str(path),
        path=source.path,
        config=config,
        trained_length=config.max_seq_len,
        published=True,
        from_hub=not path.exists(),
        encode=encode,
        end=end,
        start_token=first_token(tokenizer),
        codec=tokenizer,
        own_text=lambda track: embedded(encode, end, track),
        load=lambda: loaded(source, console, dtype or _default_dtype(device), resolve_device(device)),
    )


def _default_dtype(device: str) -> str | None:
    """float32 on a CPU, where 16 bits are slow and inexact; None elsewhere, as stored."""
    return "float32" if resolve_device(device) == "cpu" else None


def _run(path: Path, checkpoint: Checkpoint, device: str) -> Subject:
    config = parse_config(checkpoint.config_text(), str(checkpoint.path))
    tokenizer = checkpoint_tokenizer(checkpoint)
    data = config.data
    if tokenizer is not None and tokenizer.file is not None:  # the run's own copy
        ending = {"tokenizer": str(tokenizer.file), "document_end": tokenizer.document_end}
        data = data.model_copy(update=ending)
    return Subject(
        name=path.resolve().name,
        path=checkpoint.path,
        config=config.model,
        trained_length=config.seq_len,
        published=False,
        from_hub=False,
        encode=None if tokenizer is None else tokenizer.encode,
        end=None if tokenizer is None else tokenizer.document_end,
        start_token=None,
        codec=None if tokenizer is None else RunCodec(tokenizer),
        own_text=lambda track: of_run(data, config.model.num_tokens, config.seq_len, track),
        load=lambda: load_net(checkpoint, device),
        data=data,
    )


def encoder(tokenizer: TextTokenizer) -> Encode:
    """Text in UTF-8 to ids, without the tokens that begin or end a text."""
    return lambda text: tokenizer.encode(text.decode("utf-8", errors="replace"), special=False)


def first_token(tokenizer: TextTokenizer) -> int | None:
    """The id that the tokenizer puts before every text; None where it puts none."""
    bare, whole = tokenizer.encode("a", special=False), tokenizer.encode("a")
    return whole[0] if whole[:1] != bare[:1] else None


@dataclass(frozen=True)
class RunCodec:
    """The tokenizer of a run, for text in both directions."""

    tokenizer: Tokenizer

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text.encode()).tolist()

    def decode(self, ids: Sequence[int]) -> str:
        decoder = self.tokenizer.decoder()
        return "".join(map(decoder.feed, ids)) + decoder.finish()
