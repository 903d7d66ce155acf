"""Masks that the caller gives: who sees whom, padding, and the prefix of a prefix LM.

B batch, T tokens, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from x_positional.attention.backends import Prepared
from x_positional.attention.backends.eager import Eager
from x_positional.errors import InputError, PositionError
from x_positional.models.language import TransformerWrapper
from x_positional.schemes.base import AttentionContext, Bias
from x_positional.schemes.compose import leaves
from x_positional.testing.checks_backends import Scenario, split_backends
from x_positional.testing.checks_batch import LENGTHS, padded
from x_positional.testing.checks_maps import Replaced
from x_positional.testing.expect import Expect, difference
from x_positional.testing.subject import Kind, Subject, both_sides

LENGTH, WINDOW, CHUNK, HIDDEN = 13, 5, 4, 4
PREFIXES = (5, 1, 9)


class BruteForce(Eager):
    """Eager attention under a mask of its own, whatever the planner made of masks.

    Args:
        table: [B T S] bool.
    """

    def __init__(self, table: Tensor):
        self.table = table

    def prepare(self, ctx: AttentionContext, bias: Bias | None, dtype: torch.dtype) -> Prepared:
        ctx = replace(ctx, visible=lambda b, h, i, j: self.table[b, i, j], custom_mask=self.table)
        return Prepared(ctx=ctx, bias=bias)


class Reference:
    """The model in float64, without a causal mask, under masks written out by a check."""

    def __init__(self, subject: Subject, kind: Kind):
        self.model = both_sides(subject.fresh(kind, backend="eager").double())
        self.kinds = list(self.model.attn_layers.kinds)

    def __call__(self, tokens: Tensor, table: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B T V]. table: [B T T] bool."""
        choice = Replaced("brute force", "a reference", BruteForce(table))
        self.model.attn_layers.kinds = [replace(kind, choice=choice) for kind in self.kinds]
        return self.model(tokens, mask=mask)


def random_pairs(subject: Subject, *, ahead: bool) -> Tensor:
    """[3 T T] bool, who sees whom, one query nothing. ahead: later keys too."""
    pairs = torch.rand(3, LENGTH, LENGTH, generator=torch.Generator().manual_seed(8)) < 0.5
    pairs |= torch.eye(LENGTH, dtype=torch.bool)
    pairs[1, 3] = False
    return (pairs if ahead else pairs.tril()).to(subject.device)


def near(subject: Subject) -> Tensor:
    """[T T] bool, pairs of tokens that a window shows."""
    place = torch.arange(LENGTH, device=subject.device)
    return (place[:, None] - place).abs() < WINDOW


def portable(subject: Subject, kind: Kind) -> list[str]:
    """The backends to test: without flex on a CPU, which traces each call for a second; `backends_agree` runs it with masks."""
    names = ["eager", *split_backends(subject, kind, Scenario("", {}, {}))[0]]
    return [name for name in names if name != "flex" or subject.device.type != "cpu"]


@torch.no_grad()
def attention_masks(subject: Subject, expect: Expect) -> None:
    """attention_mask [B T S] gives the logits of eager attention that hides the same pairs in float64, on every backend, with a
    window and with padding; in chunks through a cache it gives those of one pass; a token that it hides everywhere has no effect,
    except through forget gates. attention_mask [B T] is padding. With causal_only=True a mask that shows a later key is refused."""
    tokens = subject.tokens(LENGTH)
    for kind in subject.kinds:
        ahead = kind == "encoder" or not subject.capabilities(kind).causal_only
        pairs, want, model = random_pairs(subject, ahead=ahead), Reference(subject, kind), subject.model(kind)
        right = want(tokens, pairs)
        for name in portable(subject, kind):
            got = subject.model(kind, backend=name)(tokens, attention_mask=pairs)
            expect.equal(got, right, f"a mask of pairs, {name}, {kind}")
        got = subject.model(kind, window=WINDOW)(tokens, attention_mask=pairs[:, None])
        expect.equal(got, want(tokens, pairs & near(subject)), f"a mask of pairs and a window, {kind}")
        _padded_pairs(subject, expect, kind, pairs, want)
        if not any(leaf.overrides("key_state") for leaf in leaves(subject.scheme(kind))):
            _hides(subject, expect, kind, pairs)  # forget gates sum over every token between query and key
        if not ahead:
            everything = partial(model, tokens, attention_mask=torch.ones_like(pairs))
            expect.refused(everything, PositionError, "a mask that shows later keys, with causal_only=True")
        if kind == "decoder" and subject.capabilities(kind).kv_cacheable:
            _pairs_cached(subject, expect, pairs)


def _padded_pairs(subject: Subject, expect: Expect, kind: Kind, pairs: Tensor, want: Reference) -> None:
    model, tokens = subject.model(kind), subject.tokens(LENGTH)
    keep = torch.arange(LENGTH, device=subject.device) >= torch.tensor([[0], [2], [6]], device=subject.device)
    got = model(tokens, mask=keep, attention_mask=pairs)
    expect.equal(got[keep], want(tokens, pairs & keep[:, None], keep)[keep], f"a mask of pairs, padding left, {kind}")
    plain = model(tokens, mask=keep)
    for given in (keep, keep.long()):
        got = model(tokens, attention_mask=given)
        expect.equal(got, plain, f"attention_mask [batch, tokens] of {given.dtype} and mask, {kind}", bound=0)


