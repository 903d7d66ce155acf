"""Methods measured and ranked: what each costs inside the trained length and gains beyond it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from x_positional.errors import XPositionalError
from x_positional.evidence.evaluation.measure import EvalSettings, evaluate_model
from x_positional.evidence.evaluation.results import DataSummary, Evaluation, LengthLoss
from x_positional.evidence.evaluation.usable import paired
from x_positional.evidence.extension.methods import UNCHANGED, Candidate, Stretch
from x_positional.evidence.extension.rebuild import with_config
from x_positional.evidence.extension.results import Attempt, Extension
from x_positional.models.language import TransformerWrapper
from x_positional.progress import Item, Track, silent


@dataclass(frozen=True)
class Measuring:
    """What every attempt is measured with."""

    name: str
    """Of the model."""
    to: Stretch
    settings: EvalSettings
    """The lengths contain the trained and the target length."""
    tokens: np.ndarray
    """Held-out ids [N]."""
    data: DataSummary
    track: Track = silent

    def evaluate(self, model: TransformerWrapper, label: str) -> Evaluation:
        """Raises UserError and ArgumentError as `evaluate_model` does."""

        def track(items: Iterable[Item], what: str) -> Iterable[Item]:
            return self.track(items, f"{label}: {what}")

        name = self.name if label == UNCHANGED else f"{self.name}, {label}"
        how: dict[str, Any] = {"trained_length": self.to.trained, "data": self.data, "track": track}
        return evaluate_model(model, self.tokens, self.settings, name=name, **how)

    def fits(self, attempt: Attempt, candidate: Candidate) -> bool:
        """Whether an attempt of an earlier session measured the same."""
        found = attempt.evaluation
        if attempt.label != candidate.label or attempt.settings != candidate.settings or found is None:
            return False
        lengths = tuple(entry.length for entry in found.lengths)
        protocol = self.settings.lengths.protocol(len(self.tokens))
        return (lengths, found.protocol, found.data) == (self.settings.lengths.lengths, protocol, self.data)


def try_all(
    model: TransformerWrapper,
    candidates: Sequence[Candidate],
    measuring: Measuring,
    known: Sequence[Attempt] = (),
    landed: Callable[[Attempt], None] = lambda attempt: None,
) -> list[Attempt]:
    """Every method on the same windows, the unchanged model first. Parameters are shared, never copied.

    Args:
        model: The model as it was trained.
        candidates: As `methods.candidates` gives them.
        measuring: Text, lengths, windows.
        known: Attempts of an earlier session; those that measured the same are not measured again.
        landed: Called with each attempt as it is done.
    """
    done: list[Attempt] = []
    for candidate in candidates:
        earlier = next((attempt for attempt in known if measuring.fits(attempt, candidate)), None)
        attempt = earlier or _attempt(model, candidate, measuring)
        done.append(judged(attempt, done[0] if done else attempt, measuring.to))
        landed(done[-1])
    return done


def _attempt(model: TransformerWrapper, candidate: Candidate, measuring: Measuring) -> Attempt:
    about: dict[str, Any] = {"label": candidate.label, "settings": candidate.settings}
    if candidate.config is None:
        return Attempt(**about, evaluation=None, reason=candidate.reason)
    try:
        changed = model if candidate.label == UNCHANGED else with_config(model, candidate.config)
        return Attempt(**about, evaluation=measuring.evaluate(changed, candidate.label))
    except XPositionalError as error:
        return Attempt(**about, evaluation=None, reason=str(error))


def judged(attempt: Attempt, unchanged: Attempt, to: Stretch) -> Attempt:
    """The same with its cost inside and its loss outside."""
    base, inside, outside = at(unchanged, to.trained), at(attempt, to.trained), at(attempt, to.target)
    cost = None if base is None or inside is None else paired(inside, base)[0]
    return attempt.model_copy(update={"inside": cost, "outside": None if outside is None else outside.loss})


def at(attempt: Attempt, length: int) -> LengthLoss | None:
    """The loss of an attempt at a length; None where it has none."""
    entries = () if attempt.evaluation is None else attempt.evaluation.lengths
    return next((entry for entry in entries if entry.length == length and entry.loss is not None), None)


def ranked(attempts: Sequence[Attempt]) -> tuple[Attempt, ...]:
    """The unchanged model, then the others by their loss at the target length, then by their cost inside; last, those without
    a loss there."""

    def key(attempt: Attempt) -> tuple[bool, float, float]:
        return attempt.outside is None, attempt.outside or 0.0, attempt.inside or 0.0

    first = [attempt for attempt in attempts if attempt.label == UNCHANGED]
    return (*first, *sorted((attempt for attempt in attempts if attempt.label != UNCHANGED), key=key))


def best(attempts: Sequence[Attempt]) -> Attempt | None:
    """The attempt with the lowest loss at the target length, the unchanged one included; None where none has a loss there."""
    usable = [attempt for attempt in ranked(attempts) if attempt.outside is not None]
    return min(usable, key=lambda attempt: attempt.outside or 0.0, default=None)


def extension(measuring: Measuring, attempts: Sequence[Attempt], **more: Any) -> Extension:
    """The record. more: `chosen` and `folder`."""
    found: Mapping[str, Any] = {"chosen": None, **more}
    return Extension(
        name=measuring.name,
        trained_length=measuring.to.trained,
        target=measuring.to.target,
        attempts=ranked(attempts),
        **found,
    )
