"""`x-positional eval`: loss by context length and by position, passkey retrieval, and the usable length of a trained model."""

import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from x_positional.cli.evidence.page import page_line
from x_positional.cli.evidence.subject import Subject, open_subject
from x_positional.cli.hints import command
from x_positional.errors import ArgumentError, UserError
from x_positional.evidence.evaluation.lengths import LengthSettings
from x_positional.evidence.evaluation.measure import EvalSettings, evaluate_model
from x_positional.evidence.evaluation.options import DEFAULT, TOLERANCE, Protocol, parse_lengths, windows_for
from x_positional.evidence.evaluation.passkey import PasskeySettings
from x_positional.evidence.evaluation.probes import task_scores
from x_positional.evidence.evaluation.results import Evaluation, LengthLoss, PasskeyScore, TaskScore
from x_positional.evidence.evaluation.stored import store_length
from x_positional.evidence.evaluation.tasks import named_tasks
from x_positional.evidence.evaluation.usable import mean_and_error, paired
from x_positional.evidence.report import evaluation_page
from x_positional.progress import print_lines, progress_bars
from x_positional.training.evaluate import bits


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """The options of the command line."""

    data: Path | None = None
    """Text or ids to score. None is the validation split of a run, or the held-out part of the embedded text."""
    lengths: str = DEFAULT
    """As `1x,2x,512`."""
    trained_length: int | None = None
    """What multiples refer to. None is that of the run's windows, or of the model's config."""
    protocol: Protocol = "same-targets"
    targets: int = 64
    """Tokens scored at the end of each window; the stride of sliding evaluation."""
    windows: int | None = None
    """None is 32, and fewer of very long ones."""
    tolerance: float = TOLERANCE
    """The rise of the loss that a usable length allows."""
    passkey: bool | None = None
    """None is passkey retrieval for published models."""
    passkey_trials: int = 3
    tasks: str | None = None
    """Comma-separated names of tasks that small models with the same scheme are trained on."""
    out: Path | None = None
    """The JSON file to write."""
    html: Path | None = None
    """The page to write."""
    beside: Sequence[Path] = ()
    """JSON files of earlier results, for the same page."""
    store: bool = True
    """Whether to keep the usable length beside the weights."""
    device: str = "auto"
    dtype: str | None = None


def evaluate(path: Path, options: EvalOptions) -> Evaluation:
    """Measure, print, and write what the options name. Raises UserError, PretrainedError and MissingExtra."""
    console, status = Console(), Console(stderr=True)
    track = progress_bars(status)
    subject = open_subject(path, status, device=options.device, dtype=options.dtype)
    trained = options.trained_length or subject.trained_length
    settings, tasks = _settings(subject, options, trained), _tasks(options)
    text = subject.text(options.data, track)
    settings.lengths.ends(len(text.tokens))  # before the weights are read
    earlier = _earlier(options)
    found = evaluate_model(
        subject.load(),
        text.tokens,
        settings,
        name=subject.name,
        trained_length=trained,
        data=text.summary,
        codec=subject.codec,
        track=track,
    )
    if tasks:
        found = found.model_copy(update={"tasks": task_scores(subject.config.layers, tasks, track=track)})
    _report(console, found)
    print_lines(console, *_endings(subject, found, settings, options))
    if options.html is not None:
        print_lines(console, page_line(options.html, lambda: evaluation_page([found, *earlier])))
    print_lines(console, *_next(path, found, options))
    return found


