"""Functions of the caller that take part in a decoding step: logits processors and stopping criteria.

R rows (prompts times sequences, or beams, per prompt), N new tokens so far, V vocabulary.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from x_positional.errors import ArgumentError

LogitsProcessor = Callable[[Tensor, Tensor], Tensor]
"""(new tokens [R N], logits [R V]) -> logits [R V]."""
StoppingCriterion = Callable[[Tensor], bool | Tensor]
"""New tokens [R N], at least one -> which rows end with their last token: [R] bool, or one bool for all rows."""
Function = TypeVar("Function")


def as_list(given: Function | Sequence[Function] | None) -> list[Function]:
    """One function, a list of them or None -> a list."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]  # type: ignore[list-item]


def callable_problems(name: str, given: Any) -> Iterator[str]:
    """What of an option `name` is not a function."""
    for function in as_list(given):
        if not callable(function):
            yield f"{name}={given!r} must be a function or a list of functions; {function!r} is not callable."


def processed(processors: Sequence[LogitsProcessor], tokens: Tensor, logits: Tensor) -> Tensor:
    """Logits [R V] after every processor in order; tokens [R N] are the new ones so far.

    Raises:
        ArgumentError: a processor does not return logits of the same shape and device.
    """
    for processor in processors:
        found = processor(tokens, logits)
        if not isinstance(found, Tensor) or not found.is_floating_point():
            got = found.dtype if isinstance(found, Tensor) else type(found).__name__
            raise ArgumentError(
                f"the logits processor {processor!r} returned {got}; it must return the logits {_of(logits)}."
            )
        if found.shape != logits.shape or found.device != logits.device:
            raise ArgumentError(
                f"the logits processor {processor!r} returned {_of(found)} for logits {_of(logits)}; it must keep shape and device."
            )
        logits = found
    return logits


def stopped(criteria: Sequence[StoppingCriterion], tokens: Tensor) -> Tensor:
    """Which rows [R] bool end with their last token, by any of the criteria; tokens [R N] are the new ones so far.

    Raises:
        ArgumentError: a criterion returns neither a bool nor [R] bool.
    """
    rows = tokens.shape[0]
    ends = torch.zeros(rows, dtype=torch.bool, device=tokens.device)
    for criterion in criteria:
        found = criterion(tokens)
        if isinstance(found, Tensor) and found.dtype == torch.bool and found.shape in ((), (rows,)):
            ends = ends | found.to(ends.device)
        elif isinstance(found, bool):
            ends = ends | found
        else:
            got = f"{found.dtype} of shape {list(found.shape)}" if isinstance(found, Tensor) else repr(found)
            raise ArgumentError(
                f"the stopping criterion {criterion!r} returned {got}; it must return a bool, or a bool tensor [{rows}] with "
                "one value per row."
            )
    return ends


def _of(logits: Tensor) -> str:
    return f"{list(logits.shape)} on {logits.device}"
