"""One cell: a scheme trained with one seed, evaluated and timed. And the calibration that decides how long cells train."""

import contextlib
import math
import shutil
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from x_positional.errors import NonFiniteLoss, XPositionalError, counted
from x_positional.evidence.comparison.plan import corpus_of
from x_positional.evidence.comparison.results import Cell
from x_positional.evidence.evaluation.lengths import LengthSettings
from x_positional.evidence.evaluation.measure import EvalSettings, evaluate_model, summary_of_data
from x_positional.evidence.evaluation.results import Evaluation, Record
from x_positional.evidence.evaluation.scoring import out_of_memory
from x_positional.evidence.report.pictures import not_measured, pictures_of
from x_positional.models.autoregressive import AutoregressiveWrapper
from x_positional.models.language import TransformerWrapper, build_model
from x_positional.pretrained.integrity import newest_good
from x_positional.progress import silent
from x_positional.training.checkpoints.checkpoint import open_checkpoint
from x_positional.training.checkpoints.state import load_model
from x_positional.training.config import TrainConfig
from x_positional.training.cpu import resolve_device
from x_positional.training.data.corpus import Corpus
from x_positional.training.loop.engine import Engine, precision
from x_positional.training.loop.log import LOG, read_curve
from x_positional.training.loop.train import train, training_windows

DECODED, PROMPT = 64, 8
"""Tokens that are sampled to measure decoding, and those of the prompt."""
REPEATS = 3


class Task(Record):
    """What a process needs to make one cell."""

    label: str
    seed: int
    config: dict[str, Any]
    """The training config of the cell."""
    folder: str
    """The folder of the comparison."""
    file: str
    """Where the cell is written, when it is done."""
    modules: tuple[str, ...] = ()
    """Python modules that register schemes."""
    lengths: tuple[int, ...]
    targets: int
    windows: int
    position_windows: int
    pictures: str | None = None
    """Where to write what the scheme does, before and after training; None leaves it out."""


class SharedData:
    """The data of the cells of a process, read once: all cells of a comparison have the same."""

    def __init__(self) -> None:
        self._key: tuple[Any, ...] | None = None
        self._corpus: Corpus | None = None

    def of(self, config: TrainConfig) -> Corpus:
        """As `corpus_of`. Raises UserError."""
        key = config.data, config.model.num_tokens, config.seq_len
        if self._corpus is None or key != self._key:
            self._key, self._corpus = key, corpus_of(config, silent)
        return self._corpus


class Interrupted(Exception):
    """A signal ended the training, which has saved a checkpoint."""


def make_cell(task: Task, data: SharedData) -> Cell:
    """Train, or continue training, and measure. Whatever goes wrong is a cell with the reason.

    Args:
        task: The cell.
        data: That of earlier cells of this process.

    Raises:
        Interrupted: A signal ended the training; calling this again continues it.
    """
    config = TrainConfig.model_validate(task.config)
    run = Path(config.run.dir)
    facts: dict[str, Any] = {"label": task.label, "seed": task.seed, "run": str(run.relative_to(task.folder))}
    try:
        corpus = data.of(config)
        net = trained(config, corpus)
        evaluation = _evaluated(task, config, net, corpus)
        decoding = _decoding(net, corpus)
        if task.pictures is not None:
            write_pictures(Path(task.pictures), config, net)
        del net  # before another one is made, to measure the memory of a step
    except Interrupted:
        raise
    except NonFiniteLoss as error:
        return Cell(status="not finite", reason=str(error), **facts, **_training(config, run))
    except Exception as error:  # also of a user's scheme, which may raise anything
        return Cell(status="failed", reason=reason_of(error), **facts, **_training(config, run))
    losses = [entry.loss for entry in evaluation.lengths]
    reasons = [f"length {entry.length}: {entry.reason}" for entry in evaluation.lengths if entry.reason is not None]
    return Cell(
        status="done" if any(loss is not None for loss in losses) else "failed",
        reason="; ".join(reasons) or None,
        decode_tokens_per_second=decoding,
        peak_bytes=_peak_bytes(config, corpus),
        evaluation=evaluation,
        **facts,
        **_training(config, run),
    )


def trained(config: TrainConfig, corpus: Corpus) -> TransformerWrapper:
    """The trained model: from the start, from the newest checkpoint, or finished already.

    Raises:
        Interrupted: A signal ended the training.
        NonFiniteLoss: The loss or a gradient became NaN or infinite.
        UserError: As `train`.
    """
    run = Path(config.run.dir)
    good = newest_good(run / "checkpoints")
    if good is None:
        shutil.rmtree(run, ignore_errors=True)  # what a kill left before the first checkpoint
    elif open_checkpoint(good).step >= config.run.steps:
        return _loaded(config, good)
    result = train(config, resume=good is not None, skip_damaged=good is not None, plot=False, data=corpus)
    if not result.finished:
        raise Interrupted
    return result.net


