"""A training run from config to result: check the model, read the data, train, save."""

import os
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn

from x_positional.config.validate import Report, check
from x_positional.errors import MissingExtra, PretrainedError, UserError, listed
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.describe import position_words
from x_positional.models.language import TransformerWrapper
from x_positional.progress import Track, print_lines, progress_bars
from x_positional.training.checkpoints.run_folder import RunFolder, refuse_to_overwrite
from x_positional.training.config import TrainConfig
from x_positional.training.cpu import bf16_warning, denormals_flushed, resolve_device
from x_positional.training.data.corpus import Corpus, load_corpus
from x_positional.training.data.positions import PositionedWindows
from x_positional.training.data.windows import Windows
from x_positional.training.evaluate import EvalRows, EvalWindows, Score, eval_rows, eval_windows
from x_positional.training.finetune.base import base_source, initial_model
from x_positional.training.finetune.dataset import Conversations, load_conversations
from x_positional.training.finetune.packing import PackedRows
from x_positional.training.loop.engine import Engine
from x_positional.training.loop.interrupt import Interrupt
from x_positional.training.loop.log import RunLog, check_trackers, start_trackers
from x_positional.training.loop.loss_plot import plot_losses
from x_positional.training.loop.meter import Meter
from x_positional.training.loop.processes import refuse_launcher_options
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
    """The loss plot; None without matplotlib, or where none was asked for."""
    engine: Engine
    net: TransformerWrapper
    corpus: Any
    """A `Corpus`, or `Conversations`."""


def training_report(config: TrainConfig) -> Report:
    """The validator's report for training this model on this device."""
    device = resolve_device(config.run.device)
    report = check(config.model, device=device, train=True, dtype="float64" if config.run.precision == "fp64" else None)
    draw, able = config.data.positions, report.capabilities
    if draw is None or able is None or able.uses_positions:
        return report
    problem = (
        f"data.positions={draw}: position={report.position} takes no positions from outside. Leave data.positions out, or use "
        "rope, alibi, t5, dynamic, absolute."
    )
    return replace(report, errors=[*report.errors, problem])


def check_trainable(config: TrainConfig) -> Report:
    """The validator's report for training this model on this device; raises `UserError` with every error in it."""
    report = training_report(config)
    if report.errors:
        raise UserError(listed("this model cannot be trained:", report.errors))
    return report


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    skip_damaged: bool = False,
    console: Console | None = None,
    plot: bool = True,
    data: Corpus | None = None,
) -> TrainResult:
    """Train a model. Nothing is written before model, data and device have been checked.

    Args:
        config: The run.
        resume: Continue the run in `config.run.dir` from its newest checkpoint.
        skip_damaged: Continue from the newest checkpoint without damage, and rename newer ones to `damaged-step-…`.
        console: Shows progress; None is silent.
        plot: Whether to draw the loss at the end.
        data: What `load_data` read for this config; None reads it.

    Raises:
        UserError: The model, the data, the device or the run folder cannot be used, or a file cannot be written.
        NonFiniteLoss: The loss or a gradient became NaN or infinite.
    """
    console = Console(quiet=True) if console is None else console
    began = time.monotonic()
    if skip_damaged and not resume:
        raise UserError("--skip-damaged has no effect without --resume; add --resume or omit it")
    refuse_launcher_options(os.environ)
    check_trackers(config.run.trackers)
    report = check_trainable(config)
    if not resume:
        refuse_to_overwrite(config)
    config, corpus = load_data(config, progress_bars(console)) if data is None else (config, data)
    torch.manual_seed(config.run.seed)
    net = initial_model(config)
    windows = training_windows(config, corpus)
    engine = Engine(net, AutoregressiveWrapper(net), windows, config)
    engine.processes.require_equal({"data (hash)": corpus.fingerprint, "--resume": resume})
    if not engine.processes.main:
        console = Console(quiet=True)
    folder = RunFolder(config, corpus, windows_per_step=engine.windows_per_step, processes=engine.processes)
    if resume:
        folder.require_checkpoint()
    with ExitStack() as stack:
        stack.enter_context(engine.processes.watched(folder.last_saved))
        engine.processes.on_main(lambda: stack.enter_context(folder.lock()))
        if engine.device.type == "cpu":
            stack.enter_context(denormals_flushed())
        start = _start(config, engine, folder, console, resume=resume, skip_damaged=skip_damaged)
        headline = describe_run(config, engine, report)
        notes = corpus.notes if isinstance(corpus, Conversations) else ()
        warnings = [f"warning: {warning}" for warning in (*report.warnings, *slow_precision(engine), *notes)]
        print_lines(console, headline, describe_data(corpus, windows), *warnings)
        loop, done, interrupted = _session(config, corpus, engine, folder, console, start, headline)
        seconds = time.monotonic() - began
        drawn = plot and engine.processes.main
        picture = _plot(folder.path, plot_title(config, engine), console) if drawn else None
    return TrainResult(
        folder=folder.path,
        step=done,
        finished=done == config.run.steps,
        interrupted=interrupted,
        checkpoint=loop.checkpoint,
        validation=loop.score,
        seconds=seconds,
        plot=picture,
        engine=engine,
        net=net,
        corpus=corpus,
    )


