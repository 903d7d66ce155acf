"""The rule that decides whether a published claim was reproduced. It reads numbers and nothing else.

A claim has one or more parts. Each is a statistic with a 95 % interval, and a bound that the paper puts it above or below. A
part holds where its whole interval is on the claimed side of the bound, and fails where all of it is on the other side. A claim is

- reproduced, where every part holds;
- contradicted, where a part fails;
- not measured, where a part has no statistic and none fails;
- inconclusive on this budget, otherwise.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.evidence.store import Evidence
from x_positional.evidence.comparison.statistics import Interval

Word = Literal["reproduced", "contradicted", "inconclusive on this budget", "not measured"]
Side = Literal["above", "below"]


@dataclass(frozen=True)
class Part:
    """One statistic of a claim."""

    statistic: str
    """What was computed, in words."""
    found: Interval | None
    """None where it could not be computed."""
    side: Side
    """Where the paper puts the statistic."""
    bound: float = 0.0
    reason: str = ""
    """Why there is no statistic, or what keeps it from deciding anything."""
    valid: bool = True
    """False where a condition of the comparison was not met, such as a task that neither model learned."""

    @property
    def holds(self) -> bool | None:
        """None where the interval contains the bound, or nothing can be decided."""
        if self.found is None or self.found.half is None or not self.valid:
            return None
        beyond = (self.found.mean - self.bound) * (1 if self.side == "above" else -1)
        return None if abs(beyond) <= self.found.half else beyond > 0


@dataclass(frozen=True)
class Claim:
    """What a paper reports."""

    name: str
    paper: str
    """Authors, year, arXiv number, and the table or figure."""
    text: str
    """The claim, in our words."""
    measure: Callable[[Evidence], Sequence[Part]]
    note: str = ""
    """How our measurement differs from the paper's."""


@dataclass(frozen=True)
class Verdict:
    """A claim and what came of it."""

    claim: Claim
    parts: tuple[Part, ...]

    @property
    def word(self) -> Word:
        return decide(self.parts)


def decide(parts: Sequence[Part]) -> Word:
    """The verdict on a claim with these parts."""
    if any(part.holds is False for part in parts):
        return "contradicted"
    if not parts or any(part.found is None for part in parts):
        return "not measured"
    return "reproduced" if all(part.holds for part in parts) else "inconclusive on this budget"
