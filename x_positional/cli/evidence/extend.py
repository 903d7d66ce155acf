"""`x-positional extend`: longer contexts without training, ranked; optionally fine-tuned; written as a folder."""

import json
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from x_positional.cli.convert import next_commands, tokenizer_writer, try_tokenizer
from x_positional.cli.evidence.page import page_line
from x_positional.cli.evidence.subject import Subject, open_subject
from x_positional.cli.hints import command
from x_positional.cli.train import INTERRUPTED
from x_positional.errors import ArgumentError, UserError
from x_positional.evidence.evaluation.lengths import LengthSettings
from x_positional.evidence.evaluation.measure import EvalSettings
from x_positional.evidence.evaluation.options import length_in_tokens, parse_lengths, windows_for
from x_positional.evidence.evaluation.text import HeldOut
from x_positional.evidence.evaluation.usable import paired
from x_positional.evidence.extension.attempts import Measuring, at, best, extension, judged, try_all
from x_positional.evidence.extension.methods import METHODS, UNCHANGED, Candidate, Stretch, alternatives, candidates
from x_positional.evidence.extension.rebuild import with_config, write_extended
from x_positional.evidence.extension.results import Attempt, Extension
from x_positional.evidence.extension.tuning import START, Tuning, tuned
from x_positional.evidence.report import extension_page
from x_positional.models.language import TransformerWrapper
from x_positional.pretrained.commit import replacing
from x_positional.pretrained.folder import contains_model
from x_positional.pretrained.source import open_source
from x_positional.progress import print_lines, progress_bars
from x_positional.training.config import DataConfig
from x_positional.training.finetune.base import weights_fingerprint

RECORD, PAGE = "extension.json", "extension.html"
TOKENS = 1 << 17
"""Tokens that a method reads at the target length by default: every method reads them."""


@dataclass(frozen=True, kw_only=True)
class ExtendOptions:
    """The options of the command line."""

    to: str
    """The target length: tokens, or a multiple of the trained length as `4x`."""
    data: Path | None = None
    """Text or ids to score. None is the validation split of a run, or the held-out part of the embedded text."""
    lengths: str | None = None
    """Lengths to score, beside the trained and the target length. None is the trained length doubled up to the target."""
    methods: str | None = None
    """Methods to try, separated by commas. None is all."""
    choose: str | None = None
    """The method to fine-tune and write. None is the best at the target length."""
    trained_length: int | None = None
    """None is that of the run's windows, or of the model's config."""
    longrope_factors: Path | None = None
    """JSON file with `long_factor`, and optionally `short_factor`."""
    targets: int = 64
    """Tokens scored at the end of each window."""
    windows: int | None = None
    """None is 32, and fewer of long ones."""
    position_windows: int = 1
    """Windows of the loss by position; 0 leaves it out."""
    finetune_tokens: int | None = None
    """Tokens to fine-tune the chosen method on. None is no fine-tuning."""
    finetune_data: Path | None = None
    """Text to fine-tune on. None is the training split of the run, or of the embedded text."""
    lora: bool = False
    """Fine-tune adapters in place of all parameters."""
    pose: bool = False
    """Fine-tune on windows of the trained length, at positions up to the target."""
    out: Path | None = None
    """Folder to write the extended model to."""
    run_dir: Path | None = None
    """Folder of the record, and of fine-tuning. None is `runs/extend` and the names of model and target."""
    device: str = "auto"
    dtype: str | None = None


@dataclass
class Session:
    """One run of the command: what was opened, and what has been measured."""

    options: ExtendOptions
    subject: Subject
    measuring: Measuring
    tried: tuple[Candidate, ...]
    folder: Path
    """Of the record, and of fine-tuning."""
    weights: str
    console: Console
    attempts: list[Attempt]

    def save(self, **more: Any) -> Extension:
        """Write the record with what has been measured until now."""
        found = extension(self.measuring, self.attempts, weights=self.weights, **more)
        found.save(self.folder / RECORD)
        return found