def _hides(subject: Subject, expect: Expect, kind: Kind, pairs: Tensor) -> None:
    """A token that nobody sees has no effect on the others."""
    model, tokens, pairs = subject.model(kind), subject.tokens(LENGTH), pairs.clone()
    changed = tokens.clone()
    changed[:, HIDDEN] = (tokens[:, HIDDEN] + 1) % subject.sizes.num_tokens
    pairs[:, :, HIDDEN] = False
    others = torch.arange(LENGTH, device=subject.device) != HIDDEN
    leak = difference(model(changed, attention_mask=pairs)[:, others], model(tokens, attention_mask=pairs)[:, others])
    expect.that(leak == 0, f"changing a token that attention_mask hides changed the others by {leak:.2g}, {kind}.")


def _pairs_cached(subject: Subject, expect: Expect, pairs: Tensor) -> None:
    """In chunks, whose tokens may see each other, and token by token."""
    tokens, place = subject.tokens(LENGTH), torch.arange(LENGTH, device=subject.device)
    for window, chunk in ((None, CHUNK), (WINDOW, CHUNK), (WINDOW, 1)):
        model = subject.model("decoder", window=window)
        visible = pairs & (place // chunk <= (place // chunk)[:, None])
        cache, parts = model.new_cache(3), []
        for part in place.split(chunk):
            now = visible[:, part, : int(part[-1]) + 1]
            parts.append(model(tokens[:, part], attention_mask=now, cache=cache))
        what = f"a mask of pairs, cached in chunks of {chunk}, window {window}"
        expect.equal(torch.cat(parts, 1), model(tokens, attention_mask=visible), what)


@torch.no_grad()
def prefix_lm(subject: Subject, expect: Expect) -> None:
    """With prefix_len the first tokens of each row see each other, and the rest is causal: on every backend, padded, with a window,
    and in a cache that reads the prefix in one call; anything else is refused. With causal_only=True it is always refused."""
    subject.need_decoder()
    model, tokens = subject.model("decoder"), subject.tokens(LENGTH)
    if subject.capabilities("decoder").causal_only:
        expect.refused(partial(model, tokens, prefix_len=5), PositionError, "prefix_len with causal_only=True")
        return
    want, lengths = Reference(subject, "decoder"), torch.tensor(PREFIXES, device=subject.device)
    right = want(tokens, prefix_table(subject, (6, 6, 6)))
    for name in portable(subject, "decoder"):
        got = subject.model("decoder", backend=name)(tokens, prefix_len=6)
        expect.equal(got, right, f"a prefix of 6, {name}")
    table = prefix_table(subject, PREFIXES)
    for window, visible in ((None, table), (WINDOW, table & near(subject))):
        model = subject.model("decoder", window=window)
        full = model(tokens, prefix_len=lengths)
        expect.equal(full, want(tokens, visible), f"prefixes of {PREFIXES}, window {window}")
        if subject.capabilities("decoder").kv_cacheable:
            _prefix_cached(expect, model, tokens, full, f"window {window}")
    _prefix_padded(subject, expect)
    _prefix_sees_itself(subject, expect)


def prefix_table(subject: Subject, prefixes: Sequence[int]) -> Tensor:
    """[B T T] bool, written out token by token."""
    rows = [
        [[k <= q or (q < prefix and k < prefix) for k in range(LENGTH)] for q in range(LENGTH)] for prefix in prefixes
    ]
    return torch.tensor(rows, device=subject.device)


def _prefix_cached(expect: Expect, model: TransformerWrapper, tokens: Tensor, full: Tensor, what: str) -> None:
    lengths, first = torch.tensor(PREFIXES, device=tokens.device), max(PREFIXES)
    for max_len in (None, LENGTH):
        cache = model.new_cache(3, max_len=max_len)
        parts = [model(tokens[:, :first], prefix_len=lengths, cache=cache)]
        parts += [model(tokens[:, first : first + 1], cache=cache), model(tokens[:, first + 1 :], cache=cache)]
        expect.equal(torch.cat(parts, 1), full, f"a prefix in a cache, max_len={max_len}, {what}")
    again = partial(model, tokens, prefix_len=5, cache=cache)
    expect.refused(again, InputError, "prefix_len in a call after the first")
    cut = partial(model, tokens[:, :CHUNK], prefix_len=5, cache=model.new_cache(3))
    expect.refused(cut, InputError, f"a prefix of 5 cut to {CHUNK} tokens")


def _prefix_padded(subject: Subject, expect: Expect) -> None:
    """A prefix counts the tokens of its row, not its padding."""
    model, rows = (
        subject.model("decoder"),
        [row[:n] for row, n in zip(subject.tokens(11), LENGTHS, strict=True)],
    )
    lengths = [5, 4, 2]
    want = torch.cat([model(row[None], prefix_len=n)[0] for row, n in zip(rows, lengths, strict=True)])
    for side in ("left", "right", "between"):
        tokens, mask = padded(rows, side, subject.tokens(14, seed=4))
        got = model(tokens, mask=mask, prefix_len=lengths)
        expect.equal(got[mask], want, f"a prefix, padding {side}")


def _prefix_sees_itself(subject: Subject, expect: Expect) -> None:
    """The first token sees the last one of the prefix, and none after it."""
    model, tokens = subject.model("decoder"), subject.tokens(LENGTH)
    full = model(tokens, prefix_len=5)
    for place, seen in ((4, True), (5, False)):
        changed = tokens.clone()
        changed[:, place] = (tokens[:, place] + 1) % subject.sizes.num_tokens
        got = model(changed, prefix_len=5)[:, :place]
        if seen:
            expect.differ(got, full[:, :place], "another last token of the prefix")
        else:
            expect.equal(got, full[:, :place], "another token after the prefix", bound=0)
