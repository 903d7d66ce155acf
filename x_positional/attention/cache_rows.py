"""The arguments of a cache's operations, checked: sizes, row numbers, and how many tokens each row keeps.

B batch.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from x_positional.errors import ArgumentError, CacheError


def whole_number(name: str, value: Any, least: int = 1) -> int:
    """The value as an int. Raises ArgumentError unless it is an integer of at least `least`."""
    try:
        number = None if isinstance(value, bool | Tensor) else value.__index__()
    except AttributeError:
        number = None
    if number is None or number < least:
        raise ArgumentError(f"{name}={value!r} must be an integer of at least {least}.")
    return number


def row_numbers(rows: Tensor | Sequence[int], batch: int) -> Tensor:
    """[B'] int64. Raises CacheError."""
    try:
        given = torch.as_tensor(rows)
    except (TypeError, ValueError, RuntimeError) as error:
        raise CacheError(f"rows={rows!r} must be integers from 0 to {batch - 1}, one for each row to keep.") from error
    if given.dtype == torch.bool:
        raise CacheError("rows is a bool mask, but must be the numbers of the rows to keep: mask.nonzero().flatten().")
    if given.ndim != 1 or not len(given) or given.is_floating_point() or given.is_complex():
        raise CacheError(
            f"rows must be a list of integers, at least one; got shape {list(given.shape)} of {given.dtype}."
        )
    if not torch.compiler.is_compiling() and (int(given.min()) < 0 or int(given.max()) >= batch):
        raise CacheError(f"rows={given.tolist()} must be from 0 to {batch - 1}: this cache has batch_size={batch}.")
    return given.long()


def take_rows(t: Tensor, rows: Tensor, batch: int) -> Tensor:
    """[B ...] -> [B' ...] with these rows [B']; [1 ...] that all rows of a larger batch share stays as it is."""
    return t if t.shape[0] == 1 and batch > 1 else t[rows]


def kept_lengths(length: Any, batch: int, held: int | Tensor) -> int | Tensor:
    """How many tokens are left of rows that hold `held`: one number while rows are alike, otherwise [B] int64.

    Args:
        length: how many to keep: a number for all rows, below 0 how many to drop; or [B], one for each row.
        batch: B.
        held: one number, or [B] where rows differ, which forces a device sync.

    Raises:
        ArgumentError: it is no integer, or not one for each row.
        CacheError: a row holds fewer tokens.
    """
    try:
        given = torch.as_tensor(length)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ArgumentError(_wrong_length(f"{length!r}", batch)) from error
    if given.dtype == torch.bool or given.is_floating_point() or given.is_complex():
        raise ArgumentError(_wrong_length(f"{length!r}", batch))
    if given.ndim == 0:
        return _alike(int(given), held)
    if given.shape != (batch,):
        raise ArgumentError(_wrong_length(f"{given.tolist()}", batch))
    wanted = given.tolist()
    there = [held] * batch if isinstance(held, int) else held.tolist()
    for row, (keep, has) in enumerate(zip(wanted, there, strict=True)):
        if keep < 0:
            raise ArgumentError(
                f"length={wanted}: row {row} cannot keep {keep} tokens. Give how many each row keeps; only a single "
                "integer may be negative, to drop that many tokens of every row."
            )
        if keep > has:
            raise CacheError(f"crop({wanted}): row {row} of this cache holds only {has} tokens. {_WAY_OUT}")
    if isinstance(held, int):
        return wanted[0] if len(set(wanted)) == 1 else given.long()
    return given.long().to(held.device)


def _alike(length: int, held: int | Tensor) -> int | Tensor:
    """The same length for every row, or the same number of dropped tokens."""
    most = held if isinstance(held, int) else int(held.max())
    if length >= 0:
        if length > most:
            raise CacheError(f"crop({length}): a row of this cache holds only {most} tokens. {_WAY_OUT}")
        return length if isinstance(held, int) else held.clamp(max=length)
    fewest = held if isinstance(held, int) else int(held.min())
    if -length > fewest:
        raise CacheError(f"crop({length}) drops {-length} tokens, but a row of this cache holds only {fewest}.")
    return held + length


_WAY_OUT = "Crop to at most that many; a cache cannot be extended without reading tokens."


def _wrong_length(value: str, batch: int) -> str:
    rows = "a list of one integer" if batch == 1 else f"{batch} integers, one for each row"
    return f"length={value} must be an integer, or {rows}: the tokens that it keeps."
