"""The folder of one run: its lock, its config, and saving, resuming and pruning its checkpoints."""

import itertools
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

from x_positional.errors import UserError, import_extra, listed
from x_positional.pretrained.integrity import TOKENIZER, checkpoint_folders, newest_good
from x_positional.training.checkpoints.checkpoint import (
    CONFIG,
    Checkpoint,
    open_checkpoint,
    prune,
    save_checkpoint,
)
from x_positional.training.checkpoints.sharded import restore, save_sharded
from x_positional.training.checkpoints.state import load_model, load_optimizer, model_tensors, optimizer_tensors
from x_positional.training.config import TrainConfig
from x_positional.training.data.corpus import Corpus
from x_positional.training.evaluate import Score
from x_positional.training.finetune.base import source_fingerprint
from x_positional.training.finetune.dataset import Conversations
from x_positional.training.load import load_config, parse_config
from x_positional.training.loop.processes import Processes

LOCK = ".lock"


@dataclass(frozen=True)
class Best:
    """The saved step with the lowest validation loss."""

    step: int
    loss: float


class RunFolder:
    """Config and checkpoints of one run.

    Args:
        config: The run; `run.dir` is the folder.
        corpus: Its data.
        windows_per_step: Training windows of one optimizer step, over all processes.
        processes: Those that train.
    """

    def __init__(
        self, config: TrainConfig, corpus: Corpus | Conversations, *, windows_per_step: int, processes: Processes
    ) -> None:
        self._processes = processes
        self.path = Path(config.run.dir)
        self._checkpoints = self.path / "checkpoints"
        self._config = config
        self._corpus = corpus
        self._best: Best | None = None
        # These decide which windows and which dropout a step sees, so they must be equal when a run is resumed.
        self._order = {
            "data": corpus.fingerprint,
            "data_crc32": corpus.checksum,
            "seed": config.run.seed,
            "seq_len": config.seq_len,
            "windows_per_step": windows_per_step,
            "batch_size": config.run.batch_size,
            "accumulate": config.run.accumulate,
        }
        if config.init is not None:
            self._order["init"] = source_fingerprint(config.init.source)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes out of the folder, which is created.

        Raises:
            UserError: Another process trains in this folder, or it cannot be created.
        """
        filelock = import_extra("filelock", "training needs", "train")
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"run.dir={self._config.run.dir!r} is a file; choose a folder with --run-dir")
        self.path.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(self.path / LOCK, timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            raise UserError(
                f"another process is training in {self.path}; wait until it ends, or choose another folder with --run-dir"
            ) from error
        except NotImplementedError as error:
            raise UserError(
                f"{self.path} is on a file system without locks; choose another one with --run-dir"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def write_config(self) -> None:
        """Write the resolved config to `config.yaml`, whole or not at all."""
        temporary = self.path / f".tmp-{CONFIG}-{os.getpid()}"
        try:
            temporary.write_text(self._config_text, encoding="utf-8")
            temporary.replace(self.path / CONFIG)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(f"cannot write {self.path / CONFIG}: {error.strerror}") from error

    @cached_property
    def _config_text(self) -> str:
        """The config without `stop_after`, which applies to one session only."""
        run = self._config.run.model_copy(update={"stop_after": None})
        return self._config.model_copy(update={"run": run}).to_yaml()

    def last_saved(self) -> Path | None:
        """The newest complete checkpoint."""
        folders = checkpoint_folders(self._checkpoints)
        return folders[-1] if folders else None

    def resume(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the newest checkpoint into model and optimizer; returns its step.

        Raises:
            UserError: There is no checkpoint, it is damaged, or it belongs to another model or to other data.
        """
        self.require_checkpoint()
        checkpoint = open_checkpoint(self.path)
        self._check_same_run(checkpoint)
        if self._corpus.tokenizer_name == TOKENIZER:
            checkpoint.verified(TOKENIZER)
        if self._processes.sharded or checkpoint.shards is not None:
            restore(checkpoint, net, optimizer, self._processes)
        else:
            load_model(net, checkpoint.model_tensors(), checkpoint.path)
            load_optimizer(net, optimizer, checkpoint.optimizer_tensors(), checkpoint.path)
        best = checkpoint.entry("best")
        self._best = None if best is None else Best(best["step"], best["loss"])
        return checkpoint.step

    def require_checkpoint(self) -> None:
        """Raise `UserError` if there is nothing to resume from."""
        if self.last_saved() is None:
            raise UserError(f"no checkpoint to resume from in {self.path}; omit --resume to start the run")

    def set_damaged_aside(self) -> list[Path]:
        """Rename the damaged checkpoints that are newer than the newest good one; returns their new names.

        Raises:
            UserError: No checkpoint is good, or the newest good one belongs to another run.
        """
        good = newest_good(self._checkpoints)
        if good is None:
            raise UserError(f"all checkpoints in {self._checkpoints} are damaged; start again in another --run-dir")
        self._check_same_run(open_checkpoint(good))
        folders = checkpoint_folders(self._checkpoints)
        return [_set_aside(folder) for folder in folders[folders.index(good) + 1 :]]

    def _check_same_run(self, checkpoint: Checkpoint) -> None:
        problems = []
        order = checkpoint.entry("order")
        # Other processes may divide the windows of a step in another way.
        divided = {"batch_size", "accumulate"} if _processes(order) != _processes(self._order) else set()
        for name, now in self._order.items():
            if name in divided:
                continue
            if name == "init" and order.get(name) != now:
                problems.append("init.source is another model than the one that the run started from")
            elif order.get(name) != now and not (name in ADDED and name not in order):
                problems.append(f"{name} is {now}; the checkpoint has {order.get(name)}")
        saved = parse_config(checkpoint.config_text(), str(checkpoint.path))
        precisions = self._config.run.precision, saved.run.precision
        if precisions.count("fp64") == 1:
            problems.append(f"precision is {precisions[0]}; the checkpoint has {precisions[1]}")
        for name in ("positions", "pose_chunks"):
            before, now = (getattr(config.data, name) for config in (saved, self._config))
            if before != now:
                problems.append(f"data.{name} is {now}; the checkpoint has {before}")
        if saved.lora != self._config.lora:
            problems.append(f"the lora section differs from that of {checkpoint.path / CONFIG}")
        if saved.model != self._config.model:
            problems.append(f"the model section differs from that of {checkpoint.path / CONFIG}")
        if checkpoint.step >= self._config.run.steps:
            problems.append(
                f"the checkpoint is at step {checkpoint.step} of run.steps={self._config.run.steps}; raise run.steps"
            )
        if problems:
            raise UserError(
                listed(
                    f"cannot resume {checkpoint.path} with this config (to start a new run, choose another --run-dir):",
                    problems,
                )
            )

    def save(self, step: int, net: nn.Module, optimizer: torch.optim.Optimizer, score: Score | None) -> None:
        """Write the checkpoint of `step` and delete those that are no longer kept. Every process must call this.

        Raises:
            UserError: It cannot be written, for example because the disk is full. Older checkpoints are intact.
            MainProcessFailed: In the other processes, where the main one could not write.
        """
        if score is not None and (self._best is None or score.loss < self._best.loss):
            self._best = Best(step, score.loss)
        try:
            self._save(step, net, optimizer, score)
        except (OSError, SafetensorError) as error:
            last = self.last_saved()
            kept = "No earlier checkpoint exists." if last is None else f"The newest checkpoint is {last}."
            raise UserError(
                f"cannot write the checkpoint of step {step} in {self._checkpoints}: {_reason(error)}. {kept} Free space, "
                "then continue with --resume."
            ) from error

    def _save(self, step: int, net: nn.Module, optimizer: torch.optim.Optimizer, score: Score | None) -> None:
        trainer = {
            "order": self._order,
            "validation": None if score is None else {"loss": score.loss, "tokens": score.tokens, **score.bits},
            "best": None if self._best is None else {"step": self._best.step, "loss": self._best.loss},
            "tokenizer": self._corpus.tokenizer_name,
            "document_end": self._corpus.document_end,
            "torch": torch.__version__,
        }
        texts: Any = {
            "trainer": trainer,
            "config_text": self._config_text,
            "write_tokenizer": self._corpus.write_tokenizer,
        }

        def save_whole() -> None:
            model, moments = model_tensors(net), optimizer_tensors(net, optimizer)
            save_checkpoint(self._checkpoints, step, model=model, optimizer=moments, **texts)

        if self._processes.sharded:
            save_sharded(self._checkpoints, step, net, optimizer, self._processes, **texts)
        else:
            self._processes.on_main(save_whole)
        best = None if self._best is None else self._best.step
        self._processes.on_main(lambda: prune(self._checkpoints, self._config.run.keep, best))


