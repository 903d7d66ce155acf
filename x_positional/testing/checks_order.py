"""Whether a scheme distinguishes the order of tokens by itself, without a causal mask.

B batch, T tokens, V vocabulary.
"""

import torch

from x_positional.models.language import TransformerWrapper
from x_positional.testing.expect import APART, Expect, NotApplicable, difference
from x_positional.testing.subject import Subject, both_sides, forced

LENGTH, MIDDLE = 9, 4
LONG, FARTHEST, GREATER = 256, 2**15, 8
SWAPS = {"before": (0, 3), "after": (5, 8)}


@torch.no_grad()
def order(subject: Subject, expect: Expect) -> None:
    """Without a causal mask, one layer distinguishes the order of two tokens on either side of the query. With
    causal_only=True the scheme is refused in an encoder, and forced into one it misses the order on one side, or attends more
    to a key the farther right it is."""
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
    model = both_sides(subject.fresh("decoder", depth=1))
    undefined = not all(sees_order(model, subject, side) for side in SWAPS) or grows_rightward(model, subject)
    expect.that(undefined, "causal_only=True is declared, but the scheme works without a causal mask.")


def sees_order(model: TransformerWrapper, subject: Subject, side: str) -> bool:
    """Whether swapping two tokens on one side of the middle token changes the logits of the middle token."""
    tokens = torch.arange(LENGTH, device=subject.device)[None] % subject.sizes.num_tokens
    swapped, (i, j) = tokens.clone(), SWAPS[side]
    swapped[:, [i, j]] = tokens[:, [j, i]]
    return difference(model(swapped)[:, MIDDLE], model(tokens)[:, MIDDLE]) > APART


def grows_rightward(model: TransformerWrapper, subject: Subject) -> bool:
    """Whether the last token has a far greater effect on the first than its neighbour has."""
    length = min(LONG, subject.scheme("decoder").limit or LONG)
    return _effect(model, subject, length, length - 1) > GREATER * _effect(model, subject, length, 1)


def _effect(model: TransformerWrapper, subject: Subject, length: int, at: int) -> float:
    scheme, tokens, positions = subject.scheme("decoder"), subject.tokens(length, batch=8), None
    if scheme.capabilities().uses_positions:
        positions = subject.positions(length) * max(1, min(scheme.limit or FARTHEST, FARTHEST) // length)
    other = tokens.clone()
    other[:, at] = (tokens[:, at] + 1) % subject.sizes.num_tokens
    first, changed = (forced(model, t, positions)[:, 0] for t in (tokens, other))
    return (changed - first).square().mean().sqrt().item()
