"""Attention maps: rows of probabilities, zeros where a key is hidden, and the same attention as the backend's.

B batch, T tokens, H heads, S key tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from x_positional.attention.backends import Backend, Choice, Prepared, ScoreOps
from x_positional.attention.backends.eager import share_heads
from x_positional.models.language import TransformerWrapper
from x_positional.schemes.base import AttentionContext, Bias
from x_positional.testing.expect import SAFETY, UNIT, Expect, rounding_bound
from x_positional.testing.subject import Kind, Subject

LENGTH, WINDOW = 13, 5
CHUNKS = (6, 1, 1, 5)
"""Of a cached pass; the window is full before the second."""


class MapsTimesValues(Backend):
    """Given maps in place of scores: one after the other, each [B H T S]."""

    name = "maps"

    def __init__(self, maps: Sequence[Tensor]):
        self.maps = iter(maps)

    def prepare(self, ctx: AttentionContext, bias: Bias | None, dtype: torch.dtype) -> Prepared:
        return Prepared(ctx=ctx, bias=None)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, prepared: Prepared, ops: ScoreOps) -> Tensor:
        return next(self.maps).to(v.dtype) @ share_heads(v, q.shape[1])


@dataclass(frozen=True)
class Replaced(Choice):
    """A choice of a backend that has no name in the package."""

    given: Backend

    @property
    def backend(self) -> Backend:
        return self.given


@torch.no_grad()
def attention_maps(subject: Subject, expect: Expect) -> None:
    """Rows of maps sum to one, hidden keys and padding are exactly zero, asking for maps changes no logit, and attention
    replaced by maps @ values gives the same logits; maps of a cached pass are rows of those of the full pass."""
    tokens, columns = subject.tokens(LENGTH), torch.arange(LENGTH, device=subject.device)
    keep = columns >= torch.tensor([[0], [4], [2]], device=subject.device)
    documents = columns // torch.tensor([[13], [5], [4]], device=subject.device)
    for kind in subject.kinds:
        for window in (None, WINDOW):
            model, what = subject.model(kind, window=window), f"{kind}, window {window}"
            distance = columns[:, None] - columns
            visible = (distance >= 0 if kind == "decoder" else torch.ones_like(distance, dtype=torch.bool))[None]
            if window is not None:
                visible = visible & (distance.abs() < window)
            if window is None:  # padding, then packed documents
                call, seen = {"mask": keep}, visible & keep[:, None] & keep[..., None]
            else:
                call, seen = {"document_ids": documents}, visible & (documents[:, None] == documents[..., None])
            logits, maps = model(tokens, **call, return_attention=True)
            expect.equal(logits, model(tokens, **call), f"logits beside maps, {what}", 0)
            check_rows(expect, maps, seen, what)
            other = subject.fresh(kind, window=window)
            replace_attention(other, maps)
            real = keep if window is None else torch.ones_like(keep)
            expect.equal(other(tokens, **call)[real], logits[real], f"maps @ values in place of attention, {what}")
            if kind == "decoder" and subject.capabilities(kind).kv_cacheable:
                _cached(subject, expect, kind, window)


def check_rows(expect: Expect, maps: Sequence[Tensor], visible: Tensor, what: str) -> None:
    """One map a layer, of probabilities of the keys that are visible [B|1 T S]."""
    for layer, found in enumerate(maps):
        where = f"map of layer {layer}, {what}"
        expect.that(found.ndim == 4 and found.shape[2:] == visible.shape[1:], f"{where}: shape {list(found.shape)}.")
        hidden = ~visible[:, None].expand(len(found), found.shape[1], -1, -1)
        largest = found[hidden].abs().max().item() if hidden.any() else 0.0
        expect.that(largest == 0, f"{where}: a hidden key has probability {largest:.2g}.")
        sums = visible.any(-1)[:, None].expand(found.shape[:3]).to(found.dtype)
        expect.equal(found.sum(-1), sums, f"{where}: sums of rows", SAFETY * UNIT * found.shape[-1])
        expect.that(bool((found >= 0).all()), f"{where}: a probability is negative.")


def replace_attention(model: TransformerWrapper, maps: Sequence[Tensor]) -> None:
    """Give a model's next pass these maps in place of its attention, one a layer."""
    layers, given = model.attn_layers, MapsTimesValues(maps)
    chosen = Replaced(given.name, "maps @ values", given)
    layers.kinds = [replace(kind, choice=chosen) for kind in layers.kinds]


def _cached(subject: Subject, expect: Expect, kind: Kind, window: int | None) -> None:
    model, tokens = subject.model(kind, window=window), subject.tokens(LENGTH)
    full = torch.stack(model(tokens, return_attention=True)[1])
    exact = torch.stack(subject.exact(kind, window=window)(tokens, return_attention=True)[1])
    bound = rounding_bound(full, exact, subject.terms(LENGTH))
    cache, rows = model.new_cache(len(tokens)), []
    for part in tokens.split(CHUNKS, dim=1):
        maps = torch.stack(model(part, cache=cache, return_attention=True)[1])
        rows.append(F.pad(maps, (0, LENGTH - maps.shape[-1])))
    expect.equal(torch.cat(rows, 3), full, f"maps of a cached pass, window {window}", bound)