ADDED = ("data_crc32", "batch_size", "accumulate")
"""Entries of `order` that checkpoints of format version 1 lack."""


def _processes(order: Mapping[str, Any]) -> float | None:
    """How many processes trained; None for checkpoints of format version 1."""
    windows, batch, accumulate = (order.get(name) for name in ("windows_per_step", "batch_size", "accumulate"))
    return None if windows is None or batch is None or accumulate is None else windows / (batch * accumulate)


def _reason(error: Exception) -> str:
    """`No space left on device`, also from safetensors, which does not raise OSError."""
    return getattr(error, "strerror", None) or str(error)


def _set_aside(folder: Path) -> Path:
    """Rename a checkpoint so that it is no longer one."""
    numbers = itertools.count()
    free = (folder.with_name(f"damaged-{folder.name}{f'-{n}' if n else ''}") for n in numbers)
    return folder.rename(next(name for name in free if not name.exists()))


def load_run_config(folder: Path, overrides: Mapping[str, Any], *, skip_damaged: bool) -> TrainConfig:
    """The config of a run folder. Where its file is damaged and `skip_damaged` is set: that of the newest good checkpoint.

    Raises `UserError` with the problems of file and overrides.
    """
    try:
        return load_config(folder / CONFIG, overrides)
    except UserError as problem:
        good = newest_good(folder / "checkpoints")
        if good is None or _is_config(folder):
            raise
        if skip_damaged:
            return load_config(good / CONFIG, overrides)
        raise UserError(
            f"{problem}\nThe newest good checkpoint is {good}, with the config of the run; --resume --skip-damaged "
            "continues from there."
        ) from problem


def _is_config(folder: Path) -> bool:
    try:
        load_config(folder / CONFIG)
    except UserError:
        return False
    return True


def refuse_to_overwrite(config: TrainConfig) -> None:
    """Raise `UserError` if the run folder already has checkpoints."""
    folders = checkpoint_folders(Path(config.run.dir) / "checkpoints")
    if folders:
        raise UserError(
            f"{config.run.dir} already has checkpoints up to {folders[-1].name}; add --resume to continue that run, "
            "or choose another folder with --run-dir"
        )
