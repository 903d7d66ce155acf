"""The planner: masks, tables and shared biases of one forward pass, computed once and not once per layer.

B batch, T new tokens, S key tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from x_positional.attention import masks
from x_positional.attention.backends import Prepared
from x_positional.attention.cache import CachePass, KeyView, KVCache
from x_positional.attention.cross import NO_CONTEXT, ContextInputs, CrossAttentionKind, plan_cross, resolve_context
from x_positional.attention.plan import LayerKind, LayerPlan, PassPlan
from x_positional.attention.streaming import KeptTokens, as_kept_tokens_see, bias_of_kept, tables_of_kept
from x_positional.attention.tokens import TokenLayout
from x_positional.errors import InputError
from x_positional.schemes.base import AttentionContext, AttentionWindow, Capabilities, Dims, PositionScheme

IN_ADVANCE = 64
"""Tokens whose tables are computed at once while decoding."""


@dataclass(frozen=True, kw_only=True)
class Pass:
    """What every step of planning reads."""

    dims: Dims
    layout: TokenLayout
    batch: int
    dtype: torch.dtype
    cache: CachePass | None

    @property
    def final_lengths(self) -> Tensor | None:
        """[B|1] how long the rows will be, where the cache knows it."""
        return None if self.cache is None else self.cache.final_lengths


def plan_pass(
    kinds: Sequence[LayerKind],
    dims: Dims,
    layout: TokenLayout,
    batch: int,
    dtype: torch.dtype,
    cache: KVCache | None = None,
    cross: CrossAttentionKind | None = None,
    context: ContextInputs = NO_CONTEXT,
    tracked: bool = False,
) -> PassPlan:
    """The plan of every layer.

    Args:
        kinds: scheme, window and backend of each layer.
        dims: sizes of the stack.
        layout: the new tokens.
        batch: B.
        dtype: of the hidden states, which dense masks and biases are cast to.
        cache: reserves its slots here. It stays as it is until the plan's pass is committed.
        cross: the stack's cross-attention, None where it has none.
        context: what cross-attention reads.
        tracked: autograd records this pass.

    Raises:
        InputError, PositionError, CacheError.
    """
    seen = resolve_context(batch, cross, layout, context, [kind.scheme for kind in kinds], cache)
    windows = [kind.window for kind in kinds] if cache is None else list(cache.windows)
    moved = {window: _moved(layout, window) for window in set(windows)}
    filling = None if cache is None else cache.begin(layout, kinds, tracked)
    views = {} if filling is None else filling.views
    run = Pass(dims=dims, layout=layout, batch=batch, dtype=dtype, cache=filling)
    contexts = {window: attention_context(run, window, views.get(window)) for window in moved}
    distinct = {id(kind.scheme): kind.scheme for kind in kinds}
    caps = {key: scheme.capabilities() for key, scheme in distinct.items()}
    tables = {key: _tables(run, scheme, caps[key], layout.positions) for key, scheme in distinct.items()}
    plans: dict[tuple[int, AttentionWindow, str], LayerPlan] = {}
    layers = []
    for layer, (kind, window) in enumerate(zip(kinds, windows, strict=True)):
        scheme = id(kind.scheme)
        key = scheme, window, kind.choice.name
        plan = plans.get(key)
        if plan is None:
            prepared, kept_tokens = _share(run, kind, caps[scheme], contexts[window], tables[scheme], moved[window])
            plan = plans[key] = LayerPlan(
                layer=layer,
                prepared=prepared,
                backend=kind.choice.backend,
                tables=tables[scheme],
                view=views.get(window),
                cache=filling,
                kept_tokens=kept_tokens,
                whole_rows=caps[scheme].kernel == "rows",
                reads_layer=caps[scheme].reads_layer,
            )
        layers.append(plan if plan.layer == layer else plan._replace(layer=layer))
    if seen is None or cross is None:
        return PassPlan(layers=layers, cross=None, cache=filling)
    of_layer = [(kind.scheme, tables[id(kind.scheme)]) for kind in kinds]
    backend = cross.choice.backend
    crossing = plan_cross(batch, dims.heads, layout, context.context, seen, of_layer, backend, dtype, filling)
    return PassPlan(layers=layers, cross=crossing, cache=filling)


def attention_context(run: Pass, window: AttentionWindow, view: KeyView | None) -> AttentionContext:
    """Queries, keys and mask of the layers with one window. view: the keys in the cache, None without one."""
    layout, batch = run.layout, run.batch
    kv_documents = layout.documents if view is None else view.documents
    q_documents = layout.documents
    if kv_documents is not None and q_documents is None:
        q_documents = kv_documents.new_zeros(batch, layout.length)
    memo = None if run.cache is None else run.cache.memo.biases.get(window)
    ctx = AttentionContext(
        q_index=layout.index,
        kv_index=layout.index if view is None else view.index,
        q_positions=layout.positions,
        kv_positions=layout.positions if view is None else view.positions,
        batch=batch,
        heads=run.dims.heads,
        span=layout.span,
        causal=run.dims.causal and not layout.ahead,
        ahead=layout.ahead,
        custom_mask=layout.prefix if layout.pairs is None else layout.pairs,
        window=window,
        ordered=layout.start is not None if view is None else view.ordered,
        q_start=layout.start or 0 if view is None else view.q_start,
        kv_start=layout.start or 0 if view is None else view.start,
        custom_positions=layout.custom_positions or (view is not None and view.positions is not view.index),
        positions_below_span=layout.within_span and (view is None or view.positions is view.index),
        q_documents=q_documents,
        kv_documents=kv_documents,
        q_place=None if window.chunk is None else layout.offset_in_document,
        memo=memo,
    )
    only_visible = view is not None and view.only_visible and q_documents is None and layout.pairs is None
    return ctx if only_visible else replace(ctx, visible=masks.visible(ctx))


def _moved(layout: TokenLayout, window: AttentionWindow) -> TokenLayout | None:
    """The queries as the first tokens see them; None where that is where they are. Raises InputError."""
    if window.keep_first and (layout.custom_positions or layout.documents is not None):
        raise InputError(
            "keep_first uses the place in the cache as the position of the first tokens, so it cannot be combined with "
            "positions= or document_ids=. Leave keep_first out, or pass neither."
        )
    return as_kept_tokens_see(layout, window)


def _share(
    run: Pass, kind: LayerKind, caps: Capabilities, ctx: AttentionContext, tables: Any, moved: TokenLayout | None
) -> tuple[Prepared, KeptTokens | None]:
    """What the layers of one scheme and window share. tables: the scheme's, for the queries where they are."""
    backend, scheme = kind.choice.backend, kind.scheme
    if moved is None:
        return backend.prepare(ctx, scheme.bias(ctx), run.dtype), None
    prepared = backend.prepare(ctx, bias_of_kept(scheme, ctx, moved), run.dtype)
    near = tables_of_kept(scheme, tables, _tables(run, scheme, caps, moved.positions))
    return prepared, KeptTokens.of(scheme, ctx, near, moved)


