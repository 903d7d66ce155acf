"""Checkpoint folders, written atomically: to a temporary folder, flushed to disk, then renamed.

A checkpoint is a folder `step-00000200` with the model (`model.safetensors`, `config.yaml`), the state of training
(`optimizer.safetensors`, `trainer.json`) and, unless text was read as bytes, `tokenizer.json`. Where processes share the tensors,
the folders `model` and `optimizer` hold a file of each process in place of the two files. Nothing is pickled.
"""

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from x_positional.errors import DamagedCheckpoint, UserError
from x_positional.pretrained.commit import flush_file, flush_folder
from x_positional.pretrained.integrity import (
    CONFIG,
    MODEL,
    MODEL_SHARDS,
    NAME,
    OPTIMIZER,
    OPTIMIZER_SHARDS,
    TRAINER,
    VERSION,
    Damage,
    NotOurs,
    TooNew,
    checkpoint_folders,
    entry,
    fallback,
    file_damage,
    file_digest,
    read_record,
    shard_damage,
    shard_files,
    write_record,
)
from x_positional.pretrained.tensors.shards import Shards
from x_positional.pretrained.tensors.write import save_tensors


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose `trainer.json` has been read; tensors are loaded on request.

    Each file is compared with its digest when it is read.
    """

    path: Path
    step: int
    trainer: dict[str, Any]

    @property
    def shards(self) -> int | None:
        """How many processes share the tensors; None where they are whole."""
        return self.trainer.get("shards")

    def model_tensors(self) -> dict[str, Tensor]:
        """Parameters of the model by name, whole; raises `DamagedCheckpoint`."""
        return self._tensors(MODEL) if self.shards is None else self._gathered(MODEL_SHARDS)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Optimizer state by name, whole; raises `DamagedCheckpoint`."""
        return self._tensors(OPTIMIZER) if self.shards is None else self._gathered(OPTIMIZER_SHARDS)

    def parts(self) -> tuple[Shards, Shards]:
        """The tensors of model and optimizer, to be read in parts; raises `DamagedCheckpoint`. The digests are not compared."""
        if self.shards is None:
            both = self._shards("")
            return both, both
        return self._shards(MODEL_SHARDS), self._shards(OPTIMIZER_SHARDS)

    def tensor_files(self) -> list[str]:
        """The files that hold tensors."""
        if self.shards is None:
            return [MODEL, OPTIMIZER]
        return [name for folder in (MODEL_SHARDS, OPTIMIZER_SHARDS) for name in shard_files(self.trainer, folder)]

    def config_text(self) -> str:
        """The resolved config of the run, as YAML; raises `DamagedCheckpoint`."""
        file = self.verified(CONFIG)
        try:
            return file.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise self.damaged(f"{CONFIG} is not UTF-8 text") from error

    def entry(self, name: str) -> Any:
        """An entry of `trainer.json`; raises `DamagedCheckpoint` where it is missing or has the wrong type."""
        try:
            return entry(self.trainer, name)
        except Damage as damage:
            raise self.damaged(str(damage)) from damage

    def verified(self, name: str) -> Path:
        """A file of the checkpoint, after its digest was found to be that of `trainer.json`."""
        damage = file_damage(self.path, self.trainer, name)
        if damage is not None:
            raise self.damaged(damage)
        return self.path / name

    def _tensors(self, name: str) -> dict[str, Tensor]:
        file = self.verified(name)
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise self.damaged(f"{name} cannot be read as safetensors: {error}") from error

    def _gathered(self, folder: str) -> dict[str, Tensor]:
        for name in shard_files(self.trainer, folder):
            self.verified(name)
        shards = self._shards(folder)
        tensors = {name: torch.empty(shards.shape(name), dtype=shards.dtype(name)) for name in sorted(shards.names())}
        shards.read_into(tensors)
        return tensors

    def _shards(self, folder: str) -> Shards:
        damage = shard_damage(self.path, self.trainer, folder) if folder else None
        if damage is not None:
            raise self.damaged(damage)
        try:
            return Shards(self.path / folder)
        except (SafetensorError, OSError, LookupError) as error:
            raise self.damaged(f"{folder or self.path.name} cannot be read as safetensors: {error}") from error

    def damaged(self, damage: str) -> DamagedCheckpoint:
        """The error for a damaged file, with the way out."""
        return DamagedCheckpoint(f"{self.path} is damaged: {damage}. {fallback(self.path)}")


