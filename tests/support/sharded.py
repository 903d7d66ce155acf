"""A few steps of training with sharded parameters, recorded: run in one process, and as a program that torchrun starts.

`python -m torch.distributed.run ... -m tests.support.sharded FOLDER STEPS NAME ...` writes one JSON file.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tests.support.generation_models import PAIRS_OF_AXES, SCHEMES
from tests.support.launched import MICRO, WINDOWS, Ragged
from tests.support.training_runs import raw_config
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import build_model
from x_positional.training import TrainConfig
from x_positional.training.data.corpus import load_corpus
from x_positional.training.loop.engine import Engine

EXPERTS = {"glu": True, "mult": 2, "moe": {"experts": 3, "top_k": 2, "shared": 8, "shared_gate": True}}
LATENT = {"mla": {"kv_rank": 10, "rope_dim": 4, "q_rank": 7}}
RECOMPUTED = {"run": {"activation_checkpointing": "blocks"}}
FORMS: dict[str, dict[str, Any]] = {
    **{name: {"layers": {"position": name, "head_dim": 12 if name in PAIRS_OF_AXES else 8}} for name in SCHEMES},
    "learned slopes": {"layers": {"position": {"kind": "alibi", "learned": True}}, **RECOMPUTED},
    "two schemes": {"layers": {"position": ["t5", "forgetting"]}, **RECOMPUTED},
    "a pattern": {"layers": {"pattern": [{"position": "cope"}, {"position": "t5"}]}, "model": {"tie_embedding": True}},
    "experts": {"layers": {"position": {"kind": "rope", "dim": 4}, "attn": LATENT, "ff": EXPERTS}, **RECOMPUTED},
}
"""Small models: one for each scheme, and others in which layers share parameters or have unusual ones."""
FEW = ("t5", "forgetting", "rope", "a pattern")


def form_config(folder: Path, processes: int, precision: str, name: str) -> TrainConfig:
    """The same steps for any number of processes: the windows of a step are divided between them."""
    form = FORMS[name]
    raw = raw_config(folder, steps=12, batch_size=WINDOWS // MICRO // processes, accumulate=MICRO)
    raw["run"] |= {"device": "cpu" if torch.cuda.is_available() else "auto", "precision": precision, "parallel": "fsdp"}
    raw["run"] |= form.get("run", {})
    raw["model"] |= {"num_tokens": 128, "max_seq_len": 17, "emb_dropout": 0.0, **form.get("model", {})}
    del raw["model"]["layers"]["position"]
    raw["model"]["layers"] |= {"attn": {}, "ff": {"mult": 2}, **form["layers"]}
    raw["optimizer"] |= {"clip": 0.5}  # below the norms of these gradients
    raw["data"] |= {"path": str(folder / "ids.bin"), "dtype": "uint8"}
    return TrainConfig.model_validate(raw)


def record(folder: Path, processes: int, precision: str, name: str, steps: int) -> dict[str, list[float]]:
    """Loss and gradient norm of each step."""
    config = form_config(folder, processes, precision, name)
    corpus = load_corpus(config.data, config.model.num_tokens, config.seq_len)
    torch.manual_seed(config.run.seed)
    net = build_model(config.model)
    engine = Engine(net, AutoregressiveWrapper(net), Ragged(corpus.train.tokens, config.seq_len, 3), config)
    found = [engine.step(step) for step in range(steps)]
    return {"loss": [loss.item() for loss, _, _ in found], "norm": [norm.item() for _, norm, _ in found]}


def records(folder: Path, processes: int, steps: int, names: Sequence[str]) -> dict[str, dict[str, list[float]]]:
    """Each model in each precision."""
    precisions = ("fp32", "fp64")
    return {f"{name} {p}": record(folder, processes, p, name, steps) for name in names for p in precisions}


def main(folder: Path, steps: int, names: Sequence[str]) -> None:
    processes = int(sys.argv[2])
    found = records(folder, processes, steps, names)
    if torch.distributed.get_rank() == 0:
        (folder / f"{processes}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[3]), sys.argv[4:] or list(FORMS))
