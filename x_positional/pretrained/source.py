"""Where a checkpoint comes from: a folder, a training run, a GGUF file or the Hugging Face Hub; opened once for config, tensors,
tokenizer."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from x_positional.config.reading import parse_yaml
from x_positional.errors import PretrainedError, import_extra
from x_positional.pretrained.commit import open_folder
from x_positional.pretrained.folder import CONFIG, Folder, list_folder, read_text, regular_file
from x_positional.pretrained.gguf.config import architecture_of, config_of
from x_positional.pretrained.gguf.file import GgufFile, GgufTensors
from x_positional.pretrained.gguf.header import is_gguf
from x_positional.pretrained.gguf.tokens import gguf_tokenizer
from x_positional.pretrained.integrity import CONFIG as RUN_CONFIG
from x_positional.pretrained.integrity import (
    MODEL,
    MODEL_SHARDS,
    NAME,
    ORIGIN,
    TOKENIZER,
    TRAINER,
    Damage,
    TooNew,
    checkpoint_folders,
    file_damage,
    newest_good,
    read_record,
    shard_damage,
    shard_files,
)
from x_positional.pretrained.limits import failures
from x_positional.pretrained.native import NATIVE
from x_positional.pretrained.tensors.files import PICKLES, SAFE, Tensors, open_tensors
from x_positional.pretrained.tensors.shards import Shards
from x_positional.pretrained.tokenizers.text import TextTokenizer, byte_tokenizer, folder_tokenizer

T = TypeVar("T")
INIT, LORA = "init", "lora"
"""Sections of a run's config: the model that it started from, and its adapters. Such a checkpoint holds the adapters alone."""
HUB_PATTERNS = ["*.json", "*.safetensors", "*.jinja", "tokenizer.model", "*.txt"]
"""Files that are downloaded from the Hub: never a pickle."""


@dataclass(frozen=True)
class Source:
    """An opened checkpoint. Its parts are read when they are used."""

    path: Path
    """The folder or file."""
    read_config: Callable[[], dict[str, Any]]
    """Reads `config.json`, or its equivalent; see `config`."""
    tensors: Callable[[], Tensors]
    tokenizer: Callable[[], TextTokenizer]

    @cached_property
    def config(self) -> dict[str, Any]:
        """Contents of `config.json`, read once."""
        return self.read_config()


def open_source(source: str | Path) -> Source:
    """Open a folder, a training run, a GGUF file, a folder that contains one, or a model on the Hub. Raises PretrainedError."""
    path = _local_path(source)
    if not path.is_dir():
        if is_gguf(regular_file(path)):
            return _gguf(path)
        raise PretrainedError(f"{path} cannot be read:", [_why_not(path)])
    folder = open_folder(path)
    checkpoint = None if CONFIG in folder.files else checkpoint_of_run(path)
    if checkpoint is not None:
        return _run(checkpoint)
    ggufs = sorted(name for name in folder.files if name.endswith(".gguf"))
    if not ggufs or CONFIG in folder.files:
        return _folder(folder)
    if len(ggufs) == 1:
        return _gguf(regular_file(path / ggufs[0], path))
    raise PretrainedError(f"{path} contains several models:", [f"pass one of the files: {', '.join(ggufs)}."])


def load_tokenizer(source: str | Path) -> TextTokenizer:
    """The tokenizer of a published model or a training run, from anything that `from_pretrained` accepts.

    It has `encode`, `decode`, `decoder()` for streamed ids, and `chat` if the model has a chat template.

    Raises:
        PretrainedError: If there is no tokenizer, or it cannot be rebuilt.
        MissingExtra: If a package is missing.
    """
    return open_source(source).tokenizer()


def _local_path(source: str | Path) -> Path:
    """The path of `source`. A name such as `org/model` is downloaded from the Hub and cached."""
    with failures(f"{source} cannot be read:"):
        path = Path(source).expanduser()
        if path.exists():
            return path
    name = str(source)
    if isinstance(source, Path) or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise PretrainedError(f"{source} cannot be read:", ["no such file or folder."])
    hub = import_extra(
        "huggingface_hub", f"{source} is not a local path; downloading it from the Hub needs", "pretrained"
    )
    try:
        return Path(hub.snapshot_download(name, allow_patterns=HUB_PATTERNS))
    except Exception as error:  # the Hub's client raises many kinds: no such model, no network, no permission
        raise PretrainedError(
            f"{source} cannot be read:", [f"it is not a local path, and downloading it from the Hub failed: {error}"]
        ) from error


