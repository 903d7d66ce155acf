"""Order, and moved, stretched and fractional positions, and positions with several axes, against what the scheme declares.

B batch, T tokens, V vocabulary.
"""

from functools import partial

import torch
from torch import Tensor

from x_positional.errors import PositionError
from x_positional.models.language import TransformerWrapper
from x_positional.testing.checks_cache import decode
from x_positional.testing.expect import APART, Expect, NotApplicable, difference, fails
from x_positional.testing.subject import Kind, Subject, both_sides, forced

LENGTH = 13
SHIFTS = (1, 7, 1000, 2**17)
SHORT, MIDDLE = 9, 4
LONG, FARTHEST, MODELS, GREATER = 256, 2**15, 4, 3
"""Over 4 random models the last token has 0.8 to 1.2 times the effect of the first's neighbour where order is ignored, less where
distance counts, and 8 times or more where keys gain weight to the right: 3 lies between, in the middle of the logarithms."""
SWAPS = {"before": (0, 3), "after": (5, 8)}


@torch.no_grad()
def shift(subject: Subject, expect: Expect) -> None:
    """Moving all positions by a constant (1 to 131072, different in each row) leaves the logits unchanged; with absolute=True
    it changes them."""
    subject.need_positions()
    for kind in subject.kinds:
        model, tokens, bound = subject.model(kind), subject.tokens(LENGTH), subject.scheme(kind).limit
        still, moved = model(tokens), False
        for by in (by for by in SHIFTS if bound is None or 3 * by + LENGTH <= bound):
            rows = torch.tensor([[by], [2 * by], [3 * by]], device=subject.device)
            got = model(tokens, positions=subject.positions(LENGTH) + rows)
            if subject.capabilities(kind).absolute:
                moved |= not expect.equal_or_apart(got, still, f"absolute=True, positions moved by {by}, {kind}")
            else:
                expect.equal(got, still, f"absolute=False, positions moved by {by}, {kind}")
        expect.that(
            moved == subject.capabilities(kind).absolute,
            f"absolute=True is declared, but no shift changes the logits of the {kind}.",
        )


@torch.no_grad()
def limit(subject: Subject, expect: Expect) -> None:
    """Without a limit, positions past max_seq_len work and are distinguished. With one, positions below it work, others are
    refused, and forced past it they fail."""
    for kind in subject.kinds:
        bound = subject.scheme(kind).limit
        expect.that(
            subject.capabilities(kind).unbounded == (bound is None),
            f"unbounded={bound is not None} is declared, but limit is {bound}.",
        )
        if bound is None:
            _has_no_limit(subject, expect, kind)
        else:
            _has_limit(subject, expect, kind, bound)


def _has_no_limit(subject: Subject, expect: Expect, kind: Kind) -> None:
    model, caps, end = subject.model(kind), subject.capabilities(kind), subject.sizes.max_seq_len
    longer = subject.tokens(end + 7, batch=1)
    full = model(longer)
    expect.finite(full, f"{end + 7} tokens with max_seq_len={end}, {kind}")
    if kind == "decoder" and caps.prefix_consistent:
        what, bound = f"the tokens before max_seq_len={end}", subject.rounding(kind, end + 7)
        expect.equal(full[:, :end], model(longer[:, :end]), what, bound)
    if not caps.uses_positions:
        return
    tokens = subject.tokens(LENGTH)
    far = [model(tokens, positions=subject.positions(LENGTH, start)) for start in (10 * end, 40 * end)]
    expect.finite(far[0], f"positions from {10 * end} on, {kind}")
    if caps.absolute and caps.prefix_consistent:  # otherwise it may distinguish only short from long texts
        expect.differ(far[0], far[1], f"positions from {10 * end} and from {40 * end} on, {kind}")


def _has_limit(subject: Subject, expect: Expect, kind: Kind, bound: int) -> None:
    model, tokens = subject.model(kind), subject.tokens(LENGTH)
    last = subject.positions(LENGTH, bound - LENGTH)
    if subject.capabilities(kind).uses_positions:
        expect.finite(model(tokens, positions=last), f"positions up to limit - 1 = {bound - 1}, {kind}")
        expect.refused(lambda: model(tokens, positions=last + 1), PositionError, f"position {bound} = limit, {kind}")
    longer = subject.tokens(min(bound, 2 * subject.sizes.max_seq_len) + 1, batch=1)
    if bound <= 2 * subject.sizes.max_seq_len:
        expect.finite(model(longer[:, :bound]), f"{bound} tokens, {kind}")
        expect.refused(lambda: model(longer), PositionError, f"{bound + 1} tokens, {kind}")
    if kind == "decoder" and bound <= 2 * subject.sizes.max_seq_len and subject.capabilities(kind).kv_cacheable:
        expect.refused(
            lambda: decode(model, model.new_cache(1), 7, longer), PositionError, f"{bound + 1} tokens, cached"
        )
    _fails_past(subject, expect, kind, bound)


