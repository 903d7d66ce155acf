"""Embeddings that the caller gives, before the tokens or in place of them.

B batch, P prepended places, T tokens, E width of the token embedding. A row then has P + T places.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from x_positional.attention.inputs import as_tensor
from x_positional.errors import InputError

Part = Tensor
"""Some places of every row: ids [B T], or embeddings [B P E]."""


Checks = Callable[[Any, str, int | None], Tensor]
"""(Embeddings, the argument's name, B or None) -> the embeddings; raises InputError where they do not fit the model."""


def parts_of(tokens: Tensor | None, inputs_embeds: Any, prepend_embeds: Any, check: Checks) -> tuple[Part, ...]:
    """What a row is made of, in order: prepended embeddings if there are any, then ids or embeddings in place of them.

    Args:
        tokens: [B T] ids, or None.
        inputs_embeds: [B T E], or None.
        prepend_embeds: [B P E], or None.
        check: of the model.

    Raises:
        InputError: both or neither of tokens and inputs_embeds, or embeddings that do not fit.
    """
    if (tokens is None) == (inputs_embeds is None):
        given = "neither" if tokens is None else "both"
        raise InputError(
            f"pass exactly one of tokens and inputs_embeds, which replace the embeddings of tokens; got {given}. prepend_embeds= "
            "goes before either."
        )
    last = check(inputs_embeds, "inputs_embeds", None) if tokens is None else tokens
    if prepend_embeds is None:
        return (last,)
    return check(prepend_embeds, "prepend_embeds", last.shape[0]), last


def check_embeds(x: Any, name: str, table: nn.Module, width: int, batch: int | None = None) -> Tensor:
    """Embeddings [B P E] as they are. batch: B, where it is known. Raises InputError."""
    if not isinstance(x, Tensor):
        raise InputError(f"{name} must be a float tensor [batch, places, {width}]; got {type(x).__name__}.")
    x = as_tensor(x, name)
    if x.ndim != 3 or 0 in x.shape or x.shape[-1] != width or batch not in (None, x.shape[0]):
        rows = "batch" if batch is None else str(batch)
        hint = _shape_hint(x, name, width, rows)
        raise InputError(
            f"{name} must have shape [batch, places, width] = [{rows}, places, {width}], with at least one place; got "
            f"{list(x.shape)}. {hint}"
        )
    like = next((p for p in table.parameters() if p.is_floating_point()), None)  # None in a table of packed integers
    if not x.is_floating_point() or (like is not None and x.dtype != like.dtype):
        wanted = "floats" if like is None else f"{like.dtype}, as the token embedding is"
        hint = (
            "Pass ids as tokens."
            if not x.is_floating_point()
            else f"Use {name}.to({'' if like is None else like.dtype})."
        )
        raise InputError(f"{name} must be {wanted}; got {x.dtype}. {hint}")
    if like is not None and x.device != like.device and not like.is_meta:
        raise InputError(
            f"{name} is on {x.device}, but the model is on {like.device}. Use {name}.to({str(like.device)!r})."
        )
    return x


def _shape_hint(x: Tensor, name: str, width: int, rows: str) -> str:
    """The way out for embeddings that are not [rows P width]."""
    if not x.is_floating_point():
        return "Pass ids as tokens."
    if 0 in x.shape:
        return "Leave them out where there are none."
    if x.shape[-1:] != (width,):
        return "Project them to the width of the token embedding with a layer of your own."
    if x.ndim == 3:
        return f"Pass embeddings for each of the {rows} rows."
    if x.ndim == 2:
        return f"For the same embeddings in every row, use {name}[None].expand({rows}, -1, -1)."
    return "Reshape them to these three axes."


def places(parts: Sequence[Part]) -> int:
    """How many places a row has."""
    return parts[0].shape[1] if len(parts) == 1 else sum(part.shape[1] for part in parts)


def with_prepended(value: Any, name: str, parts: Sequence[Part], filler: int) -> Any:
    """A mask or token types for the last part alone, [B T] -> [B P+T], or for all places as they are.

    Args:
        value: None stays None.
        name: of the argument.
        parts: of a row; one part alone has nothing prepended.
        filler: for prepended places.

    Raises:
        InputError: another width.
    """
    if value is None or len(parts) == 1:
        return value
    value, (batch, tokens), whole = as_tensor(value, name), parts[-1].shape[:2], places(parts)
    if value.shape == (batch, tokens):
        return torch.cat([value.new_full((batch, whole - tokens), filler), value], 1)
    if value.shape != (batch, whole):
        raise InputError(
            f"{name} must have shape [{batch}, {tokens}] for the tokens, or [{batch}, {whole}] for prepended embeddings and "
            f"tokens; got {list(value.shape)}."
        )
    return value


def check_covers_prepended(parts: Sequence[Part], **values: Any) -> None:
    """Raises InputError where positions or documents cover the tokens alone, which leaves those of prepended places open."""
    tokens, whole = parts[-1].shape[1], places(parts)
    for name, value in values.items():
        if value is None or len(parts) == 1:
            continue
        shape = as_tensor(value, name).shape
        if shape and shape[0 if len(shape) == 1 else 1] == tokens:
            raise InputError(
                f"{name} covers the {tokens} tokens, but not the {whole - tokens} places of prepend_embeds before them. Pass "
                f"{name} for all {whole} places."
            )


def arguments_of(parts: Sequence[Part]) -> tuple[Tensor | None, dict[str, Tensor]]:
    """Parts of a row, some of which may be empty -> the tokens of a model's call, and its keyword arguments."""
    *before, last = [part for part in parts if part.shape[1]] or parts[-1:]
    given = {"prepend_embeds": before[0]} if before else {}
    return (last, given) if last.ndim == 2 else (None, {"inputs_embeds": last, **given})