def save_checkpoint(
    root: Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    trainer: Mapping[str, Any],
    config_text: str,
    write_tokenizer: Callable[[Path], None] | None = None,
) -> Path:
    """Write `root/step-…` so that after a crash the checkpoint is either complete or absent.

    Args:
        root: Folder of the run's checkpoints.
        step: Optimizer steps done.
        model: Parameters by name.
        optimizer: Optimizer state by name.
        trainer: Further entries of `trainer.json`.
        config_text: The resolved config as YAML.
        write_tokenizer: Writes the tokenizer's files to a folder.

    Returns:
        The folder of the checkpoint.

    Raises:
        UserError: The folder exists already: a non-empty folder cannot be replaced atomically.
    """
    final = unused_name(root, step)
    temporary = root / f".tmp-{final.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        save_tensors(model, temporary / MODEL, x_positional="1")
        save_tensors(optimizer, temporary / OPTIMIZER)
        complete(temporary, final, {"step": step, **trainer}, config_text, write_tokenizer)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)  # a full disk needs its space
        raise
    return final


def unused_name(root: Path, step: int) -> Path:
    """The folder of the checkpoint of a step. Raises `UserError` where it exists: it could not be replaced atomically."""
    final = root / f"step-{step:08d}"
    if final.exists():
        raise UserError(f"{final} already exists, and checkpoints are never overwritten; move or delete it")
    return final


def complete(
    temporary: Path,
    final: Path,
    trainer: Mapping[str, Any],
    config_text: str,
    write_tokenizer: Callable[[Path], None] | None,
    digests: Mapping[str, str] | None = None,
) -> None:
    """Add what is not a tensor to the files of a checkpoint, and give the folder its name.

    Args:
        temporary: Holds the tensors.
        final: Its name.
        trainer: Entries of `trainer.json`.
        config_text: As in `save_checkpoint`.
        write_tokenizer: As in `save_checkpoint`.
        digests: Of files that have been flushed to disk.
    """
    (temporary / CONFIG).write_text(config_text, encoding="utf-8")
    if write_tokenizer is not None:
        write_tokenizer(temporary)
    files = [file for file in sorted(temporary.iterdir()) if file.is_file()]
    digests = {**(digests or {}), **{file.name: file_digest(file) for file in files}}
    write_record(temporary, {"files": digests, **trainer})
    for file in [*files, temporary / TRAINER]:
        flush_file(file)
    for folder in [temporary, *(path for path in temporary.iterdir() if path.is_dir())]:
        flush_folder(folder)
    temporary.rename(final)
    flush_folder(final.parent)


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder, or the newest checkpoint of a run folder.

    Raises:
        UserError: There is no checkpoint, or a newer version of x_positional wrote it.
        DamagedCheckpoint: Its `trainer.json` is damaged, or is not that of a checkpoint.
    """
    if not path.is_dir():
        what = "is not a folder" if path.exists() else "does not exist"
        raise UserError(f"{path} {what}; pass a run folder or one of its checkpoints")
    if not (path / TRAINER).exists() and NAME.fullmatch(path.name) is None:
        folders = checkpoint_folders(path / "checkpoints")
        if not folders:
            found = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
            raise UserError(
                f"no x_positional checkpoint in {path}: expected {TRAINER} or checkpoints/step-…, found {found}"
            )
        path = folders[-1]
    try:
        record = read_record(path)
    except TooNew as newer:
        raise UserError(
            f"{path} has checkpoint format version {newer}; this x_positional reads up to version {VERSION}. "
            "Upgrade x_positional."
        ) from newer
    except NotOurs as damage:
        raise DamagedCheckpoint(f"{path} is not an x_positional checkpoint: {damage}. {fallback(path)}") from damage
    except Damage as damage:
        raise DamagedCheckpoint(f"{path} is damaged: {damage}. {fallback(path)}") from damage
    return Checkpoint(path, record["step"], record)


def prune(root: Path, keep: int, best: int | None) -> None:
    """Delete all checkpoints but the newest `keep` and that of step `best`, and the leftovers of crashes.

    A checkpoint is renamed before it is deleted, so that a crash leaves no part of one under its name.
    """
    for folder in checkpoint_folders(root)[:-keep]:
        if best is None or folder.name != f"step-{best:08d}":
            folder.rename(root / f".tmp-old-{folder.name}-{os.getpid()}")
    flush_folder(root)
    for leftover in root.glob(".tmp-*"):
        shutil.rmtree(leftover)
