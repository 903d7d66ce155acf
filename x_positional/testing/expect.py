"""The assertions of the checks, and how far rounding may move a result."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

UNIT = 2.0**-24
"""Unit roundoff of float32: the largest relative error of one operation."""
SAFETY = 4
"""Two results are compared, and each may be off by twice its estimated error."""
APART = 1e-3
"""Smallest difference between results that must differ."""
CEILING = APART / 2
"""Largest rounding bound: beyond it, rounding could hide a real difference."""


class CheckFailed(AssertionError):
    """The scheme does not do what it declares; the message says what was measured.

    `margin` is how far the measurement lies on the wrong side of its bound, as a factor; None where the failure is not a
    number.
    """

    def __init__(self, message: str, margin: float | None = None):
        super().__init__(message)
        self.margin = margin


class NotApplicable(Exception):
    """The check does not apply to this scheme; the message says why."""


def difference(got: Tensor, want: Tensor) -> float:
    """Largest absolute difference; infinite where the shapes differ or a value is not a number."""
    if got.shape != want.shape:
        return float("inf")
    if not got.numel():
        return 0.0
    largest = (got.to(want.dtype) - want).abs().max().item()
    return largest if largest == largest else float("inf")


def rounding_bound(narrow: Tensor, exact: Tensor, terms: int) -> float:
    """The largest difference that rounding explains between two float32 computations of the same values.

    The error of one float32 result is estimated in two ways, and the larger estimate counts:

    1. From the arithmetic. One operation has a relative error of at most u = 2^-24. The errors of consecutive additions
       differ in sign, so `terms` of them add up to about sqrt(terms) u rather than terms u (Higham and Mary 2019, "A new
       approach to probabilistic rounding error analysis"). Values of size s = max |exact| are off by s u sqrt(terms).
    2. From the condition of this computation: the distance of a float32 result from the float64 one. For example, scores of
       size 100 put an error of 100 u into every attention weight, which the size of the logits does not show.

    The bound is 4 times the estimate: two results differ by up to the sum of their errors, and another order of summation
    (another backend, chunk size or machine) may double the error of each.

    Args:
        narrow: a float32 result.
        exact: the same values, computed in float64.
        terms: how many additions a value goes through, one after the other.

    Raises:
        CheckFailed: the bound exceeds CEILING.
    """
    predicted = UNIT * exact.abs().max().item() * math.sqrt(terms)
    measured = difference(narrow, exact)
    bound = SAFETY * max(predicted, measured)
    if not bound <= CEILING:
        raise CheckFailed(
            f"float32 results differ from float64 ones by {measured:.2g}; more than {CEILING / SAFETY:.2g} hides real "
            "errors. Compute in float64 where float32 loses digits, e.g. angles of large positions and long sums."
        )
    return bound


class Expect:
    """Raises CheckFailed where an expectation does not hold; collects the largest difference between equal results."""

    def __init__(self, rounding: Callable[[], float]) -> None:
        """`rounding`: returns the bound for results that are equal but for rounding."""
        self.rounding = rounding
        self.largest: float | None = None

    def note(self, measured: float) -> None:
        """Record a difference that was within its bound."""
        self.largest = measured if self.largest is None else max(self.largest, measured)

    def equal(self, got: Tensor, want: Tensor, what: str, bound: float | None = None) -> None:
        """The results differ by at most `bound`: by default what float32 rounding explains, 0 for bit-identical ones."""
        bound = self.rounding() if bound is None else bound
        self.within(difference(got, want), bound, what)

    def within(self, measured: float, bound: float, what: str) -> None:
        """A difference is at most `bound`."""
        if not measured <= bound:
            allowed = f"float32 rounding explains at most {bound:.2g}" if bound else "they must be identical"
            raise CheckFailed(
                f"{what}: results differ by {measured:.2g}; {allowed}.", measured / bound if bound else None
            )
        self.note(measured)

    def differ(self, got: Tensor, want: Tensor, what: str) -> None:
        """The results are finite and differ by at least APART."""
        measured = difference(got, want)
        if not APART <= measured < float("inf"):
            margin = APART / measured if measured else float("inf")
            raise CheckFailed(
                f"{what}: results must differ by at least {APART:.2g}, but differ by {measured:.2g}.", margin
            )

    def equal_or_apart(self, got: Tensor, want: Tensor, what: str) -> bool:
        """True for equal results, False for different ones; raises CheckFailed for a difference between the two bounds."""
        measured, bound = difference(got, want), self.rounding()
        if bound < measured < APART:
            raise CheckFailed(
                f"{what}: results differ by {measured:.2g}, more than float32 rounding explains ({bound:.2g}) and less than a "
                f"real difference ({APART:.2g})."
            )
        if measured <= bound:
            self.note(measured)
        return measured <= bound

    def that(self, holds: bool, message: str) -> None:
        """The condition holds; `message` is the failure."""
        if not holds:
            raise CheckFailed(message)

    def finite(self, got: Tensor, what: str) -> None:
        """Every value is finite."""
        self.that(bool(got.isfinite().all()), f"{what}: some values are infinite or NaN.")

    def refused(
        self, call: Callable[[], object], error: type[Exception] | tuple[type[Exception], ...], what: str
    ) -> None:
        """The call raises `error`."""
        try:
            call()
        except error:
            return
        except Exception as other:
            raise CheckFailed(f"{what}: expected {_name(error)}, but got {type(other).__name__}: {other}") from other
        raise CheckFailed(f"{what}: expected {_name(error)}, but the call succeeded.")


def _name(error: type[Exception] | tuple[type[Exception], ...]) -> str:
    return error.__name__ if isinstance(error, type) else " or ".join(e.__name__ for e in error)


def fails(call: Callable[[], Tensor]) -> bool:
    """Whether the call raises, or returns values that are not finite."""
    try:
        return not bool(torch.isfinite(call()).all())
    except Exception:
        return True
