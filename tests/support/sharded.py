"""Training with sharded parameters, recorded: in one process, and in several that are forked from a program that imports once.

`python -m tests.support.sharded FOLDER all|some` writes `2.json` (and `4.json`), a run, and the exit codes of all processes.
"""

import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.support.generation_models import PAIRS_OF_AXES, SCHEMES
from tests.support.launched import MICRO, WINDOWS, Ragged
from tests.support.training_runs import TEXT, raw_config
from x_positional.cli.main import guarded
from x_positional.cli.train import run_training
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import build_model
from x_positional.training import TrainConfig
from x_positional.training.data.corpus import load_corpus
from x_positional.training.loop import train as train_module
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
PRECISIONS = ("fp32", "fp64")


def form_config(folder: Path, processes: int, precision: str, name: str, **run: Any) -> TrainConfig:
    """The same steps for any number of processes: the windows of a step are divided between them."""
    form, file = FORMS[name], folder / "ids.bin"
    if not file.exists():
        file.write_bytes(TEXT)
    raw = raw_config(folder, steps=12, batch_size=WINDOWS // MICRO // processes, accumulate=MICRO)
    raw["run"] |= {"device": "cpu" if torch.cuda.is_available() else "auto", "precision": precision, "parallel": "fsdp"}
    raw["run"] |= {**form.get("run", {}), **run}
    raw["model"] |= {"num_tokens": 128, "max_seq_len": 17, "emb_dropout": 0.0, **form.get("model", {})}
    del raw["model"]["layers"]["position"]
    raw["model"]["layers"] |= {"attn": {}, "ff": {"mult": 2}, **form["layers"]}
    raw["optimizer"] |= {"clip": 0.5}  # below the norms of these gradients
    raw["data"] |= {"path": str(file), "dtype": "uint8"}
    return TrainConfig.model_validate(raw)


def record(folder: Path, processes: int, precision: str, name: str, steps: int) -> dict[str, Any]:
    """Loss and gradient norm of each step, and how many processes share the parameters."""
    config = form_config(folder, processes, precision, name)
    corpus = load_corpus(config.data, config.model.num_tokens, config.seq_len)
    torch.manual_seed(config.run.seed)
    net = build_model(config.model)
    engine = Engine(net, AutoregressiveWrapper(net), Ragged(corpus.train.tokens, config.seq_len, 3), config)
    found = [engine.step(step) for step in range(steps)]
    held = sum(local(parameter).numel() for parameter in net.parameters())
    return {
        "loss": [loss.item() for loss, _, _ in found],
        "norm": [norm.item() for _, norm, _ in found],
        "held": held / sum(parameter.numel() for parameter in net.parameters()),
    }


def local(tensor: Tensor) -> Tensor:
    """The part of a parameter that this process holds."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


Wanted = Sequence[tuple[str, str, int]]
"""Name, precision and steps of each model."""


def wanted(every_draw: bool) -> Wanted:
    """12 steps of each model in each precision, or of one, and a step of the others."""
    few = list(FORMS) if every_draw else ["a pattern"]
    rest = [] if every_draw else [name for name in FORMS if name not in few]
    return [*((name, p, 12) for name in few for p in PRECISIONS), *((name, "fp64", 1) for name in rest)]


def records(folder: Path, processes: int, models: Wanted) -> dict[str, dict[str, Any]]:
    return {f"{name} {p}": record(folder, processes, p, name, steps) for name, p, steps in models}


def forked(processes: int, action: Callable[[], None]) -> list[int]:
    """The ids of processes that call `action` together, as a launcher would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(processes):
        child = os.fork()
        if child:
            started.append(child)
            continue
        code = 1
        try:
            names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": processes, "LOCAL_WORLD_SIZE": processes}
            os.environ |= {name: str(value) for name, value in names.items()}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
            action()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    return started


def wait(started: Sequence[int]) -> list[int]:
    """The exit codes of processes, negative for signals."""
    return [os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) for process in started]


def record_to_file(folder: Path, processes: int, models: Wanted) -> None:
    found = records(folder, processes, models)
    if os.environ["RANK"] == "0":
        (folder / f"{processes}.json").write_text(json.dumps(found))


def session(folder: Path, name: str, processes: int, *, resume: bool, killed: bool = False, **run: Any) -> list[int]:
    """Exit codes of processes that train the model of `run_of`; what each of them reports is in `NAME-RANK.err`."""

    def action() -> None:
        rank = int(os.environ["RANK"])
        os.dup2(os.open(folder / f"{name}-{rank}.err", os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
        if killed and rank == 1:
            train_module.Engine = Killed
        config = run_of(folder, processes, **{**run, "seed": run.get("seed", 7) + (rank if name == "differ" else 0)})
        guarded(lambda: run_training(config, resume=resume, skip_damaged=False))

    return wait(forked(processes, action))


class Killed(Engine):
    """An engine whose process is killed in step 2, while the others wait for it."""

    def step(self, step: int) -> tuple[Tensor, Tensor, float]:
        if step == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(step)


def run_of(folder: Path, processes: int, **run: Any) -> TrainConfig:
    """A run with 3 steps of 8 windows, for any number of processes."""
    small = {"steps": 3, "save_every": 1, "eval_every": 3, "batch_size": 2, "accumulate": 4 // processes}
    return form_config(folder, processes, "fp64", "a pattern", **{**small, **run})


def main(folder: Path, every_draw: bool) -> None:
    """Records, and a run of which a process is killed in step 2; four processes continue it, and then one."""
    models, codes = wanted(every_draw), {}
    for processes in (2, 4) if every_draw else (2,):  # four train the run below, too
        codes[processes] = wait(forked(processes, lambda n=processes: record_to_file(folder, n, models)))
    codes["differ"] = session(folder, "differ", 2, resume=False, dir=str(folder / "differ"))
    codes["killed"] = session(folder, "killed", 2, resume=False, killed=True)
    codes["four"] = session(folder, "four", 4, resume=True, stop_after=2)
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    import accelerate  # noqa: F401
    import torch._dynamo

    from x_positional.training.loop import sharding  # noqa: F401

    train_module.plot_losses = lambda folder, title: folder  # drawing takes longer than these steps
    main(Path(sys.argv[1]), sys.argv[2] == "all")
