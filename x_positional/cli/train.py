"""`x-positional train`: one run on the console, and the commands to run next."""

import shlex

from rich.console import Console

from x_positional.cli.hints import command
from x_positional.progress import print_lines
from x_positional.training.config import TrainConfig
from x_positional.training.loop.train import TrainResult, train

INTERRUPTED = 130


def run_training(config: TrainConfig, *, resume: bool, skip_damaged: bool) -> int:
    """Train and report; returns the exit code."""
    console = Console()
    result = train(config, resume=resume, skip_damaged=skip_damaged, console=console)
    if result.engine.processes.main:
        print_lines(console, *summary(result))
    return INTERRUPTED if result.interrupted else 0


def summary(result: TrainResult) -> list[str]:
    """Steps, time and files, and the commands to run next."""
    folder, program = shlex.quote(str(result.folder)), command()
    lines = [f"{result.step} steps done in {result.seconds:.0f} s, checkpoint {result.checkpoint}"]
    if result.plot is not None:
        lines.append(f"loss plot {result.plot}")
    if not result.finished:
        lines.append(f"continue: {program} train {folder} --resume")
    lines.append(f"sample:   {program} generate {folder} --prompt 'The '")
    return lines
