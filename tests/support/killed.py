"""Training that is killed again and again: imports once, then forks a process for each session.

`python -m tests.support.killed FOLDER KILLS SEED` kills sessions at random moments, lets the last one finish, and prints the
number of runs that they belong to.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

import accelerate  # noqa: F401
import filelock  # noqa: F401

from tests.support.training_runs import config
from x_positional.pretrained.integrity import checkpoint_folders
from x_positional.training import TrainConfig, train
from x_positional.training.loop import train as train_module


def run_config(folder: Path) -> TrainConfig:
    """Saves after almost every step, so that many kills hit a save, a rename or a deletion."""
    return config(folder, steps=24, save_every=2, eval_every=8, log_every=1, eval_tokens=33, keep=1)


def session(base: TrainConfig) -> int:
    """Train in a forked process; returns its id."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            train(base, resume=bool(checkpoint_folders(Path(base.run.dir) / "checkpoints")))
            code = 0
        finally:
            os._exit(code)
    return process


def finish(process: int) -> None:
    if os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) != 0:
        sys.exit("a session failed")


def main(folder: Path, kills: int, seed: int) -> None:
    """`folder/whole` is never killed; `folder/0`, `folder/1`, ... are, until `kills` sessions have been."""
    base, draw, runs = run_config(folder), random.Random(seed), 0

    def run(name: object) -> TrainConfig:
        return base.model_copy(update={"run": base.run.model_copy(update={"dir": str(folder / str(name))})})

    train_module.check_trainable(base)  # so that no session has to import what the check needs
    train_module.plot_losses = lambda folder, title: folder  # drawing takes longer than these steps
    began = time.monotonic()
    finish(session(run("whole")))
    longest = (time.monotonic() - began) / 3
    while kills:
        process = session(run(runs))
        time.sleep(draw.uniform(0.0, longest))
        os.kill(process, signal.SIGKILL)
        if os.WIFSIGNALED(os.waitpid(process, 0)[1]):
            kills -= 1
        else:  # it had finished
            runs += 1
    if not (folder / str(runs) / "checkpoints" / f"step-{base.run.steps:08d}").is_dir():
        finish(session(run(runs)))
    print(runs + 1)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
