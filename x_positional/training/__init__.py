"""Training decoders on text or token ids: `train(TrainConfig(...))`, and what the command line builds on.

`data/` reads and splits the tokens, `checkpoints/` saves and restores runs, `loop/` trains. Errors are in
`x_positional.errors`.
"""

from x_positional.training.checkpoints.checkpoint import Checkpoint, open_checkpoint
from x_positional.training.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from x_positional.training.evaluate import Score, evaluate
from x_positional.training.finetune.base import finetune_config
from x_positional.training.load import load_config
from x_positional.training.loop.train import TrainResult, train

__all__ = [
    "Checkpoint",
    "DataConfig",
    "OptimizerConfig",
    "RunConfig",
    "Score",
    "TrainConfig",
    "TrainResult",
    "evaluate",
    "finetune_config",
    "load_config",
    "open_checkpoint",
    "train",
]