def _tables(run: Pass, scheme: PositionScheme, caps: Capabilities, positions: Tensor) -> Any:
    """The scheme's tables for the new tokens at these positions, which may be moved. Lengths are those of the whole texts, so
    queries and keys are rotated at the same frequencies."""
    layout = run.layout
    if run.final_lengths is not None and scheme.takes_final_length:
        return scheme.length_tables(positions, run.final_lengths[:, None])
    if caps.prefix_consistent:
        tables = _tables_in_advance(run, scheme) if positions is layout.index else None
        return scheme.tables(positions) if tables is None else tables
    return scheme.length_tables(positions, masks.text_lengths(layout.index, layout.positions, layout.documents))


def _tables_in_advance(run: Pass, scheme: PositionScheme) -> Any:
    """The tables of a decoding step, taken from those of many tokens in the cache's memo; None where that does not apply."""
    start, cache = run.layout.start, run.cache
    if cache is None or start is None or run.layout.length > 1 or not scheme.splits_tables:
        return None
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return None
    known = cache.memo.tables.get(id(scheme))
    if known is None or not known[0] <= start < known[0] + IN_ADVANCE:
        index = torch.arange(start, start + IN_ADVANCE, device=run.layout.index.device)[None]
        known = cache.memo.tables[id(scheme)] = start, scheme.tables(index)
    return scheme.token_tables(known[1], start - known[0])
