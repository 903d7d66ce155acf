"""Planning cross-attention: which context keys a row may read, and whether positions apply to them.

B batch, T query tokens, S context tokens, C context dim.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from x_positional.attention import masks
from x_positional.attention.backends import Backend, Choice, Prepared
from x_positional.attention.cache import CachePass, CrossContext, KVCache
from x_positional.attention.inputs import as_tensor, check_finite, check_mask, check_positions, prepare_tokens
from x_positional.attention.plan import CrossPlan
from x_positional.attention.tokens import TokenLayout
from x_positional.errors import InputError, PositionError
from x_positional.schemes.base import NO_TOKEN, AttentionContext, AttentionWindow, PositionScheme


@dataclass(frozen=True)
class ContextInputs:
    """The context as the caller gave it."""

    context: Tensor | None = None
    """[B S C]."""
    mask: Tensor | None = None
    """[B S] bool, True = keep."""
    positions: Tensor | None = None
    """[B S]."""


NO_CONTEXT = ContextInputs()


@dataclass(frozen=True)
class CrossAttentionKind:
    """What a stack's cross-attention is, in every layer."""

    width: int
    """C, the channels of its context."""
    choice: Choice
    """The backend, and why."""


def resolve_context(
    batch: int,
    cross: CrossAttentionKind | None,
    layout: TokenLayout,
    given: ContextInputs,
    schemes: list[PositionScheme],
    cache: KVCache | None,
) -> CrossContext | None:
    """The context that the cache holds, or the one given, checked. Changes nothing. None without cross-attention.

    Positions apply in cross-attention only if context positions were given: queries and context are usually different
    sequences, so a distance between them has no meaning. Raises InputError, PositionError.
    """
    if cross is None:
        if given.context is not None:
            raise InputError(
                "context was given, but this stack has no cross-attention. Build it with cross_attend=True."
            )
        return None
    if layout.documents is not None:
        raise InputError(
            "document_ids cannot be combined with a context: there is no mapping from contexts to documents. Unpack them."
        )
    seen = None if cache is None else cache.state.cross_context
    if seen is None:
        if given.positions is not None and cache is not None and cache.final_lengths is not None:
            raise PositionError(
                "context_positions cannot be combined with a cache that has final_lengths: queries would use RoPE frequencies "
                "for the final length of their row, context keys those for max_seq_len. Leave one of them out."
            )
        return _new_context(batch, cross.width, given, schemes)
    refuse_another(given, seen)
    return seen


def refuse_another(given: ContextInputs, seen: CrossContext) -> None:
    """Raises InputError where the context differs from the one whose keys the cache holds."""
    pairs: tuple[tuple[str, Any, Tensor | None], ...] = (
        ("context", given.context, seen.context),
        ("context_mask", given.mask, seen.mask),
        ("context_positions", given.positions, seen.positions),
    )
    for name, new, old in pairs:
        if new is None or new is old:
            continue
        new = as_tensor(new, name)
        if old is not None and new.device != old.device:
            raise InputError(
                f"{name} is on {new.device}, but this cache holds the keys of a {name} on {old.device}. Move it there, or leave it "
                "out to continue with the cached one."
            )
        if old is None or new.shape != old.shape or not torch.equal(new, old):
            raise InputError(
                f"this cache already holds the keys of a different {name}; they are computed once. Pass the same {name}, leave it "
                "out to continue with the cached one, or make a new cache for the new context."
            )


def plan_cross(
    batch: int,
    heads: int,
    layout: TokenLayout,
    context: Tensor | None,
    seen: CrossContext,
    of_layer: list[tuple[PositionScheme, Any]],
    backend: Backend,
    dtype: torch.dtype,
    cache: CachePass | None,
) -> list[CrossPlan]:
    """One plan per layer. `of_layer`: each layer's scheme and its tables for the new tokens."""
    if cache is not None:
        cache.cross_context = seen
    ctx, reads = _attention_context(batch, heads, layout, seen.tokens)
    prepared: dict[int, Prepared] = {}
    k_tables: dict[int, Any] = {}
    plans = []
    for layer, (scheme, q_tables) in enumerate(of_layer):
        if id(scheme) not in prepared:
            prepared[id(scheme)] = backend.prepare(ctx, scheme.bias(ctx) if seen.rotated else None, dtype)
            k_tables[id(scheme)] = scheme.tables(seen.tokens.positions) if seen.rotated else None
        plans.append(
            CrossPlan(
                layer=layer,
                prepared=prepared[id(scheme)],
                backend=backend,
                context=context,
                q_tables=q_tables,
                k_tables=k_tables[id(scheme)],
                rotated=seen.rotated,
                reads=reads,
                cache=cache,
            )
        )
    return plans


