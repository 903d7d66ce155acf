"""What shares a batch or a row does not meet: prefixes, rows, padding, ragged prompts, packed documents.

B batch, T tokens, V vocabulary.
"""

import torch
from torch import Tensor

from x_positional.models.language import TransformerWrapper
from x_positional.testing.checks_cache import decode, need_cache
from x_positional.testing.judge import Judge, difference
from x_positional.testing.subject import Kind, Subject

LENGTHS = (11, 4, 7)
DOCUMENTS = ((5, 8), (1, 8, 4), (13,))
"""How long the documents of each row of 13 tokens are."""


@torch.no_grad()
def prefix_consistent(subject: Subject, judge: Judge) -> None:
    """A decoder's logits do not depend on later tokens, nor on how many of them there are; with prefix_consistent=False
    they do not depend on which tokens follow, and really on how many."""
    subject.need_decoder()
    declared, other = subject.capabilities("decoder").prefix_consistent, subject.tokens(19, seed=9)
    for window in (None, 5):
        model, tokens = subject.model("decoder", window=window), subject.tokens(19)
        full, shorter = model(tokens), {n: model(tokens[:, :n]) for n in (1, 8, 18)}
        for n in shorter:
            got = model(torch.cat([tokens[:, :n], other[:, n:]], 1))[:, :n]
            judge.equal(got, full[:, :n], f"other tokens after the first {n}")
            if declared:
                judge.equal(shorter[n], full[:, :n], f"the first {n} of 19 tokens")
        same = all(judge.same(cut, full[:, :n], f"the first {n} of 19 tokens") for n, cut in shorter.items())
        judge.require(
            same == declared, f"prefix_consistent={declared} is declared, and longer texts leave it as it is."
        )


@torch.no_grad()
def batch_independent(subject: Subject, judge: Judge) -> None:
    """A row's logits do not depend on the other rows."""
    for kind in subject.kinds:
        model, tokens = subject.model(kind), subject.tokens(12)
        full = model(tokens)
        for row in range(3):
            judge.equal(model(tokens[row : row + 1]), full[row : row + 1], f"row {row} alone, {kind}")
        judge.equal(model(tokens[[2, 0]]), full[[2, 0]], f"rows 2 and 0, {kind}")


def padded(rows: list[Tensor], side: str, filler: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [T_i] -> tokens [B T] and mask [B T]; padding on the "left", on the "right" or "between" the tokens."""
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
    """The logits of every row alone, one after the other: [sum T_i, V]."""
    return torch.cat([model(row[None])[0] for row in rows])


@torch.no_grad()
def padding(subject: Subject, judge: Judge) -> None:
    """Rows of different length, padded left, right or between, equal each row alone; a window too."""
    rows = [row[:n] for row, n in zip(subject.tokens(11), LENGTHS, strict=True)]
    for kind in subject.kinds:
        for window in (None, 5):
            model = subject.model(kind, window=window)
            want = alone(model, rows)
            for side in ("left", "right", "between"):
                tokens, mask = padded(rows, side, subject.tokens(14, seed=4))
                judge.equal(model(tokens, mask=mask)[mask], want, f"padding {side}, window {window}, {kind}")


@torch.no_grad()
def ragged_decoding(subject: Subject, judge: Judge) -> None:
    """Ragged prompts, padded left, right or between, are decoded on with a cache as each row is alone; padding between
    tokens, read one by one, is a row that waits."""
    need_cache(subject)
    rows, more = [row[:n] for row, n in zip(subject.tokens(11), LENGTHS, strict=True)], subject.tokens(6, seed=2)
    whole = [torch.cat([row, new]) for row, new in zip(rows, more, strict=True)]
    for window in (None, 5):
        model = subject.model("decoder", window=window)
        want = alone(model, whole)
        for side in ("left", "right", "between"):
            tokens, mask = padded(rows, side, subject.tokens(14, seed=4))
            for chunk in (14, 4, 1):
                cache = model.new_cache(3, max_len=None if chunk == 4 else 20)
                prompt = decode(model, cache, chunk, tokens, mask=mask)
                new = torch.cat([decode(model, cache, 1, more[:, :3]), decode(model, cache, 3, more[:, 3:])], 1)
                got = torch.cat([torch.cat([prompt[i][mask[i]], new[i]]) for i in range(3)])
                judge.equal(got, want, f"padding {side}, chunks of {chunk}, window {window}")


def documents(subject: Subject) -> Tensor:
    """[3 13] ids of the documents."""
    rows = [torch.repeat_interleave(torch.arange(len(n)), torch.tensor(n)) for n in DOCUMENTS]
    return torch.stack(rows).to(subject.device)


def each_alone(model: TransformerWrapper, tokens: Tensor) -> Tensor:
    """[3 13 V] logits, every document run by itself."""
    rows = [alone(model, list(row.split(list(lengths)))) for row, lengths in zip(tokens, DOCUMENTS, strict=True)]
    return torch.stack(rows)


@torch.no_grad()
def packing(subject: Subject, judge: Judge) -> None:
    """Documents packed into a row equal each alone, cached too; changing one changes the others by exactly nothing."""
    tokens, ids = subject.tokens(13), documents(subject)
    changed = torch.where(ids == 0, (tokens + 1) % subject.sizes.num_tokens, tokens)
    for kind in subject.kinds:
        for window in (None, 5):
            model, what = subject.model(kind, window=window), f"{kind}, window {window}"
            got = model(tokens, document_ids=ids)
            judge.equal(got, each_alone(model, tokens), f"packed documents, {what}")
            leak = difference(model(changed, document_ids=ids)[ids != 0], got[ids != 0])
            judge.require(leak == 0, f"changing the first document changed the others by {leak:.2g}, {what}.")
            _padded_documents(subject, judge, kind, model)
            if kind == "decoder" and subject.capabilities(kind).kv_cacheable:
                for chunk in (1, 4):
                    packed = decode(model, model.new_cache(3), chunk, tokens, document_ids=ids)
                    judge.equal(packed, got, f"packed documents, cached in chunks of {chunk}, {what}")


def _padded_documents(subject: Subject, judge: Judge, kind: Kind, model: TransformerWrapper) -> None:
    tokens, ids = subject.tokens(13), documents(subject)
    mask = torch.ones(3, 17, dtype=torch.bool, device=subject.device)
    mask[:, :3] = mask[:, 16:] = False
    wide = torch.cat([tokens[:, :3], tokens, tokens[:, :1]], 1)
    wide_ids = torch.cat([ids[:, :1].expand(-1, 3), ids, ids[:, -1:]], 1)
    got = model(wide, mask=mask, document_ids=wide_ids)[:, 3:16]
    judge.equal(got, each_alone(model, tokens), f"packed and padded documents, {kind}")