def _folder(folder: Folder) -> Source:
    """A folder with config.json and safetensors."""
    path, before = folder.path, folder.state()

    def config() -> dict[str, Any]:
        if CONFIG in folder.files:
            return folder.json(CONFIG)
        raise PretrainedError(
            f"{path} contains no model:",
            [f"it has no {CONFIG}, no GGUF file and no checkpoints/step-… of a run; it contains {folder.listing()}."],
        )

    def tensors() -> Tensors:
        """Files stay readable once they are open, so a model that was not replaced until now is read as a whole."""
        opened = open_tensors(folder)
        if list_folder(path).state() != before:
            raise PretrainedError(f"{path} cannot be read:", ["another process has replaced the model. Load it again."])
        return opened

    return _guarded(Source(path, config, tensors, lambda: folder_tokenizer(folder)))


def checkpoint_of_run(path: Path) -> Path | None:
    """The checkpoint that a folder of `x-positional train` stands for: itself, or the newest in a run; None for other folders."""
    if NAME.fullmatch(path.resolve().name) or (path / TRAINER).is_file():
        return path
    found = checkpoint_folders(path / "checkpoints")
    return found[-1] if found else None


def _run(path: Path) -> Source:
    """A checkpoint of a training run. Each file is compared with its digest before it is read."""

    def record() -> dict[str, Any]:
        try:
            return read_record(path)
        except TooNew as newer:
            raise PretrainedError(
                f"{path} cannot be read:", [f"format version {newer} is newer; upgrade x_positional."]
            ) from newer
        except Damage as damage:
            raise _damaged(path, str(damage)) from damage

    def verified(name: str) -> Path:
        damage = file_damage(path, record(), name)
        if damage is not None:
            raise _damaged(path, damage)
        return regular_file(path / name, path)

    def config() -> dict[str, Any]:
        run = parse_yaml(read_text(verified(RUN_CONFIG)), f"{RUN_CONFIG} of {path}")
        hf = {"model_type": NATIVE, "class": "TransformerWrapper", "model": run.get("model")}
        if (path / ORIGIN).is_file():
            hf[ORIGIN] = json.loads(read_text(verified(ORIGIN)))
        return hf if run.get(LORA) is None else {**hf, LORA: run[LORA], INIT: run.get(INIT)}

    def tensors() -> Tensors:
        if not record().get("shards"):
            verified(MODEL)
            return open_tensors(list_folder(path))
        damage = shard_damage(path, record(), MODEL_SHARDS)
        if damage is not None:
            raise _damaged(path, damage)
        for name in shard_files(record(), MODEL_SHARDS):
            verified(name)
        return Shards(path / MODEL_SHARDS)

    def tokenizer() -> TextTokenizer:
        kind = record().get("tokenizer")
        if kind is None:
            raise PretrainedError(f"{path} has no tokenizer:", ["it was trained on token ids."])
        if kind == TOKENIZER:
            verified(TOKENIZER)
        found = folder_tokenizer(list_folder(path)) if kind == TOKENIZER else byte_tokenizer()
        end = record().get("document_end")
        return found if end is None else replace(found, ends=tuple(dict.fromkeys((end, *found.ends))))

    return _guarded(Source(path, config, tensors, tokenizer))


def _damaged(path: Path, damage: str) -> PretrainedError:
    good = newest_good(path.parent, but=path)
    way_out = "The run has no other good checkpoint." if good is None else f"The newest good checkpoint is {good}."
    return PretrainedError(f"{path} is damaged:", [f"{damage}. {way_out}"])


def _gguf(path: Path) -> Source:
    """A GGUF file, which contains config, tensors and tokenizer."""
    with failures(f"{path} cannot be read as GGUF:"):
        file = GgufFile(path)

    def tensors() -> Tensors:
        heads = source.config["num_attention_heads"]
        return GgufTensors(file, architecture_of(file), heads, source.config.get("num_key_value_heads", heads))

    source = _guarded(Source(path, lambda: config_of(file), tensors, lambda: gguf_tokenizer(file)))
    return source


def _guarded(source: Source) -> Source:
    """The same source, all of whose failures are PretrainedErrors."""

    def guarded(read: Callable[[], T]) -> Callable[[], T]:
        def call() -> T:
            with failures(f"{source.path} cannot be read:"):
                return read()

        return call

    return Source(source.path, guarded(source.read_config), guarded(source.tensors), guarded(source.tokenizer))


def _why_not(path: Path) -> str:
    if path.suffix in PICKLES:
        return SAFE
    if path.suffix == ".safetensors":
        return f"a safetensors file contains no config. Pass the folder with {CONFIG}: {path.parent}"
    return f"it is neither a GGUF file nor a folder with {CONFIG} and safetensors."
