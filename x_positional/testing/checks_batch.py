"""Tokens of one batch or row that must not affect each other: later tokens, other rows, padding, packed documents.

B batch, T tokens, V vocabulary.
"""

import torch
from torch import Tensor

from x_positional.models.language import TransformerWrapper
from x_positional.testing.checks_cache import decode, need_cache
from x_positional.testing.expect import Expect, difference
from x_positional.testing.subject import Kind, Subject

LENGTHS = (11, 4, 7)
DOCUMENTS = ((5, 8), (1, 8, 4), (13,))
"""Lengths of the documents in each row of 13 tokens."""


@torch.no_grad()
def prefix_consistent(subject: Subject, expect: Expect) -> None:
    """A decoder's logits depend neither on later tokens nor on their number. With prefix_consistent=False they do depend on
    the number, but not on which tokens follow."""
    subject.need_decoder()
    declared, other = subject.capabilities("decoder").prefix_consistent, subject.tokens(19, seed=9)
    for window in (None, 5):
        model, tokens = subject.model("decoder", window=window), subject.tokens(19)
        full, shorter = model(tokens), {n: model(tokens[:, :n]) for n in (1, 8, 18)}
        for n in shorter:
            got = model(torch.cat([tokens[:, :n], other[:, n:]], 1))[:, :n]
            expect.equal(got, full[:, :n], f"other tokens after the first {n}")
            if declared:
                expect.equal(shorter[n], full[:, :n], f"the first {n} of 19 tokens")
        same = all(expect.equal_or_apart(cut, full[:, :n], f"the first {n} of 19 tokens") for n, cut in shorter.items())
        expect.that(
            same == declared, f"prefix_consistent={declared} is declared, but longer texts do not change their prefix."
        )


@torch.no_grad()
def batch_independent(subject: Subject, expect: Expect) -> None:
    """A row's logits do not depend on the other rows."""
    for kind in subject.kinds:
        model, tokens = subject.model(kind), subject.tokens(12)
        full = model(tokens)
        for row in range(3):
            expect.equal(model(tokens[row : row + 1]), full[row : row + 1], f"row {row} alone, {kind}")
        expect.equal(model(tokens[[2, 0]]), full[[2, 0]], f"rows 2 and 0, {kind}")


def padded(rows: list[Tensor], side: str, filler: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [T_i] -> tokens [B T] and mask [B T], padded on the "left", on the "right" or "between" the tokens."""
    tokens, mask = filler.clone(), torch.zeros_like(filler, dtype=torch.bool)
    width = filler.shape[1]
    for i, row in enumerate(rows):
        n = len(row)
        half = n // 2
        places = {
            "left": range(width - n, width),
            "right": range(n),
            "between": [*range(half), *range(width - n + half, width)],
        }[side]
        at = torch.tensor(list(places), device=filler.device)
        tokens[i, at], mask[i, at] = row, True
    return tokens, mask


def alone(model: TransformerWrapper, rows: list[Tensor]) -> Tensor:
    """Logits of every row run alone, concatenated: [sum T_i, V]."""
    return torch.cat([model(row[None])[0] for row in rows])


@torch.no_grad()
def padding(subject: Subject, expect: Expect) -> None:
    """Rows padded left, right or between their tokens give the logits of each row alone, with a window too."""
    rows = [row[:n] for row, n in zip(subject.tokens(11), LENGTHS, strict=True)]
    for kind in subject.kinds:
        for window in (None, 5):
            model = subject.model(kind, window=window)
            want = alone(model, rows)
            for side in ("left", "right", "between"):
                tokens, mask = padded(rows, side, subject.tokens(14, seed=4))
                expect.equal(model(tokens, mask=mask)[mask], want, f"padding {side}, window {window}, {kind}")


@torch.no_grad()
def ragged_decoding(subject: Subject, expect: Expect) -> None:
    """Prompts of different lengths, padded left, right or between their tokens, continue in a cache like each row alone, in
    chunks of any size."""
    need_cache(subject)
    rows, more = [row[:n] for row, n in zip(subject.tokens(11), LENGTHS, strict=True)], subject.tokens(6, seed=2)
    whole = [torch.cat([row, new]) for row, new in zip(rows, more, strict=True)]
    for window in (None, 5):
        model = subject.model("decoder", window=window)
        want = alone(model, whole)
        for side, of_a_window in (("left", (4,)), ("right", (1,)), ("between", (14, 4))):
            tokens, mask = padded(rows, side, subject.tokens(14, seed=4))
            for chunk in (14, 4, 1) if window is None else of_a_window:
                cache = model.new_cache(3, max_len=None if chunk == 4 else 20)
                prompt = decode(model, cache, chunk, tokens, mask=mask)
                new = torch.cat([decode(model, cache, 1, more[:, :3]), decode(model, cache, 3, more[:, 3:])], 1)
                got = torch.cat([torch.cat([prompt[i][mask[i]], new[i]]) for i in range(3)])
                expect.equal(got, want, f"padding {side}, chunks of {chunk}, window {window}")


def documents(subject: Subject) -> Tensor:
    """[3 13] document ids."""
    rows = [torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in DOCUMENTS]
    return torch.stack(rows).to(subject.device)


def each_alone(model: TransformerWrapper, tokens: Tensor) -> Tensor:
    """[3 13 V] logits of every document run alone."""
    rows = [alone(model, list(row.split(list(lengths)))) for row, lengths in zip(tokens, DOCUMENTS, strict=True)]
    return torch.stack(rows)


@torch.no_grad()
def packing(subject: Subject, expect: Expect) -> None:
    """Documents packed into a row give the logits of each alone, cached too; changing one leaves the others bit-identical."""
    tokens, ids = subject.tokens(13), documents(subject)
    changed = torch.where(ids == 0, (tokens + 1) % subject.sizes.num_tokens, tokens)
    for kind in subject.kinds:
        for window in (None, 5):
            model, what = subject.model(kind, window=window), f"{kind}, window {window}"
            got = model(tokens, document_ids=ids)
            expect.equal(got, each_alone(model, tokens), f"packed documents, {what}")
            leak = difference(model(changed, document_ids=ids)[ids != 0], got[ids != 0])
            expect.that(leak == 0, f"changing the first document changed the others by {leak:.2g}, {what}.")
            _padded_documents(subject, expect, kind, model)
            if kind == "decoder" and subject.capabilities(kind).kv_cacheable:
                for chunk in (1, 4):
                    packed = decode(model, model.new_cache(3), chunk, tokens, document_ids=ids)
                    expect.equal(packed, got, f"packed documents, cached in chunks of {chunk}, {what}")


def _padded_documents(subject: Subject, expect: Expect, kind: Kind, model: TransformerWrapper) -> None:
    tokens, ids = subject.tokens(13), documents(subject)
    mask = torch.ones(3, 17, dtype=torch.bool, device=subject.device)
    mask[:, :3] = mask[:, 16:] = False
    wide = torch.cat([tokens[:, :3], tokens, tokens[:, :1]], 1)
    wide_ids = torch.cat([ids[:, :1].expand(-1, 3), ids, ids[:, -1:]], 1)
    got = model(wide, mask=mask, document_ids=wide_ids)[:, 3:16]
    expect.equal(got, each_alone(model, tokens), f"packed and padded documents, {kind}")
