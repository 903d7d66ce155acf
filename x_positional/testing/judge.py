"""What a check measures and concludes: equal within rounding, clearly different, or refused."""

from collections.abc import Callable

import torch
from torch import Tensor

TOLERANCE = 1e-5
"""Largest difference of two float32 results that are the same but for rounding; logits here are of size one."""
APART = 1e-3
"""Smallest difference of two results that are not the same."""


class Broken(AssertionError):
    """The scheme does not do what it declares; the message says what was measured."""


class NotApplicable(Exception):
    """The check has no question to ask of this scheme; the message says why."""


def difference(got: Tensor, want: Tensor) -> float:
    """Largest absolute difference; infinite where the shapes differ or a value is not a number."""
    if got.shape != want.shape:
        return float("inf")
    if not got.numel():
        return 0.0
    largest = (got.to(want.dtype) - want).abs().max().item()
    return largest if largest == largest else float("inf")


class Judge:
    """Collects the largest difference between results that must be equal."""

    def __init__(self) -> None:
        self.largest: float | None = None

    def note(self, measured: float) -> None:
        """Remember a difference that was within its tolerance."""
        self.largest = measured if self.largest is None else max(self.largest, measured)

    def equal(self, got: Tensor, want: Tensor, what: str, tolerance: float = TOLERANCE) -> None:
        """Raises Broken where two tensors differ by more than `tolerance`."""
        measured = difference(got, want)
        if not measured <= tolerance:
            raise Broken(f"{what}: the largest difference is {measured:.2g}, and {tolerance:.2g} is rounding.")
        self.note(measured)

    def differ(self, got: Tensor, want: Tensor, what: str) -> None:
        """Raises Broken where two tensors are (almost) the same, or not finite."""
        measured = difference(got, want)
        if not APART <= measured < float("inf"):
            raise Broken(f"{what}: the largest difference is {measured:.2g}, and at least {APART:.2g} was expected.")

    def same(self, got: Tensor, want: Tensor, what: str) -> bool:
        """True where equal, False where different; raises Broken for anything between."""
        measured = difference(got, want)
        if TOLERANCE < measured < APART:
            raise Broken(f"{what}: a difference of {measured:.2g} is more than rounding and less than a meaning.")
        if measured <= TOLERANCE:
            self.note(measured)
        return measured <= TOLERANCE

    def require(self, holds: bool, what: str) -> None:
        """Raises Broken with `what` unless it holds."""
        if not holds:
            raise Broken(what)

    def finite(self, got: Tensor, what: str) -> None:
        """Raises Broken where a value is infinite or not a number."""
        self.require(bool(got.isfinite().all()), f"{what}: some values are not finite.")

    def refused(
        self, call: Callable[[], object], error: type[Exception] | tuple[type[Exception], ...], what: str
    ) -> None:
        """Raises Broken unless `call` raises `error`."""
        try:
            call()
        except error:
            return
        except Exception as other:
            raise Broken(f"{what}: {_name(error)} was expected; it raised {type(other).__name__}: {other}") from other
        raise Broken(f"{what}: {_name(error)} was expected, and it ran.")


def _name(error: type[Exception] | tuple[type[Exception], ...]) -> str:
    return error.__name__ if isinstance(error, type) else " or ".join(e.__name__ for e in error)


def fails(call: Callable[[], Tensor]) -> bool:
    """Whether forcing something really goes wrong: it raises, or gives values that are not finite."""
    try:
        return not bool(torch.isfinite(call()).all())
    except Exception:
        return True
