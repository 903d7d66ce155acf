"""`x-positional finetune`: a model trained on conversations, and the commands to run next."""

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from x_positional.cli.hints import command
from x_positional.cli.train import INTERRUPTED
from x_positional.progress import print_lines
from x_positional.training.checkpoints.run_folder import load_run_config
from x_positional.training.config import TrainConfig
from x_positional.training.finetune.base import finetune_config
from x_positional.training.loop.log import LOG, read_curve
from x_positional.training.loop.train import TrainResult, train


def resolved(model: Path, overrides: Mapping[str, Any], *, lora: bool, resume: bool, skip_damaged: bool) -> TrainConfig:
    """The config of a new run from MODEL, or, with `resume`, of the run folder MODEL. Raises UserError."""
    if resume and "run.dir" not in overrides and (model / "checkpoints").is_dir():
        return load_run_config(model, {**overrides, "run.dir": str(model)}, skip_damaged=skip_damaged)
    return finetune_config(str(model), overrides, lora=lora)


def run_finetuning(config: TrainConfig, *, resume: bool, skip_damaged: bool) -> int:
    """Train and report; returns the exit code."""
    console = Console()
    result = train(config, resume=resume, skip_damaged=skip_damaged, console=console)
    if result.engine.processes.main:
        print_lines(console, *summary(result, adapters=config.lora is not None))
    return INTERRUPTED if result.interrupted else 0


def summary(result: TrainResult, *, adapters: bool) -> list[str]:
    """Steps, time, held-out loss before and after, files, and the commands to run next."""
    folder, program = shlex.quote(str(result.folder)), command()
    lines = [f"{result.step} steps done in {result.seconds:.0f} s, checkpoint {result.checkpoint}"]
    steps, losses = read_curve(result.folder / LOG, "validation", "loss")
    if steps and steps[0] == 0:
        lines.append(
            f"held-out loss {losses[0]:.4f} before, {losses[-1]:.4f} after {steps[-1]} steps (nats per token of the answers)"
        )
    if not result.finished:
        lines.append(f"continue: {program} finetune {folder} --resume")
    lines.append(f"reply:    {program} generate {folder} --chat --prompt 'Hello'")
    lines.append(
        f"convert:  {program} convert {folder} OUT   (a folder for transformers{', adapters merged' if adapters else ''})"
    )
    if adapters:
        lines.append(f"adapters: {program} convert {folder} OUT --adapter   (in peft's format)")
    return lines