def _fails_past(subject: Subject, expect: Expect, kind: Kind, bound: int) -> None:
    host = Subject(
        subject.specs, subject.sizes, torch.device("cpu")
    )  # an index out of range on a GPU would end the process
    model, tokens = host.model(kind), host.tokens(LENGTH)

    def at(start: int) -> Tensor:
        return forced(model, tokens, host.positions(LENGTH, start))

    absolute, broken = host.capabilities(kind).absolute, False
    for start in (bound, 4 * bound):
        if fails(lambda: at(start)):  # noqa: B023
            broken = True
        elif absolute:  # the next position must be distinguished
            broken |= difference(at(start + 1), at(start)) <= host.rounding(kind)
        else:  # only distances may count
            broken |= difference(at(start), at(0)) > APART
    expect.that(broken, f"limit={bound} is declared, but positions past it work too, {kind}.")


@torch.no_grad()
def custom_positions(subject: Subject, expect: Expect) -> None:
    """Custom integer positions change the logits of a scheme that reads positions. Otherwise they are refused, and forced
    ones change nothing. More axes than the scheme supports are refused."""
    for kind in subject.kinds:
        model, tokens, caps = subject.model(kind), subject.tokens(LENGTH), subject.capabilities(kind)
        plain, stretched = subject.positions(LENGTH), subject.stretched(LENGTH)
        if not caps.uses_positions:
            expect.refused(lambda: model(tokens, positions=stretched), PositionError, f"custom positions, {kind}")  # noqa: B023
            expect.equal(
                forced(model, tokens, stretched), model(tokens), f"uses_positions=False, forced positions, {kind}"
            )
            continue
        expect.equal(model(tokens, positions=plain), model(tokens), f"positions 0, 1, 2, ... given, {kind}")
        expect.equal(model(tokens, positions=plain[0].int()), model(tokens), f"positions [T] of int32, {kind}")
        expect.differ(model(tokens, positions=stretched), model(tokens), f"positions with gaps, {kind}")
        row = torch.cat([model(tokens[i : i + 1], positions=stretched[i : i + 1]) for i in range(3)])
        expect.equal(model(tokens, positions=stretched), row, f"other positions in each row, {kind}")
        _no_token(subject, expect, kind)
        axes = subject.scheme(kind).max_axes
        many = stretched[..., None].expand(-1, -1, axes + 1)
        expect.refused(lambda: model(tokens, positions=many), PositionError, f"{axes + 1} axes, {kind}")  # noqa: B023


def _no_token(subject: Subject, expect: Expect, kind: Kind) -> None:
    model, tokens = subject.model(kind), subject.tokens(LENGTH)
    positions = subject.stretched(LENGTH)
    hidden = torch.cat([torch.full_like(positions[:, :3], -1), positions[:, :-3]], 1)
    want = model(tokens[:, 3:], positions=positions[:, :-3])
    expect.equal(model(tokens, positions=hidden)[:, 3:], want, f"three tokens at position -1 are ignored, {kind}")


@torch.no_grad()
def float_positions(subject: Subject, expect: Expect) -> None:
    """A continuous scheme accepts float positions: whole ones equal integers, fractions lie in between. Otherwise they are
    refused, and forced ones fail or lose the fraction."""
    subject.need_positions()
    for kind in subject.kinds:
        model, tokens = subject.model(kind), subject.tokens(LENGTH)
        whole = subject.positions(LENGTH)
        between = whole + torch.linspace(0, 0.4, LENGTH, device=subject.device)
        if not subject.capabilities(kind).continuous:
            expect.refused(lambda: model(tokens, positions=between), PositionError, f"float positions, {kind}")  # noqa: B023
            rounds = _loses_fractions(model, tokens, whole.float(), between, subject.rounding(kind))
            expect.that(rounds, f"continuous=False is declared, but float positions work, {kind}.")
            continue
        expect.equal(model(tokens, positions=whole.float()), model(tokens), f"whole float positions, {kind}")
        expect.equal(model(tokens, positions=whole.double()), model(tokens), f"whole float64 positions, {kind}")
        moved = model(tokens, positions=between)
        expect.differ(moved, model(tokens), f"fractional positions, {kind}")
        nearby = model(tokens, positions=between.double() + 1e-7)
        expect.equal(nearby, moved, f"positions that differ by 1e-7, {kind}")


def _loses_fractions(model: TransformerWrapper, tokens: Tensor, whole: Tensor, between: Tensor, bound: float) -> bool:
    if fails(lambda: forced(model, tokens, between)):
        return True
    rounded, fraction = forced(model, tokens, whole), forced(model, tokens, between)
    return difference(fraction, rounded) <= bound


