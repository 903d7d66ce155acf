"""A training run from config to result: read, check, build, train, and leave everything needed to go on."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path

import torch
from rich.console import Console

from x_positional.build import build_model
from x_positional.config import ModelConfig
from x_positional.generate import AutoregressiveWrapper
from x_positional.training.config import TrainConfig
from x_positional.training.corpus import Corpus, load_corpus
from x_positional.training.engine import Engine
from x_positional.training.errors import MissingExtra, UserError, listed
from x_positional.training.evaluate import Score
from x_positional.training.loop import Loop
from x_positional.training.plot import plot_losses
from x_positional.training.progress import Meter, shown
from x_positional.training.record import Record
from x_positional.training.session import Interrupt, Session, refuse_to_overwrite
from x_positional.training.windows import Windows
from x_positional.validate import Report, check
from x_positional.wrappers import TransformerWrapper


@dataclass(frozen=True)
class Result:
    """What a session did. `interrupted` says that Ctrl-C (or `stop_after`) ended it before `run.steps`."""

    folder: Path
    step: int
    interrupted: bool
    checkpoint: Path | None
    validation: Score | None
    seconds: float
    plot: Path | None
    net: TransformerWrapper
    engine: Engine
    corpus: Corpus


def checked(config: ModelConfig) -> Report:
    """The validator's report; raises `UserError` with every error in it."""
    report = check(config)
    if report.errors:
        raise UserError(listed("this model cannot be built:", [str(error) for error in report.errors]))
    return report


def train(config: TrainConfig, *, resume: bool = False, console: Console | None = None) -> Result:
    """Train as `config` says. Nothing is written before data, model and device were found good.

    Raises `UserError` for what the caller can fix, `NonFiniteLoss` when the loss or a gradient becomes NaN or infinite.
    """
    console = Console(quiet=True) if console is None else console
    began = time.monotonic()
    report = checked(config.model)
    if not resume:
        refuse_to_overwrite(config)
    corpus = load_corpus(config.data, config.model.num_tokens, config.seq_len, shown(console))
    torch.manual_seed(config.run.seed)
    net = build_model(config.model)
    windows = Windows(corpus.train.tokens, config.seq_len, config.run.seed)
    engine = Engine(net, AutoregressiveWrapper(net), windows, config)
    main = engine.accelerator.is_main_process
    if not main:
        console = Console(quiet=True)
    session = Session(config, corpus, windows_per_step=engine.windows_per_step)
    start = session.resume(net, engine.optimizer) if resume else 0
    session.write_config()
    record = Record(session.folder, tensorboard=config.run.tensorboard) if main else None
    headline = describe_run(config, engine, report)
    console.print(headline, markup=False, highlight=False, soft_wrap=True)
    console.print(describe_data(corpus, windows), markup=False, highlight=False, soft_wrap=True)
    for warning in report.warnings:
        console.print(f"warning: {warning}", markup=False, highlight=False, soft_wrap=True)
    try:
        if record is not None:
            record.write("start", start, {"run": headline, "data": corpus.source})
        loop, done = _steps(config, corpus, engine, session, record, start, console)
        if record is not None:
            record.write("end", done, {"seconds": round(time.monotonic() - began, 1)})
    finally:
        if record is not None:
            record.close()
    plot = _plot(session.folder, headline, console) if main else None
    return Result(
        session.folder, done, done < config.run.steps, loop.checkpoint, loop.score, time.monotonic() - began, plot, net, engine, corpus
    )


def _steps(
    config: TrainConfig,
    corpus: Corpus,
    engine: Engine,
    session: Session,
    record: Record | None,
    start: int,
    console: Console,
) -> tuple[Loop, int]:
    run = config.run
    stop = run.steps if run.stop_after is None else min(run.steps, run.stop_after)
    if stop <= start:
        raise UserError(f"run.stop_after={run.stop_after} is not after step {start}, where this session starts; raise it")
    with Interrupt() as interrupt, Meter(console, run.steps, start) as meter:
        loop = Loop(config, corpus, engine, session, record, meter)
        return loop, loop.run(start, stop, interrupt)


def describe_run(config: TrainConfig, engine: Engine, report: Report) -> str:
    """One line: scheme, backend and why, dtype, parameter count, trained length."""
    schemes = " + ".join(scheme.kind for scheme in config.model.layers.position or ()) or "none chosen"
    parameters = sum(parameter.numel() for parameter in engine.net.parameters())
    dtype = "float32 weights, bfloat16 autocast" if engine.precision == "bf16" else "float32"
    return (
        f"position {schemes} | backend {report.backend} ({report.reason}) | {dtype} on {engine.device.type} | "
        f"{parameters:,} parameters | trained length {config.seq_len}"
    )


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
        console.print(str(error), markup=False, highlight=False)
        return None
