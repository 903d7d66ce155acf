"""Training on text or token ids: `train(TrainConfig(...))`, and what the command line needs around it."""

from x_positional.training.config import DataConfig, OptimizerConfig, RunConfig, TrainConfig
from x_positional.training.loop.trainer import Result, train

__all__ = [
    "DataConfig",
    "OptimizerConfig",
    "Result",
    "RunConfig",
    "TrainConfig",
    "train",
]
