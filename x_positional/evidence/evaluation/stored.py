"""The measured length of a model, kept beside its weights so that generating past it can be reported."""

import os
import sysconfig
from pathlib import Path
from typing import Literal

from x_positional.errors import UserError
from x_positional.evidence.evaluation.results import Evaluation, Record
from x_positional.training.finetune.base import weights_fingerprint

FILE = "x_positional_length.json"
"""In the folder of a model or checkpoint; a GGUF file has its own, `MODEL.gguf.x_positional_length.json`."""


class MeasuredLength(Record):
    """Up to which length the loss of a model does not rise, and how that was measured."""

    kind: Literal["measured length"] = "measured length"
    usable: int
    """The longest length at which the loss does not rise, by `rule`."""
    rises_at: int | None
    """The next length measured, at which the loss rises; None where no longer length has a loss."""
    rise: float | None
    """The loss there minus that at the usable length, in nats per token."""
    tolerance: float
    rule: str
    protocol: str
    data: str
    """The text that was scored."""
    losses: tuple[tuple[int, float | None], ...]
    """Every length measured, and its loss in nats per token."""
    weights: str
    """Fingerprint of the weights that were measured."""

    @classmethod
    def of(cls, evaluation: Evaluation, weights: str) -> "MeasuredLength | None":
        """What an evaluation found; None where no length is usable."""
        usable = evaluation.usable
        if usable is None:
            return None
        loss = {entry.length: entry.loss for entry in evaluation.lengths}
        following = min((length for length in loss if length > usable.length), default=None)
        after, before = None if following is None else loss[following], loss[usable.length]
        rises = after is not None and before is not None
        return cls(
            usable=usable.length,
            rises_at=following if rises else None,
            rise=after - before if after is not None and before is not None else None,
            tolerance=usable.tolerance,
            rule=usable.rule,
            protocol=evaluation.protocol,
            data=evaluation.data.name,
            losses=tuple(loss.items()),
            weights=weights,
        )

    def words(self) -> str:
        """What was measured past the usable length."""
        how = f"({self.protocol}, {self.data})"
        if self.rises_at is None or self.rise is None:
            return f"{self.usable:,} is the longest length measured {how}"
        return (
            f"the loss was measured to rise past {self.usable:,} tokens: by {self.rise:.2f} nats per token at "
            f"{self.rises_at:,} {how}"
        )


def length_file(path: Path) -> Path:
    """The file that holds the length of the model in a folder, or of a GGUF file."""
    return path / FILE if path.is_dir() else path.with_name(f"{path.name}.{FILE}")


def store_length(path: Path, evaluation: Evaluation) -> Path:
    """Write the usable length beside the weights, in place of an earlier one, and return the file.

    Args:
        path: The folder or GGUF file of the weights.
        evaluation: What was measured of them.

    Raises:
        UserError: It is not stored; the message is the reason.
    """
    problem = not_ours(path)
    if problem is not None:
        raise UserError(problem)
    measured = MeasuredLength.of(evaluation, weights_fingerprint(path))
    if measured is None:
        raise UserError("no usable length was found")
    file = length_file(path)
    try:
        measured.save(file)
    except OSError as error:
        raise UserError(f"{file.parent} cannot be written: {error.strerror or error}") from error
    return file


def not_ours(path: Path) -> str | None:
    """Why nothing is written beside a model that other programs installed or downloaded; None where it may be."""
    resolved = path.resolve()
    if any(part.startswith("models--") for part in path.absolute().parts + resolved.parts):
        return f"{path} is in the cache of the Hub"
    installed = [Path(sysconfig.get_path(name)) for name in ("purelib", "platlib")]
    if any(resolved.is_relative_to(folder) for folder in installed):
        return f"{path} belongs to an installed package"
    folder = path if path.is_dir() else path.parent
    return None if os.access(folder, os.W_OK) else f"{folder} is read-only"


def stored_length(path: Path) -> MeasuredLength | None:
    """The length that was measured of the weights at a path; None where none was stored.

    Raises:
        UserError: The file is damaged, or of other weights.
    """
    file = length_file(path)
    if not file.is_file():
        return None
    measured = MeasuredLength.load(file)
    if measured.weights != weights_fingerprint(path):
        raise UserError(f"{file} was measured of other weights; measure again with x-positional eval")
    return measured
