"""A few steps of training, recorded: run in one process, and as the program that torchrun and accelerate start.

`python -m torch.distributed.run ... -m tests.support.launched FOLDER` writes one JSON file.
"""

import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.support.training_runs import raw_config
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import build_model
from x_positional.training import TrainConfig
from x_positional.training.data.corpus import load_corpus
from x_positional.training.data.windows import Windows
from x_positional.training.loop.engine import Engine

STEPS, WINDOWS, MICRO = 12, 8, 2
"""Steps, windows of one step over all processes, and batches that each process accumulates."""
PRECISIONS = ("fp32", "fp64")


class Ragged(Windows):
    """Windows that end early: window i keeps between none and all of its targets."""

    def batch(self, first: int, count: int) -> Tensor:
        rows = super().batch(first, count)
        for row, index in zip(rows, range(first, first + count), strict=True):
            row[1 + (index * 17) % rows.shape[1] :] = -100
        return rows


def run_config(folder: Path, processes: int, precision: str) -> TrainConfig:
    """The same steps for any number of processes: the windows of a step are divided between them."""
    raw = raw_config(folder, steps=STEPS, batch_size=WINDOWS // MICRO // processes, accumulate=MICRO)
    raw["run"] |= {"device": "cpu" if torch.cuda.is_available() else "auto", "precision": precision}
    raw["model"]["emb_dropout"] = 0.0  # each process draws its own
    raw["model"]["layers"] |= {"attn": {}, "ff": {"mult": 2}}
    raw["optimizer"]["clip"] = None  # so that Adam's first moment is the gradient of the first step
    return TrainConfig.model_validate(raw)


def record(folder: Path, processes: int, windows: type[Windows], precision: str) -> dict[str, Any]:
    """Loss of each step, gradients of the first, and how many processes trained."""
    config = run_config(folder, processes, precision)
    corpus = load_corpus(config.data, config.model.num_tokens, config.seq_len)
    torch.manual_seed(config.run.seed)
    net = build_model(config.model)
    engine = Engine(net, AutoregressiveWrapper(net), windows(corpus.train.tokens, config.seq_len, 3), config)
    losses = [engine.step(0)[0].item()]
    share = 1 - config.optimizer.betas[0]
    gradients = {
        name: (engine.optimizer.state[parameter]["exp_avg"] / share).tolist()
        for name, parameter in net.named_parameters()
    }
    losses += [engine.step(step)[0].item() for step in range(1, STEPS)]
    return {"losses": losses, "gradients": gradients, "processes": engine.processes.count}


def records(folder: Path, processes: int) -> dict[str, dict[str, Any]]:
    """Full and ragged windows in each precision."""
    return {
        f"{windows.__name__} {precision}": record(folder, processes, windows, precision)
        for windows in (Windows, Ragged)
        for precision in PRECISIONS
    }


if __name__ == "__main__":
    target = Path(sys.argv[1])
    found = records(target, 2)
    if torch.distributed.get_rank() == 0:
        (target / "records.json").write_text(json.dumps(found))