@torch.no_grad()
def axes(subject: Subject, expect: Expect) -> None:
    """Every axis that the scheme supports (time, height, width) changes the logits. A position without axes equals one that
    is the same on all axes; fewer axes are refused. If only distances matter, each axis may move by itself. Cached chunks
    of text and of images give the logits of the full pass."""
    subject.need_positions()
    count = min(subject.scheme(kind).max_axes for kind in subject.kinds)
    if count == 1:
        raise NotApplicable("positions have one axis")
    for kind in subject.kinds:
        model, tokens = subject.model(kind), subject.tokens(LENGTH)
        text = subject.stretched(LENGTH)
        start = text[..., None].repeat(1, 1, count)
        expect.equal(model(tokens, positions=start), model(tokens, positions=text), f"equal on all axes, {kind}")
        for axis in range(count):
            moved = start.clone()
            moved[..., axis] = moved[..., axis].flip(1)
            flipped = model(tokens, positions=moved)
            expect.differ(flipped, model(tokens, positions=start), f"axis {axis} of {count}, {kind}")
            if not subject.capabilities(kind).absolute:
                by = 1000 * torch.eye(count, dtype=torch.long, device=subject.device)[axis]
                expect.equal(model(tokens, positions=moved + by), flipped, f"axis {axis} moved by 1000, {kind}")
        if count > 2:
            fewer = partial(model, tokens, positions=start[..., 1:])
            expect.refused(fewer, PositionError, f"{count - 1} of {count} axes, {kind}")
    if "decoder" in subject.kinds and subject.capabilities("decoder").kv_cacheable:
        _axes_cached(subject, expect, count)


def _axes_cached(subject: Subject, expect: Expect, count: int) -> None:
    """Text, an image (different in each row of the batch), and text again."""
    model, tokens = subject.model("decoder"), subject.tokens(LENGTH)
    positions = subject.positions(LENGTH).repeat(3, 1)[..., None].repeat(1, 1, count)
    positions[:, 3:9] = 3 + torch.randint(0, 4, (3, 6, count), generator=torch.Generator().manual_seed(9)).to(positions)
    positions[:, 9:] -= torch.tensor([[[0]], [[1]], [[2]]], device=subject.device)
    want = model(tokens, positions=positions)
    for chunk in (1, 4):
        got = decode(model, model.new_cache(3), chunk, tokens, positions=positions)
        expect.equal(got, want, f"positions with axes, cached, chunks of {chunk}")
    cache, parts = model.new_cache(3), []
    for where in (slice(0, 3), slice(3, 9), slice(9, LENGTH)):  # text without axes
        at = positions[:, where] if where.start == 3 else positions[:, where, 0]
        parts.append(model(tokens[:, where], positions=at, cache=cache))
    expect.equal(torch.cat(parts, 1), want, "text without axes around an image with axes, cached")


@torch.no_grad()
def order(subject: Subject, expect: Expect) -> None:
    """Without a causal mask, one layer distinguishes the order of two tokens on either side of the query. With
    causal_only=True the scheme is refused in an encoder, and forced into one it misses the order on one side, or attends more
    to a key the farther right it is; or, with counts_keys=True, the first token attends to all keys alike."""
    if "encoder" in subject.kinds:
        expect.that(
            not subject.capabilities("encoder").causal_only,
            "causal_only=True is declared, but an encoder accepts the scheme.",
        )
        model = subject.model("encoder", depth=1)
        for side in SWAPS:
            expect.that(
                sees_order(model, subject, side), f"an encoder does not see the order of two tokens {side} the query."
            )
        return
    caps = subject.capabilities("decoder")
    if not caps.causal_only:
        raise NotApplicable(f"refused in an encoder: {subject.errors['encoder']}")
    if caps.kernel == "rows":
        raise NotApplicable("causal_only=True of a scheme that reads whole rows cannot be tested")
    models = [both_sides(subject.fresh("decoder", depth=1, seed=seed)) for seed in range(MODELS)]
    undefined = not all(sees_order(models[0], subject, side) for side in SWAPS) or grows_rightward(models, subject)
    if caps.counts_keys:
        undefined = not sees_order(models[0], subject, "after", at=0)
    expect.that(undefined, "causal_only=True is declared, but the scheme works without a causal mask.")


def sees_order(model: TransformerWrapper, subject: Subject, side: str, at: int = MIDDLE) -> bool:
    """Whether swapping two tokens on one side of the middle token changes the logits of that token, or of the token `at`."""
    tokens = torch.arange(SHORT, device=subject.device)[None] % subject.sizes.num_tokens
    swapped, (i, j) = tokens.clone(), SWAPS[side]
    swapped[:, [i, j]] = tokens[:, [j, i]]
    return difference(model(swapped)[:, at], model(tokens)[:, at]) > APART


def grows_rightward(models: list[TransformerWrapper], subject: Subject) -> bool:
    """Whether the last token has a far greater effect on the first than its neighbour has."""
    length = min(LONG, subject.scheme("decoder").limit or LONG)
    last, next_ = (sum(_effect(model, subject, length, at) for model in models) for at in (length - 1, 1))
    return last > GREATER**2 * next_


def _effect(model: TransformerWrapper, subject: Subject, length: int, at: int) -> float:
    """Mean square change of the first token's logits when the token at this index changes."""
    scheme, tokens, positions = subject.scheme("decoder"), subject.tokens(length, batch=8), None
    if scheme.capabilities().uses_positions:
        positions = subject.positions(length) * max(1, min(scheme.limit or FARTHEST, FARTHEST) // length)
    other = tokens.clone()
    other[:, at] = (tokens[:, at] + 1) % subject.sizes.num_tokens
    first, changed = (forced(model, t, positions)[:, 0] for t in (tokens, other))
    return (changed - first).square().mean().item()
