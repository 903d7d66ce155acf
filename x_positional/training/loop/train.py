"""A training run from config to result: check the model, read the data, train, save."""

import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from x_positional.config.validate import Report, check
from x_positional.errors import MissingExtra, UserError, listed
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.describe import position_words
from x_positional.models.language import TransformerWrapper, build_model
from x_positional.progress import print_lines, progress_bars
from x_positional.training.checkpoints.run_folder import RunFolder, refuse_to_overwrite
from x_positional.training.config import TrainConfig
from x_positional.training.data.corpus import Corpus, load_corpus
from x_positional.training.data.windows import Windows
from x_positional.training.evaluate import Score
from x_positional.training.loop.engine import Engine
from x_positional.training.loop.interrupt import Interrupt
from x_positional.training.loop.log import RunLog
from x_positional.training.loop.loss_plot import plot_losses
from x_positional.training.loop.meter import Meter
from x_positional.training.loop.training_loop import TrainingLoop


@dataclass(frozen=True)
class TrainResult:
    """What `train` did."""

    folder: Path
    """The run folder."""
    step: int
    """Optimizer steps done, including those of earlier sessions."""
    finished: bool
    """Whether all of `run.steps` are done."""
    interrupted: bool
    """Whether Ctrl-C or SIGTERM ended the session."""
    checkpoint: Path | None
    """The newest checkpoint."""
    validation: Score | None
    """The last validation of this session."""
    seconds: float
    """Wall-clock time of this session."""
    plot: Path | None
    """The loss plot; None without matplotlib."""
    engine: Engine
    net: TransformerWrapper
    corpus: Corpus


def check_trainable(config: TrainConfig) -> Report:
    """The validator's report for training this model on this device; raises `UserError` with every error in it."""
    device = config.run.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    report = check(
        config.model, device=device, train=True, dtype="float64" if config.run.precision == "fp64" else None
    )
    if report.errors:
        raise UserError(listed("this model cannot be trained:", report.errors))
    return report


def train(config: TrainConfig, *, resume: bool = False, console: Console | None = None) -> TrainResult:
    """Train a model. Nothing is written before model, data and device have been checked.

    Args:
        config: The run.
        resume: Continue the run in `config.run.dir` from its newest checkpoint.
        console: Shows progress; None is silent.

    Raises:
        UserError: The model, the data, the device or the run folder cannot be used.
        NonFiniteLoss: The loss or a gradient became NaN or infinite.
    """
    console = Console(quiet=True) if console is None else console
    began = time.monotonic()
    report = check_trainable(config)
    if not resume:
        refuse_to_overwrite(config)
    corpus = load_corpus(config.data, config.model.num_tokens, config.seq_len, progress_bars(console))
    torch.manual_seed(config.run.seed)
    net = build_model(config.model)
    windows = Windows(corpus.train.tokens, config.seq_len, config.run.seed)
    engine = Engine(net, AutoregressiveWrapper(net), windows, config)
    if not engine.processes.main:
        console = Console(quiet=True)
    folder = RunFolder(config, corpus, windows_per_step=engine.windows_per_step)
    start = folder.resume(net, engine.optimizer) if resume else 0
    stop = session_end(config, start)
    headline = describe_run(config, engine, report)
    print_lines(
        console, headline, describe_data(corpus, windows), *(f"warning: {warning}" for warning in report.warnings)
    )
    with ExitStack() as stack:
        log = None
        if engine.processes.main:
            folder.write_config()
            log = stack.enter_context(closing(RunLog(folder.path, tensorboard=config.run.tensorboard)))
            log.write("start", start, {"run": headline, "data": corpus.source})
        interrupt = stack.enter_context(Interrupt())
        meter = stack.enter_context(Meter(console, config.run.steps, start))
        loop = TrainingLoop(config, corpus, engine, folder, log, meter)
        done = loop.run(start, stop, interrupt)
        seconds = time.monotonic() - began
        if log is not None:
            log.write("end", done, {"seconds": round(seconds, 1)})
    plot = None if log is None else _plot(folder.path, plot_title(config, engine), console)
    return TrainResult(
        folder=folder.path,
        step=done,
        finished=done == config.run.steps,
        interrupted=interrupt.requested,
        checkpoint=loop.checkpoint,
        validation=loop.score,
        seconds=seconds,
        plot=plot,
        engine=engine,
        net=net,
        corpus=corpus,
    )


def session_end(config: TrainConfig, start: int) -> int:
    """The step at which this session ends; raises `UserError` if `stop_after` is not after its start."""
    run = config.run
    if run.stop_after is None:
        return run.steps
    if run.stop_after <= start:
        raise UserError(
            f"run.stop_after={run.stop_after} is not after step {start}, where this session starts; raise run.stop_after"
        )
    return min(run.steps, run.stop_after)


def describe_run(config: TrainConfig, engine: Engine, report: Report) -> str:
    """One line: scheme, backend and why, dtype, parameter count, trained length."""
    position = position_words(config.model.layers, config.model.max_seq_len)
    parameters = sum(parameter.numel() for parameter in engine.net.parameters())
    dtype = {"bf16": "float32 weights, bfloat16 autocast", "fp32": "float32", "fp64": "float64"}[engine.precision]
    processes = "" if engine.processes.count == 1 else f", {engine.processes.count} processes"
    return (
        f"position {position} | backend {report.backend} ({report.reason}) | {dtype} on {engine.device.type}{processes} | "
        f"{parameters:,} parameters | trained length {config.seq_len}"
    )


def plot_title(config: TrainConfig, engine: Engine) -> str:
    """The title of the loss plot."""
    parameters = sum(parameter.numel() for parameter in engine.net.parameters())
    position = position_words(config.model.layers, config.model.max_seq_len)
    return f"position {position}, {parameters:,} parameters, trained length {config.seq_len}"


def describe_data(corpus: Corpus, windows: Windows) -> str:
    """One line: source and number of tokens."""
    return (
        f"data {corpus.source} | {len(corpus.train.tokens):,} training tokens in {len(windows):,} windows | "
        f"{len(corpus.validation.tokens):,} validation tokens"
    )


def _plot(folder: Path, title: str, console: Console) -> Path | None:
    """The loss plot; without matplotlib only a message, since the run itself succeeded."""
    try:
        return plot_losses(folder, title)
    except MissingExtra as error:
        print_lines(console, str(error))
        return None