def load_data(config: TrainConfig, track: Track) -> tuple[TrainConfig, Corpus | Conversations]:
    """The data of a run, and its config with what follows from them."""
    if config.chat is None:
        refuse_other_tokens(config)
        return config, load_corpus(config.data, config.model.num_tokens, config.seq_len, track)
    return load_conversations(config, track)


def refuse_other_tokens(config: TrainConfig) -> None:
    """Raise `UserError` where a model that has a tokenizer would go on with bytes, because `data.tokenizer` is not set."""
    if config.init is None or config.reads_token_ids or "tokenizer" in config.data.model_fields_set:
        return
    try:
        own = base_source(config.init.source).tokenizer().source
    except PretrainedError:  # it has none
        return
    if own != "bytes":
        raise UserError(
            f"data.tokenizer is not set, and init.source={config.init.source} has a tokenizer of its own; set data.tokenizer "
            "to a folder with its tokenizer.json (or to bytes)"
        )


def training_windows(config: TrainConfig, corpus: Corpus | Conversations) -> Windows | PositionedWindows | PackedRows:
    """What each step takes its batch from."""
    if isinstance(corpus, Conversations):
        return corpus.train
    windows, draw = Windows(corpus.train.tokens, config.seq_len, config.run.seed), config.data.positions
    if draw is None:
        return windows
    return PositionedWindows(windows, draw, config.model.max_seq_len, config.run.seed, config.data.pose_chunks)


def scored(config: TrainConfig, corpus: Corpus | Conversations) -> EvalWindows | EvalRows:
    """What each validation scores."""
    limit = config.run.eval_tokens
    if isinstance(corpus, Conversations):
        return eval_rows(len(corpus.validation), config.seq_len, limit=limit)
    return eval_windows(len(corpus.validation.tokens), config.seq_len, limit=limit)


def _start(
    config: TrainConfig, engine: Engine, folder: RunFolder, console: Console, *, resume: bool, skip_damaged: bool
) -> int:
    """The step at which the session begins, with the folder locked: 0, or that of the checkpoint that was loaded."""
    if not resume:
        engine.processes.on_main(lambda: refuse_to_overwrite(config))  # again: another process may have finished since
        return 0
    if skip_damaged:
        for path in engine.processes.on_main(folder.set_damaged_aside) or ():
            print_lines(console, f"skipped a damaged checkpoint, now {path}")
    return folder.resume(engine.net, engine.optimizer)


