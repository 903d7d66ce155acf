"""Checkpoints that are whole or absent: written beside their place, flushed to disk, then renamed.

A checkpoint is a folder `step-00000200` with `model.safetensors`, `config.yaml`, and apart from them the trainer's own
state, `optimizer.safetensors` and `trainer.json` (and `tokenizer.json` where one was used). Nothing is pickled.
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
from torch import Tensor, nn

from x_positional.errors import UserError, listed

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
    """A folder whose `trainer.json` was read and understood; tensors are read when asked for."""

    path: Path
    step: int
    trainer: dict[str, Any]

    def model_tensors(self) -> dict[str, Tensor]:
        """Name -> tensor; raises `UserError` when the file is missing or damaged."""
        return self._tensors(MODEL)

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Name -> tensor; raises `UserError` when the file is missing or damaged."""
        return self._tensors(OPTIMIZER)

    def config_text(self) -> str:
        """The resolved config of the run, as YAML."""
        return self._checked(CONFIG).read_text(encoding="utf-8")

    def _tensors(self, name: str) -> dict[str, Tensor]:
        file = self._checked(name)
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file} cannot be read as safetensors: {error}") from error

    def _checked(self, name: str) -> Path:
        """The file, after comparing it with the digest taken when it was written."""
        file = self.path / name
        wanted = self.trainer["files"].get(name)
        if not file.is_file():
            raise UserError(f"{self.path} is damaged: {name} is missing. {self._way_out()}")
        if wanted != _digest(file):
            raise UserError(f"{self.path} is damaged: {name} is not what was written. {self._way_out()}")
        return file

    def _way_out(self) -> str:
        others = [other for other in checkpoint_folders(self.path.parent) if other != self.path]
        if not others:
            return "There is no other checkpoint beside it."
        return f"The newest other one is {others[-1]}; remove the damaged folder to go on from there."


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
    """Write `root/step-…` so that a crash at any moment leaves it whole or absent; returns the folder.

    Raises `UserError` when there is one of this step already: no folder can be replaced in one move.
    """
    final = root / f"step-{step:08d}"
    if final.exists():
        raise UserError(f"{final} exists already, and checkpoints are never overwritten; move it away")
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
    """A checkpoint folder, or the newest one of a run folder.

    Raises `UserError` when there is none, when it was written by something else, or by a newer version.
    """
    if not path.is_dir():
        raise UserError(f"{path} is not a folder; name a run folder or one of its checkpoints")
    if not (path / TRAINER).is_file():
        folders = checkpoint_folders(path / "checkpoints")
        if not folders:
            found = ", ".join(sorted(file.name for file in path.iterdir())[:5]) or "nothing"
            raise UserError(
                f"{path} holds no checkpoint of x_positional (no {TRAINER}, no checkpoints/step-…); it has {found}"
            )
        path = folders[-1]
    return Checkpoint(path, *_read_trainer(path))


def _read_trainer(path: Path) -> tuple[int, dict[str, Any]]:
    try:
        record = json.loads((path / TRAINER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path / TRAINER} cannot be read: {error}") from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise UserError(f"{path} was not written by x_positional: its {TRAINER} does not say format={FORMAT!r}")
    if record["version"] > VERSION:
        raise UserError(
            f"{path} has format version {record['version']} and this x_positional reads up to {VERSION}; update it"
        )
    return record["step"], record


def checkpoint_folders(root: Path) -> list[Path]:
    """Whole checkpoints under `root`, oldest first. Leftovers of a crash are hidden names and do not count."""
    return sorted(folder for folder in root.glob("step-*") if folder.is_dir())


def prune(root: Path, keep: int, best: int | None) -> None:
    """Remove all but the newest `keep` checkpoints and that of step `best`, and leftovers of crashes."""
    for folder in checkpoint_folders(root)[:-keep]:
        if best is None or folder.name != f"step-{best:08d}":
            shutil.rmtree(folder)
    for leftover in root.glob(".tmp-*"):
        shutil.rmtree(leftover)


def unshared(model: nn.Module) -> dict[str, Tensor]:
    """The state dict with each shared tensor (tied embeddings) once, under its first name."""
    named = dict(model.named_parameters())
    state = model.state_dict(keep_vars=True)
    extra = sorted(name for name, tensor in state.items() if not isinstance(tensor, nn.Parameter))
    if extra:
        raise ValueError(f"only parameters are saved, and the model also holds the buffers {extra}")
    return {name: parameter.detach().contiguous().cpu() for name, parameter in named.items()}


def load_model(model: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Copy `tensors` into the parameters of `model`; raises `UserError` with everything that does not fit."""
    own = dict(model.named_parameters())
    problems = [f"{name} is missing" for name in own if name not in tensors]
    problems += [f"{name} is not a parameter of this model" for name in tensors if name not in own]
    for name in own.keys() & tensors.keys():
        if own[name].shape != tensors[name].shape:
            problems.append(f"{name} has shape {list(tensors[name].shape)}, the model needs {list(own[name].shape)}")
    if problems:
        shown = sorted(problems)[:8]
        more = [f"and {len(problems) - len(shown)} more"] if len(problems) > len(shown) else []
        raise UserError(listed(f"{source} does not fit this model:", [*shown, *more]))
    for name, parameter in own.items():
        parameter.data.copy_(tensors[name])


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
    if os.name == "nt":  # Windows has no way to flush a folder, and renames there are journalled
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
