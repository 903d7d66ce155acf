"""The verdict of the contract suite on one scheme."""

from dataclasses import dataclass
from typing import Literal

from x_positional.schemes.base import Capabilities

Verdict = Literal["pass", "fail", "n/a"]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """One check. difference: the largest one measured between results that must be equal, None where none was.
    detail: what is wrong, or why the check has no question to ask."""

    check: str
    verdict: Verdict
    difference: float | None = None
    detail: str = ""

    def __str__(self) -> str:
        measured = "" if self.difference is None else f"{self.difference:.1e}"
        return f"{self.verdict:<5} {self.check:<20} {measured:<8} {self.detail}".rstrip()


@dataclass(frozen=True, kw_only=True)
class ContractReport:
    """Every check that ran, in order, and what the scheme declares."""

    capabilities: Capabilities
    outcomes: tuple[Outcome, ...]

    @property
    def ok(self) -> bool:
        """No check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[Outcome, ...]:
        """The checks that failed."""
        return tuple(o for o in self.outcomes if o.verdict == "fail")

    def __getitem__(self, check: str) -> Outcome:
        """The outcome of one check, by name."""
        return next(o for o in self.outcomes if o.check == check)

    def __str__(self) -> str:
        passed = sum(o.verdict == "pass" for o in self.outcomes)
        counts = f"{passed} passed, {len(self.failures)} failed, {len(self.outcomes) - passed - len(self.failures)} not applicable"
        return "\n".join([f"declares {self.capabilities}", *map(str, self.outcomes), counts])
