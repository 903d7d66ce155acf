"""A stack of blocks that share one plan: where tokens are is settled once, then what they are flows through.

B batch, T query tokens, S key tokens, M model dim, C context dim, A position axes.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from x_positional.attention import masks
from x_positional.attention.backends import Choice, Prepared
from x_positional.attention.cache import KeyView, KVCache, TokenLayout
from x_positional.attention.cross import ContextInputs, CrossContext, plan_cross, resolve_context
from x_positional.attention.inputs import SeqLens, check_final_lengths, check_positions_fit, packed_documents, place
from x_positional.attention.streaming import KeptTokens, anchored, bias_of_kept, keep_first_problem
from x_positional.errors import InputError, PositionError
from x_positional.modules.attention import CrossPlan, LayerPlan
from x_positional.modules.block import Block
from x_positional.modules.norms import Norm
from x_positional.schemes.base import AttentionContext, AttentionWindow, Dims, IndexFn, PositionScheme


@dataclass(frozen=True, kw_only=True)
class LayerKind:
    """What distinguishes layers: which scheme, which tokens they see, which backend."""

    scheme: PositionScheme
    window: AttentionWindow
    choice: Choice


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One forward pass: its tokens, and what each layer needs."""

    tokens: TokenLayout
    layers: list[LayerPlan]
    cross: list[CrossPlan] | None


