"""The results of the contract suite for one scheme."""

from dataclasses import dataclass
from typing import Literal

from x_positional.schemes.base import Capabilities

Verdict = Literal["pass", "fail", "n/a"]


@dataclass(frozen=True, kw_only=True)
class CheckResult:
    """The result of one check."""

    check: str
    """Name of the check."""
    verdict: Verdict
    """"n/a": the check does not apply to the scheme."""
    difference: float | None = None
    """Largest difference between results that must be equal; None if the check compares no numbers."""
    margin: float | None = None
    """How far a failed measurement lies beyond its bound, as a factor; None if the failure is not a number."""
    detail: str = ""
    """What is wrong, or why the check does not apply."""

    def __str__(self) -> str:
        measured = "" if self.difference is None else f"{self.difference:.1e}"
        return f"{self.verdict:<5} {self.check:<20} {measured:<8} {self.detail}".rstrip()


@dataclass(frozen=True, kw_only=True)
class ContractReport:
    """The declared capabilities, and the results of all checks in the order they ran."""

    capabilities: Capabilities
    results: tuple[CheckResult, ...]

    @property
    def ok(self) -> bool:
        """No check failed."""
        return not self.failures

    @property
    def failures(self) -> tuple[CheckResult, ...]:
        """The checks that failed."""
        return tuple(r for r in self.results if r.verdict == "fail")

    def __getitem__(self, check: str) -> CheckResult:
        """The result of one check, by name."""
        return next(r for r in self.results if r.check == check)

    def __str__(self) -> str:
        passed = sum(r.verdict == "pass" for r in self.results)
        counts = f"{passed} passed, {len(self.failures)} failed, {len(self.results) - passed - len(self.failures)} not applicable"
        return "\n".join([f"declares {self.capabilities}", *map(str, self.results), counts])
