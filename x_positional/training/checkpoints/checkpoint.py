"""Checkpoint folders, written atomically: to a temporary folder, flushed to disk, then renamed.

A checkpoint is a folder `step-00000200` with the model (`model.safetensors`, `config.yaml`), the state of training
(`optimizer.safetensors`, `trainer.json`) and, unless text was read as bytes, `tokenizer.json`. Nothing is pickled.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from x_positional.errors import UserError

FORMAT = "x_positional checkpoint"
VERSION = 1
MODEL, OPTIMIZER, CONFIG, TRAINER, TOKENIZER = (
    "model.safetensors",
    "optimizer.safetensors",
    "config.yaml",
    "trainer.json",
    "tokenizer.json",
)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint folder whose `trainer.json` has been read; tensors are loaded on request."""

    path: Path
    step: int
    trainer: dict[str, Any]

    def model_tensors(self) -> dict[str, Tensor]:
        """Parameters of the model by name; raises `UserError` if the file is missing or damaged."""
        return self._tensors(MODEL)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Optimizer state by name; raises `UserError` if the file is missing or damaged."""
        return self._tensors(OPTIMIZER)

    def config_text(self) -> str:
        """The resolved config of the run, as YAML."""
        return self._verified(CONFIG).read_text(encoding="utf-8")

    def _tensors(self, name: str) -> dict[str, Tensor]:
        file = self._verified(name)
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"cannot read {file} as safetensors: {error}") from error

    def _verified(self, name: str) -> Path:
        """The file, if its digest is the one in `trainer.json`."""
        file = self.path / name
        if not file.is_file():
            raise UserError(f"{self.path} is damaged: {name} is missing. {self._fallback()}")
        if _digest(file) != self.trainer["files"].get(name):
            raise UserError(f"{self.path} is damaged: the digest of {name} does not match. {self._fallback()}")
        return file

    def _fallback(self) -> str:
        others = [other for other in checkpoint_folders(self.path.parent) if other != self.path]
        if not others:
            return "This run has no other checkpoint."
        return f"The newest other checkpoint is {others[-1]}; delete the damaged folder to continue from there."


def save_checkpoint(
    root: Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Tensor],
    trainer: Mapping[str, Any],
    config_text: str,
    tokenizer_file: Path | None = None,
) -> Path:
    """Write `root/step-…` so that after a crash the checkpoint is either complete or absent.

    Args:
        root: Folder of the run's checkpoints.
        step: Optimizer steps done.
        model: Parameters by name.
        optimizer: Optimizer state by name.
        trainer: Further entries of `trainer.json`.
        config_text: The resolved config as YAML.
        tokenizer_file: A `tokenizer.json` to copy into the checkpoint.

    Returns:
        The folder of the checkpoint.

    Raises:
        UserError: The folder exists already: a non-empty folder cannot be replaced atomically.
    """
    final = root / f"step-{step:08d}"
    if final.exists():
        raise UserError(f"{final} already exists, and checkpoints are never overwritten; move or delete it")
    temporary = root / f".tmp-{final.name}-{os.getpid()}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_file(dict(model), temporary / MODEL, metadata={"format": "pt", "x_positional": str(VERSION)})
    save_file(dict(optimizer), temporary / OPTIMIZER, metadata={"format": "pt"})
    (temporary / CONFIG).write_text(config_text, encoding="utf-8")
    if tokenizer_file is not None:
        shutil.copyfile(tokenizer_file, temporary / TOKENIZER)
    digests = {file.name: _digest(file) for file in sorted(temporary.iterdir())}
    record = {"format": FORMAT, "version": VERSION, "step": step, "files": digests, **trainer}
    (temporary / TRAINER).write_text(json.dumps(record, indent=1), encoding="utf-8")
    for file in temporary.iterdir():
        _flush_file(file)
    _flush_folder(temporary)
    temporary.rename(final)
    _flush_folder(root)
    return final


def open_checkpoint(path: Path) -> Checkpoint:
    """Open a checkpoint folder, or the newest checkpoint of a run folder.

    Raises:
        UserError: There is no checkpoint, or x_positional did not write it, or a newer version of it did.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; pass a run folder or one of its checkpoints")
    if not (path / TRAINER).is_file():
        folders = checkpoint_folders(path / "checkpoints")
        if not folders:
            found = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
            raise UserError(
                f"no x_positional checkpoint in {path}: expected {TRAINER} or checkpoints/step-…, found {found}"
            )
        path = folders[-1]
    return Checkpoint(path, *_read_trainer(path))


def _read_trainer(path: Path) -> tuple[int, dict[str, Any]]:
    try:
        record = json.loads((path / TRAINER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {path / TRAINER}: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path} is not an x_positional checkpoint: its {TRAINER} lacks format={FORMAT!r}")
    if record["version"] > VERSION:
        raise UserError(
            f"{path} has checkpoint format version {record['version']}; this x_positional reads up to version {VERSION}. "
            "Upgrade x_positional."
        )
    return record["step"], record


def checkpoint_folders(root: Path) -> list[Path]:
    """Complete checkpoints under `root`, oldest first. Leftovers of a crash have hidden names and are ignored."""
    return sorted(folder for folder in root.glob("step-*") if folder.is_dir())


def prune(root: Path, keep: int, best: int | None) -> None:
    """Delete all checkpoints but the newest `keep` and that of step `best`, and the leftovers of crashes.

    A checkpoint is renamed before it is deleted, so that a crash leaves no part of one under its name.
    """
    for folder in checkpoint_folders(root)[:-keep]:
        if best is None or folder.name != f"step-{best:08d}":
            folder.rename(root / f".tmp-old-{folder.name}-{os.getpid()}")
    _flush_folder(root)
    for leftover in root.glob(".tmp-*"):
        shutil.rmtree(leftover)


def _digest(file: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with file.open("rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def _flush_file(file: Path) -> None:
    with file.open("rb+") as stream:
        os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "nt":  # Windows cannot flush a folder, and NTFS journals renames
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