def write_pictures(path: Path, config: TrainConfig, net: TransformerWrapper) -> None:
    """Write what the schemes of a trained model do, beside those before training, or why that cannot be measured."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.run.seed)  # as training begins
            initial = build_model(config.model)
        found = pictures_of(net, initial=initial, when=f"after {counted(config.run.steps, 'training step')}")
    except Exception as error:  # also of a user's scheme; the losses stand
        found = not_measured("the position scheme", reason_of(error), config.seq_len)
    with contextlib.suppress(OSError):
        found.save(path)


def step_seconds(configs: Sequence[TrainConfig], seconds: float, data: SharedData) -> list[float | None]:
    """The median time of an optimizer step of each config, timed in turn; None where it cannot run.

    Args:
        configs: With the same data.
        seconds: About how long the timing may take, all configs together.
        data: That of all configs.
    """
    corpus = data.of(configs[0])
    found: list[list[float]] = [[] for _ in configs]
    started, turn = time.perf_counter(), 0
    while turn == 0 or (time.perf_counter() - started < seconds and turn < 5 and not configs[0].run.compile):
        order = range(len(configs)) if turn % 2 == 0 else reversed(range(len(configs)))
        for index in order:
            share = seconds / len(configs) / 4
            with contextlib.suppress(Exception):  # the cells report it
                found[index] += _timed_steps(configs[index], corpus, share, first=turn * 1000)
        turn += 1
    return [statistics.median(times) if times else None for times in found]


def reason_of(error: Exception) -> str:
    """Why a cell failed, in one text."""
    if isinstance(error, XPositionalError):
        return str(error)
    return out_of_memory(error) or f"{type(error).__name__}: {error}"


def _timed_steps(config: TrainConfig, corpus: Any, seconds: float, first: int) -> list[float]:
    """Seconds of at least two steps, after one that is not counted."""
    engine, times = _engine(config, corpus), list[float]()
    engine.step(first)[0].item()
    while len(times) < 2 or (sum(times) < seconds and len(times) < 20):
        began = time.perf_counter()
        engine.step(first + 1 + len(times))[0].item()
        times.append(time.perf_counter() - began)
    return times


def _engine(config: TrainConfig, corpus: Any) -> Engine:
    """A new model that is ready to train."""
    torch.manual_seed(config.run.seed)
    net = build_model(config.model)
    return Engine(net, AutoregressiveWrapper(net), training_windows(config, corpus), config)


def _loaded(config: TrainConfig, path: Path) -> TransformerWrapper:
    """The model of a run that had finished."""
    checkpoint = open_checkpoint(path)
    net = build_model(config.model)
    load_model(net, checkpoint.model_tensors(), checkpoint.path)
    return net.to(resolve_device(config.run.device))  # type: ignore[return-value]


def _evaluated(task: Task, config: TrainConfig, net: TransformerWrapper, corpus: Corpus) -> Evaluation:
    """Loss by length and by position on the validation text."""
    device, split = next(net.parameters()).device, corpus.validation
    half = precision(config.run, device) == "bf16"
    return evaluate_model(
        net,
        split.tokens,
        EvalSettings(
            LengthSettings(task.lengths, targets=task.targets, windows=task.windows),
            position_windows=task.position_windows,
        ),
        name=task.label,
        trained_length=config.seq_len,
        data=summary_of_data(corpus.source, split.tokens, split.text_bytes),
        device=device,
        autocast=torch.autocast(device.type, dtype=torch.bfloat16, enabled=half),
    )


def _training(config: TrainConfig, run: Path) -> dict[str, Any]:
    """What the log holds of the training."""
    log = run / LOG
    if not log.exists():
        return {}
    tokens_in_step = config.run.batch_size * config.run.accumulate * config.seq_len
    steps, losses = read_curve(log, "train", "loss")
    at, speeds = read_curve(log, "train", "tokens_per_s")
    spent = [tokens_in_step * (now - before) / speed for before, now, speed in zip([0, *at], at, speeds, strict=False)]
    return {
        "steps": steps[-1] if steps else 0,
        "tokens": steps[-1] * tokens_in_step if steps else 0,
        "seconds": math.fsum(spent),
        "tokens_per_second": statistics.median(speeds) if speeds else None,
        "curve": tuple(zip(steps, losses, strict=True)),
    }


def _decoding(net: TransformerWrapper, corpus: Corpus) -> float | None:
    """Tokens per second of sampling one sequence, the median of a few; None where that cannot run."""
    device = next(net.parameters()).device
    new = min(DECODED, net.config.max_seq_len - PROMPT)
    if new < 1:
        return None
    prompt = torch.tensor([int(token) for token in corpus.validation.tokens[:PROMPT]], device=device)
    wrapper, times = AutoregressiveWrapper(net), []
    try:
        for _ in range(REPEATS):
            began = time.perf_counter()
            wrapper.generate(prompt, new, seed=0, compile=False).tolist()
            times.append(time.perf_counter() - began)
    except Exception:  # the scheme cannot decode here; the losses stand
        return None
    return new / statistics.median(times)


def _peak_bytes(config: TrainConfig, corpus: Corpus) -> int | None:
    """The largest memory of a training step above that before it, with the optimizer's state there; None where that fails."""
    try:
        engine = _engine(config, corpus)
        engine.step(0)[0].item()
        if engine.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(engine.device)
            before = torch.cuda.memory_allocated(engine.device)
            engine.step(1)[0].item()
            return torch.cuda.max_memory_allocated(engine.device) - before
        if engine.device.type != "cpu":
            return None
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            engine.step(1)[0].item()
    except Exception:  # the losses stand
        return None
    return _largest_sum(recorded)


def _largest_sum(recorded: profile) -> int | None:
    """The largest sum of the allocations minus the frees that were recorded, in order."""
    results = None if recorded.profiler is None else recorded.profiler.kineto_results
    changes = [] if results is None else [event for event in results.events() if event.name() == "[memory]"]
    live = largest = 0
    for event in sorted(changes, key=lambda event: event.start_ns()):
        live += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
        largest = max(largest, live)
    return largest or None
