"""Fine-tuning for the target length, with the training loop that `x-positional train` uses."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from x_positional.config.models import ModelConfig, plain
from x_positional.evidence.extension.rebuild import with_config
from x_positional.models.language import TransformerWrapper
from x_positional.pretrained.api import load_source
from x_positional.pretrained.integrity import checkpoint_folders
from x_positional.pretrained.source import open_source
from x_positional.training.checkpoints.checkpoint import open_checkpoint
from x_positional.training.config import DataConfig, TrainConfig
from x_positional.training.finetune.base import FULL_LR, LORA_LR
from x_positional.training.load import config_of_fields
from x_positional.training.loop.train import train

TOKENS_PER_STEP = 8192
"""Tokens of one optimizer step, unless one window has more."""
START = "start"
"""Folder of the model that a run starts from, beside the run."""


@dataclass(frozen=True)
class Tuning:
    """How long and on what."""

    tokens: int
    """Tokens to train on; whole steps, at least one."""
    target: int
    """The length to train for."""
    window: int
    """Tokens in a training window: the target, or fewer, whose positions are drawn up to the target (PoSE)."""
    data: DataConfig
    """The text."""
    lora: bool = False
    """Train adapters in place of all parameters."""
    device: str = "auto"

    @property
    def batch(self) -> int:
        """Windows in a step."""
        return max(1, TOKENS_PER_STEP // self.window)

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return max(1, round(self.tokens / (self.batch * self.window)))

    @property
    def trained(self) -> int:
        """The tokens of these steps."""
        return self.steps * self.batch * self.window

    def config(self, model: ModelConfig, folder: Path) -> TrainConfig:
        """The run in `folder`, which starts from its neighbour `start`. Raises UserError with every problem."""
        optimizer = {"lr": LORA_LR if self.lora else FULL_LR, "betas": [0.9, 0.999], "weight_decay": 0.0}
        run = {
            "dir": str(folder),
            "steps": self.steps,
            "batch_size": self.batch,
            "device": self.device,
            "eval_every": self.steps,
            "save_every": min(50, self.steps),
            "log_every": 1,
        }
        text = self.data.model_dump(exclude_unset=True, exclude={"positions", "pose_chunks"})
        positions = {"positions": "pose"} if self.window < self.target else {}
        raw: dict[str, Any] = {
            "model": plain(model),
            "init": {"source": str(folder.with_name(START))},
            "data": {**text, **positions, "seq_len": self.window},
            "optimizer": optimizer,
            "run": run,
            **({"lora": {}} if self.lora else {}),
        }
        return config_of_fields(raw, {}, "fine-tuning")


def tuned(model: TransformerWrapper, tuning: Tuning, folder: Path, console: Console) -> TransformerWrapper | None:
    """The model after fine-tuning in `folder`, continued where an earlier session ended; None where this one was interrupted.

    Args:
        model: The extended model. Its own parameters stay as they are.
        tuning: How long and on what.
        folder: The run. The model that it starts from is written beside it.
        console: Shows progress.

    Raises:
        UserError: The data do not suffice, or the run cannot be written or continued.
    """
    # dynamic NTK keeps the trained length as the model's; positions reach the target length
    longer = model.config.model_copy(update={"max_seq_len": max(model.config.max_seq_len, tuning.target)})
    with_config(model, longer).save_pretrained(folder.with_name(START), format="native")
    earlier = checkpoint_folders(folder / "checkpoints")
    if not earlier or open_checkpoint(earlier[-1]).step < tuning.steps:
        result = train(tuning.config(longer, folder), resume=bool(earlier), console=console)
        if result.interrupted:
            return None
        del result  # the optimizer's state
    parameter = next(model.parameters())
    found = load_source(open_source(folder), torch.float32).to(device=parameter.device, dtype=parameter.dtype)
    found.origin = model.origin
    return with_config(found, model.config).eval()