class AttentionLayers(nn.Module):
    """Blocks, their position schemes and a final norm. Takes objects and numbers, never a config.

    schemes: the distinct schemes, which own parameters; kinds: one `LayerKind` per block, whose scheme is one of them
    or a Chain of some. Runs alone on embeddings [B T M].
    """

    def __init__(
        self,
        *,
        dims: Dims,
        blocks: Sequence[Block],
        schemes: Sequence[PositionScheme],
        kinds: Sequence[LayerKind],
        final_norm: Norm | None,
        cross_choice: Choice | None = None,
    ):
        super().__init__()
        self.dims, self.cross_choice = dims, cross_choice
        self.identity = uuid.uuid4().hex  # caches carry it, so that one model's keys never serve another
        self.blocks = nn.ModuleList(blocks)
        self.final_norm = final_norm
        self.set_positions(schemes, kinds)

    def set_positions(self, schemes: Sequence[PositionScheme], kinds: Sequence[LayerKind]) -> None:
        """Replace the position schemes: a wrapper does it once it knows the length that a table needs."""
        self.schemes, self.kinds = nn.ModuleList(schemes), list(kinds)

    @property
    def position_schemes(self) -> list[PositionScheme]:
        """The distinct schemes, typed."""
        return [s for s in self.schemes if isinstance(s, PositionScheme)]

    def new_cache(
        self,
        batch_size: int,
        max_len: int | None = None,
        window: int | None = None,
        dtype: torch.dtype | None = None,
        *,
        keep_first: int = 0,
        rereads: bool = False,
        final_lengths: Tensor | None = None,
    ) -> KVCache:
        """A cache for `batch_size` rows. max_len: slots per row, None grows. window: keep (and see) only the last
        `window` tokens in layers that have no smaller window of their own, and there the `keep_first` tokens of the row
        too, at distances by place in the cache (StreamingLLM). dtype: of keys and values, None as computed. rereads: the
        caller drops the cache and reads the whole text again wherever a scheme's `cache_key` changes. final_lengths: [B] or
        [1] how long each row will be, for frequencies with length_policy="fixed"; None is max_seq_len.

        Raises PositionError where a scheme's cached keys would go stale as the sequence grows, InputError.
        """
        stale = [type(s).__name__ for s in self.position_schemes if not s.capabilities().kv_cacheable]
        if stale and not rereads:
            raise PositionError(
                f"{', '.join(stale)} changes old keys as the sequence grows, so a cache goes stale. Use "
                "AutoregressiveWrapper.generate without a cache of yours, which reads the text again where that happens; "
                "or, for rotary frequencies that follow the length, length_policy='fixed'."
            )
        if not self.dims.causal and any(b.attn is not None for b in self._blocks()):
            raise InputError(
                "an encoder reads both ways: earlier outputs change with later tokens, so no cache is right."
            )
        windows = [kind.window for kind in self.kinds]
        if window is not None:
            windows = [_narrowed(own, window, keep_first) for own in windows]
        elif keep_first:
            raise InputError(f"keep_first={keep_first} keeps tokens that a window would drop. Give window= too.")
        if problem := keep_first_problem(self.position_schemes, windows):
            raise PositionError(problem)
        device = next(self.parameters()).device
        if final_lengths is not None:
            final_lengths = check_final_lengths(final_lengths, batch_size, self.position_schemes).to(device)
        return KVCache(windows, batch_size, max_len, device, dtype, self.identity, final_lengths)

    def _blocks(self) -> list[Block]:
        return [b for b in self.blocks if isinstance(b, Block)]

    def embed(self, x: Tensor, tokens: TokenLayout) -> Tensor:
        """[B T M] -> [B T M]: what schemes add to the embeddings, once."""
        for scheme in self.position_schemes:
            x = scheme.embed(x, tokens.positions)
        return x

    def place(
        self,
        batch: int,
        length: int,
        device: torch.device,
        mask: Tensor | None,
        positions: Tensor | None,
        document_ids: Tensor | None,
        cache: KVCache | None,
    ) -> TokenLayout:
        """Checked positions of the new tokens. Raises InputError, PositionError, CacheError."""
        if cache is not None:
            cache.check(self.identity, batch)
        tokens = place(batch, length, device, mask, positions, document_ids, cache)
        check_positions_fit(tokens, self.position_schemes)
        return tokens

    def plan(
        self,
        batch: int,
        tokens: TokenLayout,
        dtype: torch.dtype,
        cache: KVCache | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        context_positions: Tensor | None = None,
    ) -> Plan:
        """Masks, tables and shared biases for every layer, computed once. A call that is refused leaves the cache alone."""
        seen = self._see(batch, tokens, ContextInputs(context, context_mask, context_positions), cache)
        windows = [kind.window for kind in self.kinds] if cache is None else list(cache.windows)
        moved = {window: _moved(tokens, window) for window in set(windows)}
        views: dict[AttentionWindow, KeyView] = {} if cache is None else cache.reserve(tokens)
        memos = {} if cache is None else cache.memo
        contexts = {
            window: self._context(batch, tokens, window, views.get(window), memos.get(window)) for window in moved
        }
        distinct = {id(k.scheme): k.scheme for k in self.kinds}
        final = None if cache is None else cache.final_lengths
        tables = {key: _tables(scheme, tokens, final) for key, scheme in distinct.items()}
        shared: dict[tuple[int, AttentionWindow], tuple[Prepared, KeptTokens | None]] = {}
        layers = []
        for layer, (kind, window) in enumerate(zip(self.kinds, windows, strict=True)):
            key = (id(kind.scheme), window)
            if key not in shared:
                shared[key] = _share(kind, contexts[window], moved[window], final, dtype)
            prepared, kept_tokens = shared[key]
            layers.append(
                LayerPlan(
                    layer=layer,
                    prepared=prepared,
                    backend=kind.choice.backend,
                    tables=tables[id(kind.scheme)],
                    view=views.get(window),
                    cache=cache,
                    kept_tokens=kept_tokens,
                )
            )
        cross = None
        if seen is not None and self.cross_choice is not None:
            of_layer = [(k.scheme, tables[id(k.scheme)]) for k in self.kinds]
            backend = self.cross_choice.backend
            cross = plan_cross(batch, self.dims.heads, tokens, context, seen, of_layer, backend, dtype, cache)
        return Plan(tokens=tokens, layers=layers, cross=cross)

    def _see(self, batch: int, tokens: TokenLayout, given: ContextInputs, cache: KVCache | None) -> CrossContext | None:
        widths = [block.cross.to_kv.in_features for block in self._blocks() if block.cross is not None]
        if widths:
            return resolve_context(batch, widths[0], tokens, given, [k.scheme for k in self.kinds], cache)
        if given.context is not None:
            raise InputError(
                "context was given, and this stack has no cross-attention. Build it with cross_attend=True."
            )
        return None

    def _context(
        self,
        batch: int,
        tokens: TokenLayout,
        window: AttentionWindow,
        view: KeyView | None,
        memo: dict[int, Any] | None,
    ) -> AttentionContext:
        kv_index = tokens.index if view is None else view.index
        kv_documents = tokens.documents if view is None else view.documents
        q_documents = tokens.documents
        if kv_documents is not None and q_documents is None:
            q_documents = kv_documents.new_zeros(batch, tokens.length)
        ctx = AttentionContext(
            q_index=tokens.index,
            kv_index=kv_index,
            q_positions=tokens.positions,
            kv_positions=tokens.positions if view is None else view.positions,
            batch=batch,
            heads=self.dims.heads,
            span=tokens.span,
            causal=self.dims.causal,
            window=window,
            ordered=tokens.start is not None if view is None else view.ordered,
            q_start=tokens.start or 0 if view is None else view.q_start,
            kv_start=tokens.start or 0 if view is None else view.start,
            custom_positions=tokens.custom_positions or (view is not None and view.positions is not view.index),
            q_documents=q_documents,
            kv_documents=kv_documents,
            memo=memo,
        )
        rules = self._rules(ctx, tokens, view is not None and view.only_visible)
        if not rules:
            return ctx
        q_index = ctx.q_index.expand(batch, -1)
        return replace(ctx, visible=masks.all_of(rules, q_index))

    def _rules(self, ctx: AttentionContext, tokens: TokenLayout, only_visible: bool) -> list[IndexFn]:
        q_index, kv_index = ctx.q_index.expand(ctx.batch, -1), ctx.kv_index.expand(ctx.batch, -1)
        rules: list[IndexFn] = []
        if only_visible and ctx.q_documents is None:
            return rules
        if not ctx.ordered:
            rules.append(masks.filled(kv_index))
        if ctx.causal:
            rules.append(masks.causal(q_index, kv_index))
        size, chunk = ctx.window.size, ctx.window.chunk
        if size is not None:
            rules.append(masks.sliding_window(q_index, kv_index, size, ctx.causal, ctx.window.keep_first))
        if chunk is not None:
            rules.append(masks.same_chunk(q_index, kv_index, tokens.place.expand(ctx.batch, -1), chunk))
        if ctx.q_documents is not None and ctx.kv_documents is not None:
            rules.append(masks.same_document(ctx.q_documents, ctx.kv_documents))
        return rules

    def run(self, x: Tensor, plan: Plan) -> Tensor:
        """[B T M] -> [B T M] through every block and the final norm."""
        for i, block in enumerate(self.blocks):
            cross = None if plan.cross is None else plan.cross[i]
            x = block(x, self.kinds[i].scheme, plan.layers[i], cross)
        return x if self.final_norm is None else self.final_norm(x)

    def forward(
        self,
        x: Tensor,
        *,
        mask: Tensor | None = None,
        positions: Tensor | None = None,
        document_ids: Tensor | None = None,
        context: Tensor | None = None,
        context_mask: Tensor | None = None,
        context_positions: Tensor | None = None,
        cache: KVCache | None = None,
        seq_lens: SeqLens | None = None,
    ) -> Tensor:
        """Embeddings [B T M] -> [B T M].

        mask: [B T] bool, True = keep. positions: [B T] or [B T A], ints or floats. document_ids: [B T], packed rows;
        seq_lens: the same said by the documents' lengths.
        context: [B S C] with context_mask [B S] and, to rotate cross-attention too, context_positions [B S].
        cache: from `new_cache`; x then holds only the new tokens. Raises InputError, PositionError, CacheError.
        """
        if x.ndim != 3 or x.shape[-1] != self.dims.dim or not x.is_floating_point():
            raise InputError(
                f"expected float embeddings [batch, tokens, dim={self.dims.dim}]; got {list(x.shape)} of {x.dtype}."
            )
        document_ids = packed_documents(document_ids, seq_lens, x.shape[0], x.shape[1])
        tokens = self.place(x.shape[0], x.shape[1], x.device, mask, positions, document_ids, cache)
        plan = self.plan(x.shape[0], tokens, x.dtype, cache, context, context_mask, context_positions)
        return self.run(self.embed(x, tokens), plan)


