"""Cross-attention to a context: its mask, its cached keys, its positions.

B batch, T tokens, S context tokens, M model dim, V vocabulary.
"""

import torch
from torch import Tensor

from x_positional.errors import PositionError
from x_positional.models.language import TransformerWrapper
from x_positional.testing.checks_cache import decode
from x_positional.testing.expect import Expect, difference
from x_positional.testing.subject import Kind, Subject

LENGTH, CONTEXT = 11, 8
LENGTHS = (8, 3, 5)


def context_of(subject: Subject, length: int = CONTEXT, seed: int = 11) -> Tensor:
    """[3 S M] random."""
    return torch.randn(3, length, subject.sizes.dim, generator=torch.Generator().manual_seed(seed)).to(subject.device)


@torch.no_grad()
def cross_attention(subject: Subject, expect: Expect) -> None:
    """Masked context tokens have no effect at all, rows equal each alone, backends and cached keys agree, an empty context
    gives finite logits. Context positions change the logits, may move together with those of the tokens, or are refused."""
    for kind in subject.kinds:
        model, tokens, context = subject.model(kind, cross_attend=True), subject.tokens(LENGTH), context_of(subject)
        mask = torch.arange(CONTEXT, device=subject.device) < torch.tensor(LENGTHS, device=subject.device)[:, None]
        got = model(tokens, context=context, context_mask=mask)
        want = torch.cat([model(tokens[i : i + 1], context=context[i : i + 1, :n]) for i, n in enumerate(LENGTHS)])
        expect.equal(got, want, f"rows with a context of their own length, {kind}")
        noise = torch.where(mask[..., None], context, context_of(subject, seed=12))
        leak = difference(model(tokens, context=noise, context_mask=mask), got)
        expect.that(leak == 0, f"masked context tokens changed the logits by {leak:.2g}, {kind}.")
        empty = mask & torch.tensor([[True], [False], [True]], device=subject.device)
        expect.finite(model(tokens, context=context, context_mask=empty), f"a row with an empty context, {kind}")
        for backend in ("eager", "blockwise"):
            other = subject.model(kind, cross_attend=True, backend=backend)
            expect.equal(other(tokens, context=context, context_mask=mask), got, f"{backend} and auto, {kind}")
        if kind == "decoder" and subject.capabilities(kind).kv_cacheable:
            _cached(expect, model, tokens, context, mask, got)
        _with_positions(subject, expect, kind, model)


def _cached(
    expect: Expect, model: TransformerWrapper, tokens: Tensor, context: Tensor, mask: Tensor, want: Tensor
) -> None:
    for chunk in (1, 3):
        cache = model.new_cache(len(tokens))
        first = model(tokens[:, :2], cache=cache, context=context, context_mask=mask)
        rest = decode(model, cache, chunk, tokens[:, 2:])  # the cache now holds the keys of the context
        expect.equal(torch.cat([first, rest], 1), want, f"cached context keys, chunks of {chunk}")


def _with_positions(subject: Subject, expect: Expect, kind: Kind, model: TransformerWrapper) -> None:
    tokens, context, caps = subject.tokens(LENGTH), context_of(subject), subject.capabilities(kind)
    own, theirs = subject.positions(LENGTH), subject.stretched(CONTEXT)
    if caps.causal_only or caps.kernel == "rows" or not caps.prefix_consistent or caps.reads_layer:
        expect.refused(
            lambda: model(tokens, context=context, context_positions=theirs),
            PositionError,
            f"context_positions, {kind}",
        )
        return
    placed = model(tokens, context=context, context_positions=theirs)
    if not acts_in_attention(subject, kind):
        return  # it acts on the embeddings of the tokens, not on the context
    expect.differ(placed, model(tokens, context=context, context_positions=theirs + 3), f"context moved by 3, {kind}")
    if not caps.absolute:
        both = model(tokens, positions=own + 5, context=context, context_positions=theirs + 5)
        expect.equal(both, placed, f"tokens and context moved by 5, {kind}")
    for backend in ("eager", "blockwise"):
        other = subject.model(kind, cross_attend=True, backend=backend)
        expect.equal(
            other(tokens, context=context, context_positions=theirs),
            placed,
            f"{backend} with context positions, {kind}",
        )
    if kind == "decoder" and caps.kv_cacheable:
        cache = model.new_cache(3)
        first = model(tokens[:, :4], cache=cache, context=context, context_positions=theirs)
        got = torch.cat([first, decode(model, cache, 3, tokens[:, 4:])], 1)
        expect.equal(got, placed, "cached context keys with positions")


def acts_in_attention(subject: Subject, kind: Kind) -> bool:
    """Whether the scheme acts inside attention, not only on embeddings."""
    hooks = ("rotate_q", "rotate_k", "bias", "content_bias", "layer_bias", "transform_scores")
    return any(subject.scheme(kind).overrides(hook) for hook in hooks)