def _settings(subject: Subject, options: EvalOptions, trained: int) -> EvalSettings:
    """What is measured. Raises UserError with all problems of the options."""
    lengths = parse_lengths(options.lengths, trained)
    windows = options.windows or windows_for(lengths)
    stride = options.targets if options.protocol == "sliding" else None
    passkey = subject.published if options.passkey is None else options.passkey
    if passkey and subject.codec is None:
        raise UserError("--passkey hides a number in text, but this model was trained on token ids; leave it out")
    try:
        return EvalSettings(
            LengthSettings(lengths, options.targets, windows, stride, subject.start_token),
            position_windows=min(16, max(2, windows // 2)),
            tolerance=options.tolerance,
            passkey=PasskeySettings(trials=options.passkey_trials) if passkey else None,
        )
    except ArgumentError as error:
        raise UserError(str(error)) from error


def _tasks(options: EvalOptions) -> tuple[str, ...]:
    """Raises UserError for unknown names."""
    try:
        return tuple(task.name for task in named_tasks(options.tasks.split(","))) if options.tasks else ()
    except ArgumentError as error:
        raise UserError(f"--tasks {options.tasks}: {error}") from error


def _earlier(options: EvalOptions) -> list[Evaluation]:
    """The results to show beside the new ones. What is wrong with files is found here, before the measurement."""
    for name, file, kind in (("--out", options.out, "a JSON file"), ("--html", options.html, "an HTML file")):
        if file is not None and (file.is_dir() or not (file.parent.is_dir() or not file.parent.exists())):
            raise UserError(f"{name} {file} must be the name of {kind}")
    if options.beside and options.html is None:
        raise UserError("--beside has no effect without --html")
    return [Evaluation.load(file) for file in options.beside]


def _report(console: Console, found: Evaluation) -> None:
    """Print the tables and the usable length."""
    model, data = found.model, found.data
    trained = "unknown" if model.trained_length is None else f"{model.trained_length:,} tokens"
    print_lines(
        console,
        f"{model.name}: {model.position}, {model.parameters:,} parameters, trained length {trained}",
        f"{data.name}: {data.tokens:,} tokens; {found.protocol}",
    )
    console.print(length_table(found))
    reasons = {entry.reason: entry.length for entry in reversed(found.lengths) if entry.reason is not None}
    print_lines(console, *(f"no loss from {length:,}: {reason}" for reason, length in reasons.items()))
    if found.usable is None:
        print_lines(console, "usable length: none, the shortest length has no loss")
    else:
        print_lines(console, f"usable length: {found.usable.length:,} tokens", f"  {found.usable.rule}")
    if found.passkey:
        console.print(passkey_table(found.passkey))
    if found.tasks:
        console.print(task_table(found.tasks))


def length_table(found: Evaluation) -> Table:
    """The loss at each length, and its change against the trained length, paired over windows."""
    per_byte = found.data.bytes_per_token is not None
    base = base_of(found)
    change = "" if base is None else f"change from {base.length:,}"
    table = _table("context", "nats/token", "std. error", "bits/byte" if per_byte else "bits/token", change)
    for entry in found.lengths:
        if entry.loss is None:
            table.add_row(f"{entry.length:,}", "none", "", "", "")
            continue
        error = mean_and_error(entry.windows)[1]
        table.add_row(
            f"{entry.length:,}",
            f"{entry.loss:.4f}",
            "" if error is None else f"{error:.4f}",
            f"{list(bits(entry.loss, found.data.bytes_per_token).values())[-1]:.4f}",
            "" if base is None or entry is base else _change(entry, base),
        )
    return table


def base_of(found: Evaluation) -> LengthLoss | None:
    """The entry that others are compared with: that of the trained length, or the shortest with a loss."""
    usable = [entry for entry in found.lengths if entry.loss is not None]
    return next(
        (entry for entry in usable if entry.length == found.model.trained_length), usable[0] if usable else None
    )


def _change(entry: LengthLoss, base: LengthLoss) -> str:
    mean, error = paired(entry, base)
    return f"{mean:+.4f}" if error is None else f"{mean:+.4f} ± {error:.4f}"


def passkey_table(scores: Iterable[PasskeyScore]) -> Table:
    """Numbers repeated exactly, by length and depth."""
    scores = list(scores)
    depths = sorted({score.depth for score in scores})
    table = _table("passkey at depth", *(f"{depth:.0%}" for depth in depths), "")
    for length in sorted({score.length for score in scores}):
        row = {score.depth: score for score in scores if score.length == length}
        reason = next((score.reason for score in row.values() if score.reason is not None), None)
        cells = ["" if row[depth].reason else f"{row[depth].correct}/{row[depth].trials}" for depth in depths]
        table.add_row(f"{length:,}", *cells, reason or "")
    return table


def task_table(scores: Iterable[TaskScore]) -> Table:
    """Trained tasks: the share of answers that are right."""
    table = _table("task", "length", "tokens right", "answers right", "")
    for score in scores:
        shares = ["" if share is None else f"{share:.1%}" for share in (score.accuracy, score.exact)]
        table.add_row(score.task, f"{score.length:,}", *shares, score.reason or ("trained" if score.trained else ""))
    return table


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(first, justify="left")
    for name in others:
        table.add_column(name, justify="right" if name else "left")
    return table


def _endings(subject: Subject, found: Evaluation, settings: EvalSettings, options: EvalOptions) -> Iterator[str]:
    """What was left out, and what was written."""
    if settings.passkey is None and options.passkey is None and subject.codec is not None:
        yield "passkey retrieval is left out: a model trained here on little text cannot follow its prompt; --passkey runs it"
    if options.out is not None:
        found.save(options.out)
        yield f"wrote {options.out}"
    if options.store and found.usable is not None:
        yield _stored(subject, found)


def _next(path: Path, found: Evaluation, options: EvalOptions) -> Iterator[str]:
    """Commands to run next."""
    given, program = shlex.quote(str(path)), command()
    yield f"sample: {program} generate {given} --prompt 'The '"
    trained = found.model.trained_length or 0
    longest = max(entry.length for entry in found.lengths)
    more = "" if options.data is None else f" --data {shlex.quote(str(options.data))}"
    if options.trained_length is not None:
        more += f" --trained-length {trained}"
    yield f"longer contexts: {program} extend {given} --to {longest if longest > trained else '2x'}{more}"
    if options.html is None:
        yield "a page with charts: the same command with --html eval.html"


def _stored(subject: Subject, found: Evaluation) -> str:
    try:
        if subject.from_hub:
            raise UserError("the model comes from the Hub")
        return f"usable length stored in {store_length(subject.path, found)}, which generate refers to"
    except UserError as reason:
        return f"usable length not stored: {reason}"
