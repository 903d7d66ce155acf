"""Embeddings given in place of tokens, or before them.

B batch, P prepended places, T tokens, V vocabulary.
"""

import torch
from torch import Tensor

from x_positional.errors import InputError
from x_positional.models.language import TransformerWrapper
from x_positional.testing.checks_batch import alone, padded
from x_positional.testing.checks_cache import decode
from x_positional.testing.expect import Expect
from x_positional.testing.subject import Subject

LENGTH, PREPENDED, WINDOW = 13, 4, 5
LENGTHS = (9, 3, 6)
"""Tokens of the rows that are padded."""


@torch.no_grad()
def embeddings(subject: Subject, expect: Expect) -> None:
    """inputs_embeds of all ids, and prepend_embeds of the first ids before the others, give the logits of the ids: padded left,
    right or between, in a window, and in chunks through a cache. Ids together with inputs_embeds are refused, and so is a call
    with neither."""
    tokens = subject.tokens(LENGTH)
    for kind in subject.kinds:
        model = subject.model(kind)
        x, full = model.embed_tokens(tokens), model(tokens)
        expect.equal(model(inputs_embeds=x), full, f"embeddings in place of tokens, {kind}")
        got = model(tokens[:, PREPENDED:], prepend_embeds=x[:, :PREPENDED])
        expect.equal(got, full, f"embeddings before tokens, {kind}")
    kind = subject.kinds[0]
    model = subject.model(kind)
    expect.refused(
        lambda: model(tokens, inputs_embeds=model.embed_tokens(tokens)), InputError, "tokens beside inputs_embeds"
    )
    expect.refused(model, InputError, "neither tokens nor inputs_embeds")
    for side, window in (("left", None), ("right", None), ("between", WINDOW)):
        _padded(expect, subject, subject.model(kind, window=window), side, f"window {window}, {kind}")
    _partly_hidden(expect, subject, model, kind)
    if "decoder" in subject.kinds and subject.capabilities("decoder").kv_cacheable:
        _cached(expect, subject, tokens)


def _rows(subject: Subject, side: str) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [3 P] to prepend, padded ids [3 T] after them, and their mask [3 T]."""
    tokens = subject.tokens(LENGTH)
    rows = [row[PREPENDED:][:n] for row, n in zip(tokens, LENGTHS, strict=True)]
    return tokens[:, :PREPENDED], *padded(rows, side, subject.tokens(12, seed=4))


def _padded(expect: Expect, subject: Subject, model: TransformerWrapper, side: str, what: str) -> None:
    first, tokens, mask = _rows(subject, side)
    kept = torch.cat([torch.ones_like(first, dtype=torch.bool), mask], 1)
    got = model(tokens, mask=mask, prepend_embeds=model.embed_tokens(first))[kept]
    expect.equal(
        got, model(torch.cat([first, tokens], 1), mask=kept)[kept], f"embeddings before padding {side}, {what}"
    )


def _partly_hidden(expect: Expect, subject: Subject, model: TransformerWrapper, what: str) -> None:
    first, tokens, mask = _rows(subject, "left")
    hidden = torch.tensor([2, 0, 1], device=subject.device)
    kept = torch.cat([torch.arange(PREPENDED, device=subject.device) >= hidden[:, None], mask], 1)
    got = model(tokens, mask=kept, prepend_embeds=model.embed_tokens(first))[kept]
    rows = [row[keep] for row, keep in zip(torch.cat([first, tokens], 1), kept, strict=True)]
    expect.equal(got, alone(model, rows), f"embeddings of which the mask hides some, {what}")


def _cached(expect: Expect, subject: Subject, tokens: Tensor) -> None:
    model, first = subject.model("decoder"), PREPENDED + 3
    x = model.embed_tokens(tokens)
    for window, chunk in ((None, 1), (WINDOW, 4)):
        full = subject.model("decoder", window=window)(tokens)
        cache = model.new_cache(3, max_len=LENGTH if window is None else None, window=window)
        head = model(tokens[:, PREPENDED:first], prepend_embeds=x[:, :PREPENDED], cache=cache)
        got = torch.cat([head, decode(model, cache, chunk, tokens[:, first:])], 1)
        expect.equal(got, full, f"embeddings before tokens in a cache, window {window}, chunks of {chunk}")
        cache = model.new_cache(3, window=window)
        got = torch.cat([model(inputs_embeds=part, cache=cache) for part in x.split(5, 1)], 1)
        expect.equal(got, full, f"embeddings in place of tokens in a cache, window {window}")
