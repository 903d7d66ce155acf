"""check_scheme: tests a position scheme against the capabilities it declares."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch

from x_positional.errors import ArgumentError, ContractError
from x_positional.models.quantize import Quantization
from x_positional.schemes.base import Capabilities
from x_positional.testing.checks_backends import backends_agree, gradcheck, gradients_agree, hooks_run
from x_positional.testing.checks_batch import batch_independent, packing, padding, prefix_consistent, ragged_decoding
from x_positional.testing.checks_cache import (
    cache_crops,
    cache_grows,
    cache_reorders,
    cached_equals_full,
    int8_cache,
    sliding_windows,
)
from x_positional.testing.checks_cross import cross_attention
from x_positional.testing.checks_embeds import embeddings
from x_positional.testing.checks_generation import beams
from x_positional.testing.checks_loss import labels
from x_positional.testing.checks_maps import attention_maps
from x_positional.testing.checks_masks import attention_masks, prefix_lm
from x_positional.testing.checks_module import compiles, compiles_decoding, copies, meta_init, no_buffers, state_dict
from x_positional.testing.checks_positions import axes, custom_positions, float_positions, limit, order, shift
from x_positional.testing.checks_precision import precision
from x_positional.testing.expect import CheckFailed, Expect, NotApplicable
from x_positional.testing.subject import Scheme, Sizes, Subject

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


Check: TypeAlias = Callable[[Subject, Expect], None]

_ALL: tuple[Check, ...] = (
    hooks_run,
    backends_agree,
    gradients_agree,
    gradcheck,
    cached_equals_full,
    cache_grows,
    sliding_windows,
    cache_reorders,
    cache_crops,
    int8_cache,
    prefix_consistent,
    batch_independent,
    padding,
    ragged_decoding,
    beams,
    packing,
    labels,
    attention_masks,
    prefix_lm,
    shift,
    limit,
    custom_positions,
    float_positions,
    axes,
    order,
    cross_attention,
    embeddings,
    attention_maps,
    precision,
    no_buffers,
    meta_init,
    state_dict,
    copies,
    compiles,
    compiles_decoding,
)

CHECKS: dict[str, Check] = {check.__name__: check for check in _ALL}
"""Every check by name; its docstring states what it proves."""


def run_check(name: str, subject: Subject) -> CheckResult:
    """The result of one check."""
    expect = Expect(subject.rounding)
    try:
        CHECKS[name](subject, expect)
    except NotApplicable as reason:
        return CheckResult(check=name, verdict="n/a", detail=str(reason))
    except CheckFailed as failure:
        found, detail = expect.largest, str(failure)
        return CheckResult(check=name, verdict="fail", difference=found, margin=failure.margin, detail=detail)
    except Exception as error:
        detail = f"{type(error).__name__}: {error}"
        return CheckResult(check=name, verdict="fail", difference=expect.largest, detail=detail)
    return CheckResult(check=name, verdict="pass", difference=expect.largest)


def check_scheme(
    scheme: Scheme | Sequence[Scheme],
    *,
    only: str | Collection[str] | None = None,
    skip: Collection[str] = (),
    sizes: Sizes | None = None,
    device: str | torch.device = "cpu",
    quantization: Quantization | None = None,
    strict: bool = True,
) -> ContractReport:
    """Run the contract suite on a scheme: what it declares must hold, and what it does not declare must fail.

    Args:
        scheme: a registered name, a config, or a function of `Dims` that builds the scheme, such as its class. The schemes of a
            list are combined.
        only: names from `CHECKS` to run; all by default.
        skip: names from `CHECKS` to leave out.
        sizes: sizes of the small models that the scheme is tested in.
        device: where to run the models.
        quantization: "int8" quantizes their weights: see `x_positional.quantize`.
        strict: raise if a check fails; False returns the report instead.

    Returns:
        The result of every check, in order.

    Raises:
        ContractError: with every failure, if `strict`.
        ArgumentError: for an unknown check, or if no model can be built with the scheme.
    """
    names = list(CHECKS) if only is None else [only] if isinstance(only, str) else list(only)
    unknown = [name for name in (*names, *skip) if name not in CHECKS]
    if unknown:
        raise ArgumentError(f"no check named {', '.join(unknown)}; there are: {', '.join(CHECKS)}")
    subject = Subject(scheme, sizes or Sizes(), torch.device(device), quantization)
    results = tuple(run_check(name, subject) for name in names if name not in skip)
    report = ContractReport(capabilities=subject.capabilities(), results=results)
    if strict and not report.ok:
        raise ContractError(report)
    return report
