"""Which keys a query may see, as index functions (b, h, q_idx, kv_idx) -> bool that compose with `all_of`.

B batch, T query tokens, S key tokens. Every function takes per-row tensors of the whole batch (expanded, not copied).
"""

import torch
from torch import Tensor

from x_positional.schemes.base import NO_TOKEN, AttentionContext, IndexFn


def filled(kv_index: Tensor) -> IndexFn:
    """Keys [B S] that hold a token."""
    return lambda b, h, i, j: kv_index[b, j] != NO_TOKEN


def causal(q_index: Tensor, kv_index: Tensor) -> IndexFn:
    """Keys [B S] at or before their query [B T]."""
    return lambda b, h, i, j: kv_index[b, j] <= q_index[b, i]


def causal_after_prefix(q_index: Tensor, kv_index: Tensor, prefix: Tensor) -> IndexFn:
    """Keys [B S] at or before their query [B T], and the first `prefix` [B] of their row: those tokens see each other."""
    return lambda b, h, i, j: (kv_index[b, j] <= q_index[b, i]) | (kv_index[b, j] < prefix[b])


def given_pairs(pairs: Tensor, kv_index: Tensor) -> IndexFn:
    """Keys [B S] that a mask [B T N] shows, N tokens of a row by index."""
    return lambda b, h, i, j: pairs[b, i, kv_index[b, j].clamp(min=0)]


def sliding_window(q_index: Tensor, kv_index: Tensor, size: int, causal: bool, first: int = 0) -> IndexFn:
    """The last `size` keys, the query's own included; to both sides (|distance| < size) without a causal mask. And the
    `first` keys of the row."""
    if not causal and first:
        return lambda b, h, i, j: ((q_index[b, i] - kv_index[b, j]).abs() < size) | (kv_index[b, j] < first)
    if not causal:
        return lambda b, h, i, j: (q_index[b, i] - kv_index[b, j]).abs() < size
    if first:
        return lambda b, h, i, j: (q_index[b, i] - kv_index[b, j] < size) | (kv_index[b, j] < first)
    return lambda b, h, i, j: q_index[b, i] - kv_index[b, j] < size


def same_chunk(q_index: Tensor, kv_index: Tensor, q_place: Tensor, size: int) -> IndexFn:
    """Keys of the query's own chunk, where its text is cut every `size` tokens. q_place: [B T] the query's place in its
    text, which in a packed row is its document."""

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        place = q_place[b, i]
        kv_place = place - (q_index[b, i] - kv_index[b, j])  # right within a text; keys of others are masked anyway
        return kv_place.div(size, rounding_mode="floor") == place.div(size, rounding_mode="floor")

    return visible


def same_document(q_documents: Tensor, kv_documents: Tensor) -> IndexFn:
    """Keys [B S] of the query's own document [B T] in a packed row."""
    return lambda b, h, i, j: q_documents[b, i] == kv_documents[b, j]


def all_of(fns: list[IndexFn], q_index: Tensor) -> IndexFn:
    """Every function at once. A query that holds no token sees every key: its output is finite and nobody reads it."""

    def visible(b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        out = fns[0](b, h, i, j)
        for fn in fns[1:]:
            out = out & fn(b, h, i, j)
        return out | (q_index[b, i] == NO_TOKEN)

    return visible


def visible(ctx: AttentionContext) -> IndexFn | None:
    """Which keys a query may see, from all other fields of a context; None if all are visible."""
    q_index, kv_index = ctx.q_index.expand(ctx.batch, -1), ctx.kv_index.expand(ctx.batch, -1)
    size, chunk, given = ctx.window.size, ctx.window.chunk, ctx.custom_mask
    rules: list[IndexFn] = []
    if not ctx.ordered:
        rules.append(filled(kv_index))
    if ctx.causal:
        rules.append(causal(q_index, kv_index))
    if given is not None and given.ndim == 1:
        rules.append(causal_after_prefix(q_index, kv_index, given.expand(ctx.batch)))
    elif given is not None:
        rules.append(given_pairs(given, kv_index))
    if size is not None:
        rules.append(sliding_window(q_index, kv_index, size, ctx.causal, ctx.window.keep_first))
    if chunk is not None and ctx.q_place is not None:
        rules.append(same_chunk(q_index, kv_index, ctx.q_place.expand(ctx.batch, -1), chunk))
    if ctx.q_documents is not None and ctx.kv_documents is not None:
        rules.append(same_document(ctx.q_documents, ctx.kv_documents))
    return all_of(rules, q_index) if rules else None


def index_of(mask: Tensor) -> Tensor:
    """[B T] bool, True = a token -> [B T] int64: 0, 1, 2, ... over the tokens of each row, -1 elsewhere."""
    return torch.where(mask, mask.long().cumsum(-1) - 1, NO_TOKEN)


def restart_per_document(index: Tensor, documents: Tensor, before: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """[B T] index, [B T] documents -> positions that start from 0 at each document's first token, -1 at padding.

    `before` is what a cache remembers of the tokens already read: the last document [B] and the index of its first
    token [B], so that a document cut by a chunk's edge goes on where it stopped.
    """
    is_token = index != NO_TOKEN
    last = torch.where(is_token, torch.arange(index.shape[1], device=index.device), -1).cummax(dim=-1).values
    previous = torch.cat(
        [torch.full_like(last[:, :1], -1), last[:, :-1]], dim=1
    )  # the slot of the token before, past padding
    first_of_row = previous < 0
    starts = is_token & (first_of_row | (documents != documents.gather(1, previous.clamp_min(0))))
    first = torch.where(starts, index, 0)
    if before is not None:
        last_document, document_start = before
        continues = is_token & first_of_row & (documents == last_document[:, None])
        first = torch.where(continues, document_start[:, None], first)
    return torch.where(is_token, index - first.cummax(dim=-1).values, NO_TOKEN)


def text_lengths(index: Tensor, positions: Tensor, documents: Tensor | None) -> Tensor:
    """[B|1 T] index, [B|1 T] or [B|1 T A] positions, [B T] documents -> how long each token's text is: its last position
    + 1, over its row [B|1 1], or in a packed row over its document [B T]."""
    last = positions if positions.ndim == 2 else positions.amax(dim=-1)
    last = torch.where(index == NO_TOKEN, NO_TOKEN, last)
    if documents is None:
        return last.amax(dim=1, keepdim=True) + 1
    ids, order = documents.sort(dim=1, stable=True)
    run = torch.zeros_like(ids)
    run[:, 1:] = (ids[:, 1:] != ids[:, :-1]).cumsum(dim=1)
    run = torch.zeros_like(run).scatter(1, order, run)  # 0, 1, 2, ... in place of the documents' names
    of_run = torch.zeros_like(last.expand_as(run)).scatter_reduce(1, run, last.expand_as(run), "amax")
    return of_run.gather(1, run) + 1
