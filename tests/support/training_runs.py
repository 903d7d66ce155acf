"""Small training runs for the tests of training and of the command line."""

from pathlib import Path
from typing import Any

from x_positional.training.config import TrainConfig

TEXT = b"".join(b"%d plus %d is %d.\n" % (a, b, a + b) for a in range(40) for b in range(13))


def text_file(folder: Path) -> Path:
    file = folder / "sums.txt"
    if not file.exists():  # processes that train together read it while others start
        file.write_bytes(TEXT)
    return file


def raw_config(folder: Path, **run: Any) -> dict[str, Any]:
    """A two-layer byte model with dropout everywhere, on a text of 10 kB, accumulating over two batches."""
    return {
        "model": {
            "num_tokens": 256,
            "max_seq_len": 33,
            "emb_dropout": 0.1,
            "layers": {
                "dim": 24,
                "depth": 2,
                "heads": 3,
                "head_dim": 8,
                "position": "rope",
                "attn": {"dropout": 0.1},
                "ff": {"dropout": 0.1, "mult": 2},
            },
        },
        "data": {"path": str(text_file(folder)), "val_fraction": 0.1},
        "optimizer": {"lr": 5e-3, "warmup_steps": 2},
        "run": {
            "dir": str(folder / "run"),
            "steps": 8,
            "batch_size": 3,
            "accumulate": 2,
            "seed": 7,
            "device": "cpu",
            "log_every": 1,
            "eval_every": 4,
            "save_every": 4,
            **run,
        },
    }


def config(folder: Path, **run: Any) -> TrainConfig:
    return TrainConfig.model_validate(raw_config(folder, **run))
