"""The folder of one run: what is in it before the first step, what a resume needs, when a checkpoint is kept."""

import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType

import torch
from torch import nn
from typing_extensions import Self

from x_positional.errors import UserError, listed
from x_positional.training.checkpoints.checkpoint import (
    CONFIG,
    Checkpoint,
    checkpoint_folders,
    load_model,
    open_checkpoint,
    prune,
    save_checkpoint,
    unshared,
)
from x_positional.training.checkpoints.state import load_optimizer, optimizer_tensors
from x_positional.training.config import TrainConfig
from x_positional.training.data.corpus import Corpus
from x_positional.training.load import parse_config
from x_positional.training.loop.evaluate import Score


@dataclass(frozen=True)
class Best:
    """The step with the lowest validation loss among the saved ones."""

    step: int
    loss: float


class Session:
    """Reads and writes the checkpoints of one run folder."""

    def __init__(self, config: TrainConfig, corpus: Corpus, *, windows_per_step: int) -> None:
        self.folder = Path(config.run.dir)
        self.root = self.folder / "checkpoints"
        self._config = config
        self._corpus = corpus
        self._best: Best | None = None
        # What decides which windows a step sees: a resumed run must agree in all of it.
        self._order = {
            "data": corpus.fingerprint,
            "seed": config.run.seed,
            "seq_len": config.seq_len,
            "windows_per_step": windows_per_step,
        }

    def write_config(self) -> None:
        """The resolved config beside the checkpoints."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / CONFIG).write_text(self._config_text(), encoding="utf-8")

    def _config_text(self) -> str:
        """Without `stop_after`: it belongs to one session, and the next one goes on past it."""
        run = self._config.run.model_copy(update={"stop_after": None})
        return self._config.model_copy(update={"run": run}).to_yaml()

    def last_saved(self) -> Path | None:
        """The newest whole checkpoint."""
        folders = checkpoint_folders(self.root)
        return folders[-1] if folders else None

    def resume(self, net: nn.Module, optimizer: torch.optim.Optimizer) -> int:
        """Load the newest checkpoint into model and optimizer; returns its step.

        Raises `UserError` when there is none, it is damaged, or it belongs to another model or other data.
        """
        if self.last_saved() is None:
            raise UserError(f"{self.folder} has no checkpoint to resume from; leave out --resume to start the run")
        checkpoint = open_checkpoint(self.folder)
        self._check_same_run(checkpoint)
        load_model(net, checkpoint.model_tensors(), checkpoint.path)
        load_optimizer(net, optimizer, checkpoint.optimizer_tensors(), checkpoint.path)
        best = checkpoint.trainer.get("best")
        self._best = None if best is None else Best(**best)
        return checkpoint.step

    def _check_same_run(self, checkpoint: Checkpoint) -> None:
        problems = []
        for name, now in self._order.items():
            before = checkpoint.trainer["order"].get(name)
            if before != now:
                problems.append(f"{name} was {before} and is now {now}")
        saved = parse_config(checkpoint.config_text(), str(checkpoint.path))
        if saved.model != self._config.model:
            problems.append(f"the model section differs from the one in {checkpoint.path / CONFIG}")
        if checkpoint.step >= self._config.run.steps:
            problems.append(f"it already has {checkpoint.step} of {self._config.run.steps} steps; raise run.steps")
        if problems:
            raise UserError(
                listed(
                    f"{checkpoint.path} cannot be resumed with this config (or start anew in another --run-dir):",
                    problems,
                )
            )

    def save(self, step: int, net: nn.Module, optimizer: torch.optim.Optimizer, score: Score | None) -> Path:
        """Write the checkpoint of `step` and remove the ones that are no longer kept."""
        if score is not None and (self._best is None or score.loss < self._best.loss):
            self._best = Best(step, score.loss)
        tokenizer = self._corpus.tokenizer
        path = save_checkpoint(
            self.root,
            step,
            model=unshared(net),
            optimizer=optimizer_tensors(net, optimizer),
            trainer={
                "order": self._order,
                "validation": None if score is None else {"loss": score.loss, "tokens": score.tokens, **score.bits},
                "best": None if self._best is None else {"step": self._best.step, "loss": self._best.loss},
                "tokenizer": None if tokenizer is None else tokenizer.name,
                "torch": torch.__version__,
            },
            config_text=self._config_text(),
            tokenizer_file=None if tokenizer is None else tokenizer.file,
        )
        prune(self.root, self._config.run.keep, None if self._best is None else self._best.step)
        return path


def refuse_to_overwrite(config: TrainConfig) -> None:
    """Raises `UserError` when the run folder already holds checkpoints of an earlier run."""
    folders = checkpoint_folders(Path(config.run.dir) / "checkpoints")
    if folders:
        raise UserError(
            f"{config.run.dir} already holds a run up to {folders[-1].name}; add --resume to continue it, "
            "or choose another folder with --run-dir"
        )


class Interrupt:
    """While active, the first Ctrl-C (or SIGTERM) only sets `requested`; a second one stops at once."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, object] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
