"""Results of an evaluation as data: written as JSON, read back, and drawn by the report."""

import os
import re
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError
from typing_extensions import Self

from x_positional.errors import UserError


class Record(BaseModel):
    """A frozen result. `save` and `load` are exact: every float is written with all of its digits."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def save(self, path: Path) -> None:
        """Write as JSON; an existing file is replaced atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.{os.getpid()}")
        staged.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        os.replace(staged, path)

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read a file that `save` wrote. Raises UserError."""
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, ValidationError) as error:
            kind = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", cls.__name__).lower()
            article = "an" if kind[0] in "aeiou" else "a"
            raise UserError(f"{path} is not {article} {kind} that this version can read: {error}") from error


class LengthLoss(Record):
    """The loss at one context length."""

    length: int
    """Tokens of context and target in a window."""
    loss: float | None
    """Mean cross entropy in nats per token; None where the model could not run, or the loss was not finite."""
    targets: int = 0
    """Predictions averaged."""
    windows: tuple[float, ...] = ()
    """Mean loss of each window, in the same order at every length, for paired comparisons."""
    reason: str | None = None
    """Why there is no loss."""


class PositionLoss(Record):
    """The loss by position inside one long window, averaged over windows."""

    length: int
    """Tokens in a window."""
    edges: tuple[int, ...]
    """Bin i holds positions edges[i] to edges[i + 1] - 1."""
    loss: tuple[float | None, ...]
    """Nats per token in each bin."""


class PasskeyScore(Record):
    """How often a number hidden in filler text was repeated exactly."""

    length: int
    """Tokens of the prompt."""
    depth: float
    """Where the number stands: 0 is the start, 1 the end."""
    correct: int = 0
    trials: int = 0
    reason: str | None = None
    """Why the model was not tried."""


class TaskScore(Record):
    """A small trained task (copy, repeat, ...) at one length."""

    task: str
    length: int
    """Tokens of the task's input."""
    trained: bool
    """Whether this length is within those that were trained."""
    accuracy: float | None
    """Share of answer tokens that were right, each given the true ones before it."""
    exact: float | None
    """Share of answers that were right as a whole."""
    trials: int = 0
    reason: str | None = None
    """Why there is no score."""


class UsableLength(Record):
    """Up to which length the loss does not rise."""

    length: int
    """The longest length measured at which the rule still holds, and at all shorter ones."""
    tolerance: float
    """The rise allowed over the lowest loss of any shorter length, in nats per token."""
    rule: str
    """The rule in words."""


class ModelSummary(Record):
    """What was evaluated."""

    name: str
    position: str
    """The position scheme in a few words."""
    settings: dict[str, Any] = {}
    """The scheme's settings that differ from the defaults."""
    trained_length: int | None
    """Tokens in a training window; None where unknown."""
    parameters: int


class DataSummary(Record):
    """The text that was scored."""

    name: str
    tokens: int
    bytes_per_token: float | None
    """None where the text of the tokens is unknown; losses are then in bits per token."""
    fingerprint: str
    """Digest of the token ids."""


class Evaluation(Record):
    """Everything that `x-positional eval` measures of one model."""

    kind: Literal["evaluation"] = "evaluation"
    model: ModelSummary
    data: DataSummary
    protocol: str
    """The protocol in a few words, its numbers included."""
    lengths: tuple[LengthLoss, ...]
    positions: PositionLoss | None = None
    passkey: tuple[PasskeyScore, ...] = ()
    tasks: tuple[TaskScore, ...] = ()
    usable: UsableLength | None = None
    seconds: float = 0.0
