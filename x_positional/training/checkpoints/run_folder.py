"""The folder of one run: saving, resuming and pruning its checkpoints."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from x_positional.errors import UserError, listed
from x_positional.training.checkpoints.checkpoint import (
    CONFIG,
    Checkpoint,
    checkpoint_folders,
    open_checkpoint,
    prune,
    save_checkpoint,
)
from x_positional.training.checkpoints.state import load_model, load_optimizer, model_tensors, optimizer_tensors
from x_positional.training.config import TrainConfig
from x_positional.training.data.corpus import Corpus
from x_positional.training.evaluate import Score
from x_positional.training.load import parse_config


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
    """

    def __init__(self, config: TrainConfig, corpus: Corpus, *, windows_per_step: int) -> None:
        self.path = Path(config.run.dir)
        self._checkpoints = self.path / "checkpoints"
        self._config = config
        self._corpus = corpus
        self._best: Best | None = None
        # These decide which windows a step sees, so they must be equal when a run is resumed.
        self._order = {
            "data": corpus.fingerprint,
            "seed": config.run.seed,
            "seq_len": config.seq_len,
            "windows_per_step": windows_per_step,
        }

    def write_config(self) -> None:
        """Write the resolved config to `config.yaml`."""
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / CONFIG).write_text(self._config_text(), encoding="utf-8")

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
        if self.last_saved() is None:
            raise UserError(f"no checkpoint to resume from in {self.path}; omit --resume to start the run")
        checkpoint = open_checkpoint(self.path)
        self._check_same_run(checkpoint)
        load_model(net, checkpoint.model_tensors(), checkpoint.path)
        load_optimizer(net, optimizer, checkpoint.optimizer_tensors(), checkpoint.path)
        best = checkpoint.trainer.get("best")
        self._best = None if best is None else Best(**best)
        return checkpoint.step

    def _check_same_run(self, checkpoint: Checkpoint) -> None:
        problems = []
        for name, now in self._order.items():
            saved_value = checkpoint.trainer["order"].get(name)
            if saved_value != now:
                problems.append(f"{name} is {now}; the checkpoint has {saved_value}")
        saved = parse_config(checkpoint.config_text(), str(checkpoint.path))
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

    def save(self, step: int, net: nn.Module, optimizer: torch.optim.Optimizer, score: Score | None) -> Path:
        """Write the checkpoint of `step` and delete those that are no longer kept."""
        if score is not None and (self._best is None or score.loss < self._best.loss):
            self._best = Best(step, score.loss)
        tokenizer = self._corpus.tokenizer
        path = save_checkpoint(
            self._checkpoints,
            step,
            model=model_tensors(net),
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
        prune(self._checkpoints, self._config.run.keep, None if self._best is None else self._best.step)
        return path


def refuse_to_overwrite(config: TrainConfig) -> None:
    """Raise `UserError` if the run folder already has checkpoints."""
    folders = checkpoint_folders(Path(config.run.dir) / "checkpoints")
    if folders:
        raise UserError(
            f"{config.run.dir} already has checkpoints up to {folders[-1].name}; add --resume to continue that run, "
            "or choose another folder with --run-dir"
        )