def _new_context(batch: int, width: int, given: ContextInputs, schemes: list[PositionScheme]) -> CrossContext:
    context = given.context
    if context is None:
        raise InputError(f"this stack has cross-attention: pass context=[batch, tokens, dim={width}].")
    if not isinstance(context, Tensor) or not context.is_floating_point():
        got = context.dtype if isinstance(context, Tensor) else type(context).__name__
        raise InputError(f"context must be a float tensor [batch, tokens, dim={width}]; got {got}.")
    if context.ndim != 3 or context.shape[0] != batch or context.shape[2] != width or not context.shape[1]:
        raise InputError(
            f"context must have shape [batch={batch}, tokens, dim={width}], with at least one token; got "
            f"{list(context.shape)}."
        )
    rotated = given.positions is not None
    if rotated and (reasons := list(dict.fromkeys(filter(None, map(_no_context_positions, schemes))))):
        raise PositionError(
            f"context_positions were given, but {'; '.join(reasons)}. Leave context_positions out, or use rope, alibi or "
            "dynamic."
        )
    positions = None if given.positions is None else as_tensor(given.positions, "context_positions")
    if positions is not None:
        check_finite(check_positions(positions, batch, context.shape[1], "context_positions"), "context_positions")
    mask = None if given.mask is None else check_mask(given.mask, batch, context.shape[1], "context_mask")
    for name, of_tokens in (("context_mask", mask), ("context_positions", positions)):
        if of_tokens is not None and of_tokens.is_meta and not context.is_meta:  # from any other device it is copied
            raise InputError(
                f"{name} is on {of_tokens.device}, but context is on {context.device}. Pass a {name} with values."
            )
    # checked: a context may be empty
    tokens = prepare_tokens(batch, context.shape[1], context.device, mask, positions, checked=True)
    return CrossContext(tokens, rotated, context, mask, positions)


def _no_context_positions(scheme: PositionScheme) -> str | None:
    """Why a scheme cannot be applied to the keys of a context; None where it can."""
    caps = scheme.capabilities()
    reasons = {
        "needs a causal mask, which cross-attention does not have": caps.causal_only,
        "needs whole rows of scores": caps.kernel == "rows",
        "rotates sequences of different lengths at different frequencies": not caps.prefix_consistent,
        "reads the keys and projections of self-attention": caps.reads_layer,
    }
    return next((f"{type(scheme).__name__} {reason}" for reason, holds in reasons.items() if holds), None)


def _attention_context(
    batch: int, heads: int, layout: TokenLayout, keys: TokenLayout
) -> tuple[AttentionContext, Tensor | None]:
    """Queries, keys and mask of cross-attention, and which rows have any key: [B 1 1 1] bool, None for all of them."""
    kv_index, reads = keys.index, None
    if keys.start is None:
        kv_index = kv_index.expand(batch, -1)
        reads = (kv_index != NO_TOKEN).any(-1)[:, None, None, None]
        kv_index = torch.where(reads[:, 0, 0], kv_index, 0)  # an empty row attends to padding: finite, then zeroed
    ctx = AttentionContext(
        q_index=layout.index,
        kv_index=kv_index,
        q_positions=layout.positions,
        kv_positions=keys.positions,
        batch=batch,
        heads=heads,
        span=max(layout.span, keys.span),
        causal=False,
        window=AttentionWindow(),  # torch.compile cannot read the default
        custom_positions=True,
    )
    return ctx if reads is None else replace(ctx, visible=masks.visible(ctx)), reads
