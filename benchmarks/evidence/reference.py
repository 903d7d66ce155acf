"""A published checkpoint in transformers, with the scalings that it has too, on the windows of `x-positional extend`.

    x-positional extend MODEL.gguf --to 16384 --dtype bfloat16 --windows 8 --targets 256 --position-windows 0 --run-dir again
    cp again/extension.json evidence/extend-smollm2-135m.json
    python -m benchmarks.evidence.reference MODEL.gguf

transformers reads the file and scales the frequencies by itself. A finished row is kept. The loss of the unchanged model past its
trained length depends on rounding, so one window is measured in float32, too.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from torch import Tensor
from torch.nn import functional

from benchmarks.evidence.store import EXTENSION, FOLDER, REFERENCE, Reference
from x_positional.cli.evidence.subject import Subject, open_subject
from x_positional.errors import UserError, XPositionalError
from x_positional.evidence.evaluation.lengths import LengthSettings
from x_positional.evidence.evaluation.scoring import Scorer, cut
from x_positional.evidence.extension.results import Attempt, Extension
from x_positional.progress import print_lines, progress_bars

TYPES = {"none": "default", "linear": "linear", "dynamic": "dynamic", "yarn": "yarn"}
"""Names of methods here and in transformers."""
WINDOWS = 2
"""Windows of the extension, from the first on."""


def main(arguments: list[str] | None = None) -> int:
    """Measure what is missing; 0 if it could be."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.evidence.reference", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("model", type=Path, help="the GGUF file that was extended")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where the results are (default: evidence/)")
    given = parser.parse_args(arguments)
    console = Console()
    try:
        extension = Extension.load(given.folder / EXTENSION)
        subject = open_subject(given.model, console, device="cpu", dtype="bfloat16")
        path = given.folder / REFERENCE
        measure(extension, subject, path, console)
        if Reference.load(path).float32 is None:
            exact = open_subject(given.model, console, device="cpu", dtype="float32")
            measure_float32(extension, exact, path, console)
        print_lines(console, f"kept in {path}")
    except XPositionalError as error:
        print_lines(Console(stderr=True), f"error: {error}")
        return 2
    return 0


def measure(extension: Extension, subject: Subject, path: Path, console: Console) -> None:
    """Every method that transformers has, on the first windows of the extension."""
    track = progress_bars(console)
    tokens, settings = subject.text(None, track).tokens, _settings(extension, subject)
    kept = Reference.load(path) if path.exists() else Reference(losses={})
    losses = dict(kept.losses)
    published: Any = None
    for attempt in extension.attempts:
        kind = TYPES.get(attempt.label.split()[0])
        if kind is None or attempt.label in losses:
            continue
        published = published or _published(subject.path, torch.bfloat16)
        model, found = _scaled(published, kind, extension), {n: [] for n in settings.lengths}
        for end in track(settings.ends(len(tokens))[:WINDOWS], f"transformers, {attempt.label}"):
            for length in settings.lengths:
                window = cut(tokens, np.array([end]), length, settings.start_token)
                found[length].append(_loss(model, torch.from_numpy(window), settings.targets))
        losses[attempt.label] = {length: tuple(values) for length, values in found.items()}
        kept.model_copy(update={"losses": losses}).save(path)


def measure_float32(extension: Extension, subject: Subject, path: Path, console: Console) -> None:
    """The unchanged model at the target length, here and in transformers; about four minutes on two cores."""
    kept, track = Reference.load(path), progress_bars(console)
    tokens, settings = subject.text(None, track).tokens, _settings(extension, subject)
    window = cut(tokens, settings.ends(len(tokens))[:1], extension.target, settings.start_token)
    measures: dict[str, Callable[[], float]] = {
        "x_positional": lambda: Scorer(subject.load()).losses(window, settings.targets).mean().item(),
        "transformers": lambda: _loss(
            _published(subject.path, torch.float32).eval(), torch.from_numpy(window), settings.targets
        ),
    }
    found = {name: measures[name]() for name in track(list(measures), "float32")}
    kept.model_copy(update={"float32": found}).save(path)


def _settings(extension: Extension, subject: Subject) -> LengthSettings:
    """Lengths, windows and targets of the extension. Raises UserError where nothing was measured."""
    rows = [row for attempt in extension.attempts[:1] for row in _rows(attempt) if row.loss is not None]
    if not rows or not rows[0].targets:
        raise UserError("the unchanged model has no losses; run `x-positional extend` first")
    windows = len(rows[0].windows)
    lengths = tuple(row.length for row in rows)
    return LengthSettings(lengths, rows[0].targets // windows, windows, None, subject.start_token)


def _rows(attempt: Attempt) -> tuple[Any, ...]:
    return () if attempt.evaluation is None else attempt.evaluation.lengths


def _published(path: Path, dtype: torch.dtype) -> Any:
    """The model as transformers reads it."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=dtype)


def _scaled(published: Any, kind: str, extension: Extension) -> Any:
    """The same weights with scaled frequencies, named as transformers does."""
    config = published.config.__class__.from_dict(published.config.to_dict())
    rope: dict[str, Any] = {"rope_type": kind, "rope_theta": config.rope_parameters["rope_theta"]}
    if kind != "default":
        rope["factor"] = extension.target / extension.trained_length
    if kind == "yarn":
        rope["original_max_position_embeddings"] = extension.trained_length
    config.rope_parameters = rope
    # dynamic takes the trained length from here, the others only check it
    config.max_position_embeddings = extension.trained_length if kind == "dynamic" else extension.target
    model = type(published)(config).to(torch.bfloat16)
    model.load_state_dict(published.state_dict())
    return model.eval()


@torch.inference_mode()
def _loss(model: Any, ids: Tensor, targets: int) -> float:
    """The mean loss of the last tokens of a window [1 T], of which the model reads T - 1."""
    logits = model(ids[:, :-1], use_cache=False, logits_to_keep=targets).logits
    return functional.cross_entropy(logits[0].double(), ids[0, -targets:]).item()


if __name__ == "__main__":
    sys.exit(main())
