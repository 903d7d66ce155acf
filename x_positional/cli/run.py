"""`x-positional train`: one run on the console, with the next command at its end."""

import shlex
import shutil
import sys
from pathlib import Path

from rich.console import Console

from x_positional.training.config import TrainConfig
from x_positional.training.loop.trainer import Result, say, train

INTERRUPTED = 130


def run_training(config: TrainConfig, *, resume: bool) -> int:
    """Train and report; returns the exit code."""
    console = Console()
    result = train(config, resume=resume, console=console)
    if result.engine.accelerator.is_main_process:
        say(console, *summary(result))
    return INTERRUPTED if result.interrupted else 0


def summary(result: Result) -> list[str]:
    """What was done, where it is, and what to run next."""
    folder, program = shlex.quote(str(result.folder)), command()
    lines = [f"{result.step} steps done in {result.seconds:.0f} s, checkpoint {result.checkpoint}"]
    if result.plot is not None:
        lines.append(f"loss plot {result.plot}")
    if not result.finished:
        lines.append(f"continue: {program} train {folder} --resume")
    lines.append(f"sample:   {program} generate {folder} --prompt 'The '")
    return lines


def command() -> str:
    """How to call the console script from here: by name, or by its path in an environment that is not active."""
    name = "x-positional"
    beside = Path(sys.executable).with_name(name)
    if shutil.which(name) is not None or not beside.is_file():
        return name
    inside = beside.is_relative_to(Path.cwd())
    return shlex.quote(str(beside.relative_to(Path.cwd()) if inside else beside))