def _session(
    config: TrainConfig,
    corpus: Corpus | Conversations,
    engine: Engine,
    folder: RunFolder,
    console: Console,
    start: int,
    headline: str,
) -> tuple[TrainingLoop, int, bool]:
    """Train from step `start` to the end of the session: the loop, the steps done, and whether it was interrupted."""
    began = time.monotonic()
    stop = session_end(config, start)
    with ExitStack() as stack:
        engine.processes.on_main(folder.write_config)
        accelerator = engine.processes.accelerator
        log = engine.processes.on_main(lambda: stack.enter_context(closing(RunLog(folder.path, accelerator))))
        engine.processes.on_main(lambda: start_trackers(accelerator, config))
        if log is not None:
            log.write("start", start, {"run": headline, "data": corpus.source})
        interrupt = stack.enter_context(Interrupt())
        meter = stack.enter_context(Meter(console, config.run.steps, start))
        loop = TrainingLoop(config, corpus, scored(config, corpus), engine, folder, log, meter)
        done = loop.run(start, stop, interrupt)
        if log is not None:
            log.write("end", done, {"seconds": round(time.monotonic() - began, 1)})
    return loop, done, interrupt.requested


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
    parameters, trained = parameter_counts(engine.net)
    emulated = " (emulated by this CPU)" if slow_precision(engine) else ""
    dtype = {"bf16": f"float32 weights, bfloat16 autocast{emulated}", "fp32": "float32", "fp64": "float64"}
    shared = " share the parameters" if engine.processes.sharded else ""
    processes = "" if engine.processes.count == 1 else f", {engine.processes.count} processes{shared}"
    return (
        f"position {position} | backend {report.backend} ({report.reason}) | {dtype[engine.precision]} on "
        f"{engine.device.type}{processes} | {parameters:,} parameters{'' if config.lora is None else f', {trained:,} trained'} | "
        f"trained length {config.seq_len}"
        f"{_position_words(config)}{_loss_words(config)}"
    )


def parameter_counts(net: nn.Module) -> tuple[int, int]:
    """All parameters, and those that are trained."""
    counts = [(parameter.numel(), parameter.requires_grad) for parameter in net.parameters()]
    return sum(count for count, _ in counts), sum(count for count, trained in counts if trained)


def _position_words(config: TrainConfig) -> str:
    """How positions are drawn, if they are."""
    draw = config.data.positions
    return "" if draw is None else f" at positions below {config.model.max_seq_len:,} ({draw})"


def _loss_words(config: TrainConfig) -> str:
    """What the training loss has beside cross entropy."""
    parts = [f"{name} {value:g}" for name in ("label_smoothing", "z_loss") if (value := getattr(config.run, name))]
    return f" | training loss with {', '.join(parts)}" if parts else ""


def slow_precision(engine: Engine) -> list[str]:
    """The warning for bfloat16 on a CPU that emulates it."""
    warning = bf16_warning() if engine.precision == "bf16" and engine.device.type == "cpu" else None
    return [] if warning is None else [warning]


def plot_title(config: TrainConfig, engine: Engine) -> str:
    """The title of the loss plot."""
    parameters = sum(parameter.numel() for parameter in engine.net.parameters())
    position = position_words(config.model.layers, config.model.max_seq_len)
    words = _loss_words(config).removeprefix(" |")
    return f"position {position}, {parameters:,} parameters, trained length {config.seq_len}{words and ',' + words}"


def describe_data(corpus: Corpus | Conversations, windows: Windows | PositionedWindows | PackedRows) -> str:
    """One line: source and number of tokens."""
    if isinstance(corpus, Conversations):
        return corpus.describe()
    return (
        f"data {corpus.source} | {len(corpus.train.tokens):,} training tokens in {len(windows):,} windows | "
        f"{len(corpus.validation.tokens):,} validation tokens"
    )


def _plot(folder: Path, title: str, console: Console) -> Path | None:
    """The loss plot; where it cannot be drawn only a message, since the run itself succeeded."""
    try:
        return plot_losses(folder, title)
    except MissingExtra as error:
        print_lines(console, str(error))
    except OSError as error:
        print_lines(console, f"no loss plot: {error.strerror or error}: {error.filename}")
    return None
