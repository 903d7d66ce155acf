"""The plan of cross-attention: which context keys a row may read, and whether they carry positions.

B batch, T query tokens, S context tokens, C context dim.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from x_positional.attention import masks
from x_positional.attention.backends import Backend, Prepared
from x_positional.attention.cache import CrossContext, KVCache, TokenLayout
from x_positional.attention.inputs import place
from x_positional.errors import InputError, PositionError
from x_positional.modules.attention import CrossPlan
from x_positional.schemes.base import NO_TOKEN, AttentionContext, PositionScheme


@dataclass(frozen=True)
class ContextInputs:
    """What the caller gave: context [B S C], its mask [B S] (True = keep), its positions [B S] or None."""

    context: Tensor | None
    mask: Tensor | None
    positions: Tensor | None


def resolve_context(
    batch: int,
    width: int,
    tokens: TokenLayout,
    given: ContextInputs,
    schemes: list[PositionScheme],
    cache: KVCache | None,
) -> CrossContext:
    """The context that the cache has seen, or the one given, checked; nothing is changed. width: C.

    Positions play no part in cross-attention unless context positions were given: queries and context are usually
    different sequences, so a distance between them means nothing. Raises InputError, PositionError.
    """
    if tokens.documents is not None:
        raise InputError(
            "document_ids with a context: nothing says which context belongs to which document. Unpack them."
        )
    if cache is None or cache.cross_context is None:
        if given.positions is not None and cache is not None and cache.final_lengths is not None:
            raise PositionError(
                "context_positions were given, and the cache has final_lengths: queries would turn for the final length of "
                "their row, and context keys for max_seq_len. Leave one of them out."
            )
        return _place_context(batch, width, given, schemes)
    _refuse_another(given, cache.cross_context)
    return cache.cross_context


def _refuse_another(given: ContextInputs, seen: CrossContext) -> None:
    """Raises InputError where what is given is not what the cache holds the keys of."""
    pairs = (
        ("context", given.context, seen.context),
        ("context_mask", given.mask, seen.mask),
        ("context_positions", given.positions, seen.positions),
    )
    for name, new, old in pairs:
        if new is None or new is old:
            continue
        if old is None or new.shape != old.shape or not torch.equal(new, old):
            raise InputError(
                f"this cache holds the keys of another {name}, and keys are computed once. Pass the same one, or leave it "
                "out to go on with what the cache has seen, or make a new cache for the new context."
            )


def plan_cross(
    batch: int,
    heads: int,
    tokens: TokenLayout,
    context: Tensor | None,
    seen: CrossContext,
    of_layer: list[tuple[PositionScheme, Any]],
    backend: Backend,
    dtype: torch.dtype,
    cache: KVCache | None,
) -> list[CrossPlan]:
    """One plan per layer. `of_layer`: each layer's scheme and its tables for the new tokens."""
    if cache is not None:
        cache.cross_context = seen
    ctx, reads = _context(batch, heads, tokens, seen.tokens)
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


def _place_context(batch: int, width: int, given: ContextInputs, schemes: list[PositionScheme]) -> CrossContext:
    context = given.context
    if context is None:
        raise InputError(f"this stack attends to a context: pass context=[batch, tokens, dim={width}].")
    if context.ndim != 3 or context.shape[0] != batch or context.shape[2] != width or not context.shape[1]:
        raise InputError(
            f"context must be [batch={batch}, tokens, dim={width}], with at least one token; this one is "
            f"{list(context.shape)}."
        )
    rotated = given.positions is not None
    caps = [(type(s).__name__, s.capabilities()) for s in schemes]
    blind = sorted(
        {name for name, c in caps if c.causal_only or c.kernel == "rows" or not c.prefix_consistent or c.reads_layer}
    )
    if rotated and blind:
        raise PositionError(
            f"context_positions were given, and {', '.join(blind)} is defined only under a causal mask, which "
            "cross-attention has not, or needs whole rows of scores, or turns texts of different lengths differently, or "
            "reads the keys of self-attention. "
            "Leave context_positions out, or use rope, alibi or dynamic."
        )
    tokens = place(batch, context.shape[1], context.device, given.mask, given.positions)
    return CrossContext(tokens, rotated, context, given.mask, given.positions)


def _context(batch: int, heads: int, tokens: TokenLayout, keys: TokenLayout) -> tuple[AttentionContext, Tensor | None]:
    """The context of cross-attention, and which rows have anything to read: [B 1 1 1] bool, or None for all."""
    visible, reads = None, None
    if keys.start is None:
        kv_index = keys.index.expand(batch, -1)
        reads = (kv_index != NO_TOKEN).any(-1)[:, None, None, None]
        readable = torch.where(reads[:, 0, 0], kv_index, 0)  # an empty row reads zeros: finite, then dropped
        visible = masks.all_of([masks.filled(readable)], tokens.index.expand(batch, -1))
    ctx = AttentionContext(
        q_index=tokens.index,
        kv_index=keys.index,
        q_positions=tokens.positions,
        kv_positions=keys.positions,
        batch=batch,
        heads=heads,
        span=max(tokens.span, keys.span),
        causal=False,
        visible=visible,
        custom_positions=True,
    )
    return ctx, reads
