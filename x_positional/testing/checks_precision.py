"""Positions stay distinct in half precision: under `.bfloat16()` and autocast, at any position up to 131072.

B batch, T tokens, H heads, G key/value heads, D head dim, M model dim.
"""

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from x_positional.models.language import TransformerWrapper
from x_positional.schemes.base import AttentionContext, Bias, PositionScheme, Span
from x_positional.schemes.compose import leaves
from x_positional.testing.expect import SAFETY, CheckFailed, Expect, difference
from x_positional.testing.subject import Kind, Subject

BASES = (0, 250, 505, 4090, 65_530, 131_060)
LENGTH, LONG = 12, 400
FAR, LAST = 4096, 32
"""Sums over this many tokens lose whole units in bfloat16; enough to look at the last queries."""
RELATIVE, LOGIT = 2**-6, 0.02
"""Eight roundings to bfloat16, each of half a unit (2^-9); an error of LOGIT changes an attention weight by 2 %."""


@torch.no_grad()
def precision(subject: Subject, expect: Expect) -> None:
    """With bfloat16 parameters or under autocast, every hook gives its float32 result within rounding, and so does the model:
    at positions up to 131072 (or the limit), adjacent and far apart."""
    for kind in subject.kinds:
        narrow = subject.fresh(kind).bfloat16()
        wide = copy.deepcopy(narrow).float()
        pairs = zip(*(leaves(m.attn_layers.kinds[0].scheme) for m in (wide, narrow)), strict=True)
        for exact, rounded in pairs:
            for what, hook in hooks(subject, kind, exact):
                want = hook(exact, torch.float32)
                _close(hook(rounded, torch.bfloat16), want, f"{what} of a bfloat16 module, {kind}")
                with torch.autocast(subject.device.type, dtype=torch.bfloat16):
                    _close(hook(exact, torch.float32), want, f"{what} under autocast, {kind}")
        _whole_model(subject, expect, kind, wide, narrow)


def bases(limit: int | None) -> list[int]:
    """First positions to test, within the limit of the scheme."""
    return [base for base in BASES if limit is None or base + LENGTH <= limit]


Hook = Callable[[PositionScheme, torch.dtype], Tensor]


def hooks(subject: Subject, kind: Kind, scheme: PositionScheme) -> Iterator[tuple[str, Hook]]:
    """The hooks of the scheme, as functions of an instance and the dtype of the activations."""
    s, random = subject.sizes, torch.Generator().manual_seed(13)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=random).bfloat16().to(subject.device)

    x, q, k = draw(1, 1, s.dim), draw(1, s.heads, 1, s.head_dim), draw(1, s.kv_heads, 1, s.head_dim)
    x, q, k = x.expand(-1, LENGTH, -1), q.expand(-1, -1, LENGTH, -1), k.expand(-1, -1, LENGTH, -1)
    for base in bases(scheme.limit):
        positions, what = subject.positions(LENGTH, base), f"at positions from {base} on"
        if scheme.overrides("embed"):
            yield f"embed {what}", lambda p, t, at=positions: p.embed(x.to(t), at)
        if scheme.overrides("rotate_q"):
            yield f"rotate_q {what}", lambda p, t, at=positions: p.rotate_q(q.to(t), p.tables(at))
            yield f"rotate_k {what}", lambda p, t, at=positions: p.rotate_k(k.to(t), p.tables(at))
        if scheme.overrides("bias"):
            ctx = context(subject, kind, subject.positions(LENGTH, base), subject.positions(LENGTH))
            yield f"bias {what}, keys from 0 on", lambda p, t, ctx=ctx: bias_of(p.bias(ctx), ctx)
    if scheme.overrides("content_bias") or scheme.overrides("transform_scores"):
        yield from _content(subject, kind, scheme, draw)


def _content(
    subject: Subject, kind: Kind, scheme: PositionScheme, draw: Callable[..., Tensor]
) -> Iterator[tuple[str, Hook]]:
    s = subject.sizes
    if scheme.overrides("content_bias"):
        at = subject.positions(FAR)
        far = context(subject, kind, at, at)
        x, q = draw(1, FAR, s.dim), draw(1, s.heads, FAR, s.head_dim)
        rows = Span(FAR - LAST, FAR)
        yield (
            f"content_bias of {FAR} tokens",
            lambda p, t: bias_of(p.content_bias(q.to(t), far, p.key_state(x.to(t)), p.query_state(x.to(t))), far, rows),
        )
    if scheme.overrides("transform_scores"):
        at = subject.positions(LONG)
        ctx = context(subject, kind, at, at)
        short, scores = draw(1, s.heads, LONG, s.head_dim), draw(1, s.heads, LONG, LONG).float()
        seen = ctx.visible_rows(ctx.every_row)
        yield f"transform_scores of {LONG} tokens", lambda p, t: p.transform_scores(scores, seen, short.to(t), ctx)