def _narrowed(window: AttentionWindow, size: int, keep_first: int) -> AttentionWindow:
    """A layer's window where a cache keeps only the last `size` tokens. A layer that sees fewer stays as it is."""
    if window.kept is not None and window.kept <= size:
        return window
    return replace(window, size=size, keep_first=max(window.keep_first, keep_first))


def _moved(tokens: TokenLayout, window: AttentionWindow) -> TokenLayout | None:
    """The new tokens where the first ones see them. Raises InputError where nothing says where that is."""
    if window.keep_first and (tokens.custom_positions or tokens.documents is not None):
        raise InputError(
            "keep_first sees the first tokens of a row by their place in the cache, and positions= or document_ids= say "
            "something else. Leave keep_first out, or give neither."
        )
    return anchored(tokens, window)


def _share(
    kind: LayerKind, ctx: AttentionContext, moved: TokenLayout | None, final: Tensor | None, dtype: torch.dtype
) -> tuple[Prepared, KeptTokens | None]:
    """What layers of one scheme and reach share."""
    if moved is None:
        return kind.choice.backend.prepare(ctx, kind.scheme.bias(ctx), dtype), None
    prepared = kind.choice.backend.prepare(ctx, bias_of_kept(kind.scheme, ctx, moved), dtype)
    return prepared, KeptTokens.of(ctx, _tables(kind.scheme, moved, final))


def _tables(scheme: PositionScheme, tokens: TokenLayout, final: Tensor | None) -> Any:
    """final: [B|1] how long the rows will be, None where nobody knows."""
    if final is not None and scheme.takes_final_length:
        return scheme.length_tables(tokens.positions, final[:, None])
    if scheme.capabilities().prefix_consistent:
        return scheme.tables(tokens.positions)
    return scheme.length_tables(tokens.positions, masks.text_lengths(tokens.index, tokens.positions, tokens.documents))