def extend(path: Path, options: ExtendOptions) -> int:
    """Measure, print and write; returns the exit code. Raises UserError, PretrainedError and MissingExtra."""
    session, known = _opened(path, options)
    model = session.subject.load()
    _try(session, model, known)
    _report(session, model)
    winner = _choice(session)
    if winner is None:
        print_lines(session.console, "no method runs at the target length, so nothing is chosen")
        print_lines(session.console, *_kept(session))
        return 0
    found: TransformerWrapper | None = with_config(model, _config_of(session, winner))
    if options.finetune_tokens is not None:
        found, winner = _finetuned(session, found, winner)
        if found is None:
            print_lines(session.console, "interrupted; the same command continues")
            return INTERRUPTED
    _finish(session, found, winner)
    return 0


def _opened(path: Path, options: ExtendOptions) -> tuple[Session, Sequence[Attempt]]:
    """Everything that can be wrong is found here, before weights are read; and the attempts of an earlier session."""
    console, status = Console(), Console(stderr=True)
    track = progress_bars(status)
    subject = open_subject(path, status, device=options.device, dtype=options.dtype)
    trained = options.trained_length or subject.trained_length
    to = Stretch(trained, target_length(options.to, trained), _factors(options.longrope_factors))
    methods = METHODS if options.methods is None else tuple(filter(None, map(str.strip, options.methods.split(","))))
    try:
        tried = candidates(subject.config, to, methods)
        settings = _settings(options, to, subject.start_token)
    except ArgumentError as error:
        raise UserError(str(error)) from error
    labels = [candidate.label for candidate in tried]
    if options.choose is not None and _labelled(options.choose, labels) is None:
        raise UserError(f"--choose {options.choose}: no such method is tried; tried: {', '.join(labels)}")
    _check_out(options)
    text = subject.text(options.data, track)
    settings.lengths.ends(len(text.tokens))
    measuring = Measuring(subject.name, to, settings, text.tokens, text.summary, track)
    folder = options.run_dir or Path("runs/extend") / f"{Path(subject.name).name}-{to.target}"
    weights = f"{weights_fingerprint(subject.path)} {options.dtype or 'default'}"
    _announce(console, measuring, text)
    session = Session(options, subject, measuring, tried, folder, weights, console, [])
    return session, _earlier(folder / RECORD, weights)


def target_length(text: str, trained: int) -> int:
    """`16384` or `4x` -> tokens. Raises UserError."""
    length = length_in_tokens(text, trained)
    if length is None:
        raise UserError(f"--to {text}: give a number of tokens (16384) or a multiple of the trained length (4x)")
    return length


def _factors(file: Path | None) -> Mapping[str, Sequence[float]] | None:
    """LongRoPE's factors. Raises UserError."""
    if file is None:
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--longrope-factors {file} cannot be read: {error}") from error
    if isinstance(found, dict) and isinstance(found.get("long_factor"), list):
        long = found["long_factor"]
        return {"long_factor": long, "short_factor": found.get("short_factor") or [1.0] * len(long)}
    raise UserError(f"--longrope-factors {file} must contain {{'long_factor': [...], 'short_factor': [...]}}")


def _settings(options: ExtendOptions, to: Stretch, start_token: int | None) -> EvalSettings:
    lengths = {to.trained, to.target}
    if options.lengths is not None:
        lengths |= set(parse_lengths(options.lengths, to.trained))
    else:
        length = 2 * to.trained
        while length < to.target:
            lengths.add(length)
            length *= 2
    windows = options.windows or windows_for(tuple(lengths), tokens=TOKENS)
    return EvalSettings(
        LengthSettings(tuple(lengths), options.targets, windows, None, start_token),
        position_windows=options.position_windows,
    )


def _check_out(options: ExtendOptions) -> None:
    """Raise UserError now rather than after the measurement."""
    out = options.out
    if out is not None and (contains_model(out) or out.is_file()):
        raise UserError(f"--out {out} already contains a model; choose another folder or remove it")
    given = {"--lora": options.lora, "--pose": options.pose, "--finetune-data": options.finetune_data is not None}
    for name, wanted in given.items():
        if wanted and options.finetune_tokens is None:
            raise UserError(f"{name} has no effect without --finetune-tokens")