def context(subject: Subject, kind: Kind, q_positions: Tensor, kv_positions: Tensor) -> AttentionContext:
    """Queries and keys at these positions; every key is visible."""
    T, S = q_positions.shape[1], kv_positions.shape[1]
    return AttentionContext(
        q_index=subject.positions(T),
        kv_index=subject.positions(S),
        q_positions=q_positions,
        kv_positions=kv_positions,
        batch=1,
        heads=subject.sizes.heads,
        span=max(T, S),
        causal=kind == "decoder",
        custom_positions=True,
        ordered=True,
    )


def bias_of(bias: Bias | None, ctx: AttentionContext, rows: Span | None = None) -> Tensor:
    """[1 H rows S], by default for every query; zeros where a scheme gives no bias."""
    rows = rows or ctx.every_row
    if bias is None:
        return torch.zeros(1, ctx.heads, rows.stop - rows.start, ctx.S, device=ctx.device)
    return bias.dense(ctx, rows, ctx.every_key)


def _close(got: Tensor, want: Tensor, what: str) -> None:
    """Every value, and every step from one position to the next, is right relative to its size."""
    got, want = got.float(), want.float()
    size = want.abs().amax(-1, keepdim=True) if want.shape[-2] == LENGTH != want.shape[-1] else want.abs()
    _within(got, want, RELATIVE * size + LOGIT, what)
    steps = [t.diff(dim=-2) for t in (got, want)]
    _within(steps[0], steps[1], RELATIVE * size[..., 1:, :] + LOGIT, f"{what}, from one position to the next")


def _within(got: Tensor, want: Tensor, bound: Tensor, what: str) -> None:
    excess = ((got - want).abs() - bound).nan_to_num(float("inf"), float("inf"), float("inf"))
    if bool((excess > 0).any()):
        at = int(excess.argmax())
        value, right, allowed = (t.expand_as(excess).flatten()[at].item() for t in (got, want, bound))
        raise CheckFailed(
            f"{what}: {value:.6g} instead of {right:.6g} in float32; positions are no longer distinct.",
            abs(value - right) / allowed,
        )


def _whole_model(
    subject: Subject, expect: Expect, kind: Kind, wide: TransformerWrapper, narrow: TransformerWrapper
) -> None:
    """Far positions cost the model no more precision than the sensitivity of its logits there explains."""
    tokens, caps, nudged = subject.tokens(LENGTH), subject.capabilities(kind), _nudged(wide)
    got = narrow(tokens)
    expect.that(got.dtype == torch.bfloat16, f"a bfloat16 {kind} gives {got.dtype} logits.")
    usual, moved = difference(got, wide(tokens)), difference(nudged(tokens), wide(tokens))
    for base in bases(subject.scheme(kind).limit) if caps.uses_positions else []:
        at = subject.positions(LENGTH, base)
        want = wide(tokens, positions=at)
        measured, sensitivity = (
            difference(narrow(tokens, positions=at), want),
            difference(nudged(tokens, positions=at), want),
        )
        expect.that(
            measured <= SAFETY * usual * max(1.0, sensitivity / moved) + LOGIT,
            f"a bfloat16 {kind} is off by {measured:.2g} at positions from {base} on, but by {usual:.2g} at the start.",
        )


def _nudged(model: TransformerWrapper) -> TransformerWrapper:
    """A copy whose parameters, but for those of the scheme, have the relative errors of bfloat16: it shows how sensitive the
    logits are. Scaling scores with the position, for example, also scales their rounding errors."""
    model, random = copy.deepcopy(model), torch.Generator().manual_seed(17)
    for name, parameter in model.named_parameters():
        if not name.startswith("attn_layers.schemes.") and parameter.is_floating_point():
            noise = torch.randn(parameter.shape, generator=random).to(parameter)
            parameter.mul_(1 + 2**-9 * noise)
    return model
