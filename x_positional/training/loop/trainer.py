"""A training run from config to result: read, check, build, train, and leave everything needed to go on."""

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
from x_positional.training.checkpoints.record import Record
from x_positional.training.checkpoints.session import Interrupt, Session, refuse_to_overwrite
from x_positional.training.config import TrainConfig
from x_positional.training.data.corpus import Corpus, load_corpus
from x_positional.training.data.windows import Windows
from x_positional.training.loop.engine import Engine
from x_positional.training.loop.evaluate import Score
from x_positional.training.loop.plot import plot_losses
from x_positional.training.loop.steps import Loop
from x_positional.training.progress import Meter, shown


@dataclass(frozen=True)
class Result:
    """What a session did. `interrupted`: Ctrl-C ended it; `finished`: all of `run.steps` are done."""

    folder: Path
    step: int
    finished: bool
    interrupted: bool
    checkpoint: Path | None
    validation: Score | None
    seconds: float
    plot: Path | None
    engine: Engine
    net: TransformerWrapper
    corpus: Corpus


def checked(config: TrainConfig) -> Report:
    """The validator's report for training this model on this device; raises `UserError` with every error in it."""
    wanted = config.run.device
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    report = check(config.model, device=wanted, train=True)
    if report.errors:
        raise UserError(listed("this model cannot be trained:", report.errors))
    return report


def train(config: TrainConfig, *, resume: bool = False, console: Console | None = None) -> Result:
    """Train as `config` says. Nothing is written before data, model and device were found good.

    Raises `UserError` for what the caller can fix, `NonFiniteLoss` when the loss or a gradient becomes NaN or infinite.
    """
    console = Console(quiet=True) if console is None else console
    began = time.monotonic()
    report = checked(config)
    if not resume:
        refuse_to_overwrite(config)
    corpus = load_corpus(config.data, config.model.num_tokens, config.seq_len, shown(console))
    torch.manual_seed(config.run.seed)
    net = build_model(config.model)
    windows = Windows(corpus.train.tokens, config.seq_len, config.run.seed)
    engine = Engine(net, AutoregressiveWrapper(net), windows, config)
    if not engine.accelerator.is_main_process:
        console = Console(quiet=True)
    session = Session(config, corpus, windows_per_step=engine.windows_per_step)
    start = session.resume(net, engine.optimizer) if resume else 0
    stop = session_end(config, start)
    headline = describe_run(config, engine, report)
    say(console, headline, describe_data(corpus, windows), *(f"warning: {warning}" for warning in report.warnings))
    with ExitStack() as stack:
        record = None
        if engine.accelerator.is_main_process:
            session.write_config()
            record = stack.enter_context(closing(Record(session.folder, tensorboard=config.run.tensorboard)))
            record.write("start", start, {"run": headline, "data": corpus.source})
        interrupt = stack.enter_context(Interrupt())
        meter = stack.enter_context(Meter(console, config.run.steps, start))
        loop = Loop(config, corpus, engine, session, record, meter)
        done = loop.run(start, stop, interrupt)
        seconds = time.monotonic() - began
        if record is not None:
            record.write("end", done, {"seconds": round(seconds, 1)})
    plot = None if record is None else _plot(session.folder, plot_title(config, engine), console)
    finished = done == config.run.steps
    return Result(
        session.folder,
        done,
        finished,
        interrupt.requested,
        loop.checkpoint,
        loop.score,
        seconds,
        plot,
        engine,
        net,
        corpus,
    )


def session_end(config: TrainConfig, start: int) -> int:
    """The step this session ends at; raises `UserError` when `stop_after` is not after its start."""
    run = config.run
    if run.stop_after is None:
        return run.steps
    if run.stop_after <= start:
        raise UserError(
            f"run.stop_after={run.stop_after} is not after step {start}, where this session starts; raise it"
        )
    return min(run.steps, run.stop_after)


def say(console: Console, *lines: str) -> None:
    """Plain lines, whatever signs are in them."""
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def describe_run(config: TrainConfig, engine: Engine, report: Report) -> str:
    """One line: scheme, backend and why, dtype, parameter count, trained length."""
    position = position_words(config.model.layers, config.model.max_seq_len)
    parameters = sum(parameter.numel() for parameter in engine.net.parameters())
    dtype = "float32 weights, bfloat16 autocast" if engine.precision == "bf16" else "float32"
    return (
        f"position {position} | backend {report.backend} ({report.reason}) | {dtype} on {engine.device.type} | "
        f"{parameters:,} parameters | trained length {config.seq_len}"
    )


def plot_title(config: TrainConfig, engine: Engine) -> str:
    """What fits above a plot."""
    parameters = sum(parameter.numel() for parameter in engine.net.parameters())
    position = position_words(config.model.layers, config.model.max_seq_len)
    return f"position {position}, {parameters:,} parameters, trained length {config.seq_len}"


def describe_data(corpus: Corpus, windows: Windows) -> str:
    """One line: where the tokens come from and how many there are."""
    return (
        f"data {corpus.source} | {len(corpus.train.tokens):,} training tokens in {len(windows):,} windows | "
        f"{len(corpus.validation.tokens):,} validation tokens"
    )


def _plot(folder: Path, title: str, console: Console) -> Path | None:
    """The plot is a convenience: without matplotlib the run is still good."""
    try:
        return plot_losses(folder, title)
    except MissingExtra as error:
        say(console, str(error))
        return None