def _announce(console: Console, measuring: Measuring, text: HeldOut) -> None:
    to, lengths = measuring.to, measuring.settings.lengths
    print_lines(
        console,
        f"{measuring.name}: trained on {to.trained:,} tokens, to reach {to.target:,}",
        f"{text.summary.name}: {len(text.tokens):,} tokens; {lengths.protocol(len(text.tokens))}",
    )


def _earlier(file: Path, weights: str) -> Sequence[Attempt]:
    """Attempts of an earlier session with the same weights."""
    if not file.is_file():
        return ()
    found = Extension.load(file)
    return found.attempts if found.weights == weights else ()


def _try(session: Session, model: TransformerWrapper, known: Sequence[Attempt]) -> None:
    total, target = len(session.tried), session.measuring.to.target

    def landed(attempt: Attempt) -> None:
        session.attempts.append(attempt)
        session.save()
        measured = attempt.evaluation
        seconds = "" if measured is None else f" ({measured.seconds:.0f} s)"
        loss = "no loss" if attempt.outside is None else f"{attempt.outside:.4f} nats per token"
        line = f"{len(session.attempts)}/{total} {attempt.label}: {loss} at {target:,}{seconds}"
        print_lines(Console(stderr=True), line)

    try_all(model, session.tried, session.measuring, known, landed)


def _report(session: Session, model: TransformerWrapper) -> None:
    """The table, methods without numbers and why, and what else can be done."""
    found = extension(session.measuring, session.attempts)
    session.console.print(attempt_table(found))
    reasons: dict[str, list[str]] = {}
    for attempt in found.attempts:
        if attempt.outside is None:
            reasons.setdefault(attempt.reason or _length_reason(attempt, found.target), []).append(attempt.label)
    print_lines(session.console, *(f"{', '.join(labels)}: {reason}" for reason, labels in reasons.items()))
    print_lines(session.console, *(f"hint: {line}" for line in alternatives(model.config)))


def _length_reason(attempt: Attempt, length: int) -> str:
    entries = () if attempt.evaluation is None else attempt.evaluation.lengths
    reason = next((entry.reason for entry in entries if entry.length == length), None)
    return reason or f"no loss at {length:,} tokens"


def attempt_table(found: Extension) -> Table:
    """The loss of each method at each length, its cost inside the trained length and its gain at the target."""
    unchanged = found.attempts[0]
    lengths = [] if unchanged.evaluation is None else [entry.length for entry in unchanged.evaluation.lengths]
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("method")
    names = (*(f"{length:,}" for length in lengths), f"cost at {found.trained_length:,}", f"gain at {found.target:,}")
    for name in names:
        table.add_column(name, justify="right")
    for attempt in found.attempts:
        if attempt.evaluation is None:
            continue
        losses = (at(attempt, length) for length in lengths)
        cells = ["none" if entry is None or entry.loss is None else f"{entry.loss:.4f}" for entry in losses]
        cost = "" if attempt is unchanged else _difference(attempt, unchanged, found.trained_length)
        gain = "" if attempt is unchanged else _difference(unchanged, attempt, found.target)
        table.add_row(attempt.label, *cells, cost, gain)
    return table


def _difference(one: Attempt, other: Attempt, length: int) -> str:
    """The loss of one minus that of the other, paired over windows."""
    first, second = at(one, length), at(other, length)
    if first is None or second is None:
        return ""
    mean, error = paired(first, second)
    return f"{mean:+.4f}" if error is None else f"{mean:+.4f} ± {error:.4f}"


def _labelled(name: str, labels: Sequence[str]) -> str | None:
    """The label that a name stands for: itself, or its first word."""
    return next((label for label in labels if name in (label, label.split()[0])), None)


def _choice(session: Session) -> Attempt | None:
    """The attempt that was asked for, or the best. Raises UserError where the one that was asked for has no loss."""
    if session.options.choose is None:
        return best(session.attempts)
    label = _labelled(session.options.choose, [attempt.label for attempt in session.attempts])
    found = next(attempt for attempt in session.attempts if attempt.label == label)
    if found.outside is None:
        reason = found.reason or _length_reason(found, session.measuring.to.target)
        raise UserError(f"--choose {session.options.choose} cannot be used: {reason}")
    return found


def _config_of(session: Session, winner: Attempt) -> Any:
    return next(candidate.config for candidate in session.tried if candidate.label == winner.label)


def _finetuned(
    session: Session, model: TransformerWrapper, winner: Attempt
) -> tuple[TransformerWrapper | None, Attempt]:
    """The fine-tuned model and its attempt, or the one before where that is better; None where it was interrupted."""
    options, measuring, subject = session.options, session.measuring, session.subject
    tokens = options.finetune_tokens or 0
    kind = "-".join([str(tokens), *(["lora"] if options.lora else []), *(["pose"] if options.pose else [])])
    run = session.folder / f"tuned-{winner.label.replace(' ', '-')}-{kind}"
    target, data = measuring.to.target, _finetune_data(session, run)
    window = measuring.to.trained if options.pose else target
    tuning = Tuning(tokens, target, window, data, options.lora, options.device)
    if subject.data is None:
        _write_start_tokenizer(session, run.with_name(START))
    print_lines(session.console, f"fine-tuning {winner.label} on {tuning.trained:,} tokens in {run}")
    found = tuned(model, tuning, run, session.console)
    if found is None:
        return None, winner
    label = f"{winner.label}, fine-tuned{' (PoSE)' if options.pose else ''}"
    settings = {"label": label, "settings": winner.settings, "tuned_tokens": tuning.trained}
    attempt = judged(
        Attempt(**settings, evaluation=measuring.evaluate(found, label)), session.attempts[0], measuring.to
    )
    session.attempts.append(attempt)
    session.save()
    session.console.print(attempt_table(extension(measuring, session.attempts)))
    better = attempt.outside is not None and (winner.outside is None or attempt.outside <= winner.outside)
    return (found, attempt) if better else (model, winner)


def _finetune_data(session: Session, run: Path) -> DataConfig:
    """What to train on: the tokenizer of a published model is read from the folder that the run starts from."""
    own, path = session.subject.data, session.options.finetune_data
    if own is not None:
        return own if path is None else DataConfig(path=str(path), **_tokenizer_of(own))
    start = str(run.with_name(START))
    return DataConfig(tokenizer=start) if path is None else DataConfig(tokenizer=start, path=str(path))


def _tokenizer_of(data: DataConfig) -> dict[str, Any]:
    return data.model_dump(include={"tokenizer", "document_end"}, exclude_unset=True)


def _write_start_tokenizer(session: Session, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer_writer(open_source(session.subject.path))(folder)


def _finish(session: Session, model: TransformerWrapper | None, winner: Attempt) -> None:
    """Write the folder and the record, and print what to run next."""
    out, more = session.options.out, {}
    lines: list[str] = [f"best at {session.measuring.to.target:,} tokens: {winner.label}"]
    if session.options.choose is not None:
        lines = [f"chosen: {winner.label}"]
    if out is not None and winner.label == UNCHANGED:
        lines.append(f"{out} was not written: the unchanged model is the best. --choose writes another method")
    elif out is not None and model is not None:
        lines += _write(session, model, out, more)
    print_lines(session.console, *lines, *_kept(session, chosen=winner.label, **more))


def _kept(session: Session, **more: Any) -> Iterator[str]:
    """Write the record and its page, and name them."""
    found = session.save(**more)
    yield f"record: {session.folder / RECORD}"
    yield page_line(session.folder / PAGE, lambda: extension_page(found))


def _write(session: Session, model: TransformerWrapper, out: Path, more: dict[str, Any]) -> Iterator[str]:
    with replacing(out) as stage:
        reason = write_extended(model, stage)
        note = try_tokenizer(tokenizer_writer(open_source(session.subject.path)), stage)
    more |= {"folder": str(out), "format": "hf" if reason is None else "native", "format_reason": reason}
    yield f"wrote {out}, " + ("which transformers reads" if reason is None else "in x_positional's own format:")
    if reason is not None:
        yield f"  {reason}"
    if note:
        yield note
    if reason is None:
        yield from next_commands(out, "hf", generate=not note)
    else:
        yield f"next: {command()} generate {shlex.quote(str(out))} --prompt 'The '"
