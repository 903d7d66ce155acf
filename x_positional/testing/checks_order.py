"""Whether a scheme sees the order of tokens by itself, without a causal mask to tell it.

B batch, T tokens, V vocabulary.
"""

import torch

from x_positional.models.language import TransformerWrapper
from x_positional.testing.judge import APART, Judge, NotApplicable, difference
from x_positional.testing.subject import Subject, both_sides, forced

LENGTH, MIDDLE = 9, 4
FAR, REACH, LOUDER = 256, 2**15, 8
SWAPS = {"before": (0, 3), "after": (5, 8)}


@torch.no_grad()
def order(subject: Subject, judge: Judge) -> None:
    """Without a causal mask, one layer tells apart the order of two tokens on either side; with causal_only=True it is
    refused in an encoder, and forced it is blind to one side, or lets keys gain weight the farther right they are."""
    if "encoder" in subject.kinds:
        judge.require(
            not subject.capabilities("encoder").causal_only, "causal_only=True is declared, and an encoder takes it."
        )
        model = subject.model("encoder", depth=1)
        for side in SWAPS:
            judge.require(
                sees(model, subject, side), f"blind to the order of two tokens {side} the query, in an encoder."
            )
        return
    caps = subject.capabilities("decoder")
    if not caps.causal_only:
        raise NotApplicable(f"refused in an encoder: {subject.errors['encoder']}")
    if caps.kernel == "rows":
        raise NotApplicable("causal_only=True of a scheme that reads whole rows is taken at its word")
    model = both_sides(subject.fresh("decoder", depth=1))
    undefined = not all(sees(model, subject, side) for side in SWAPS) or grows_rightward(model, subject)
    judge.require(undefined, "causal_only=True is declared, and it works without a causal mask.")


def sees(model: TransformerWrapper, subject: Subject, side: str) -> bool:
    """Whether swapping two tokens on a side of the middle one changes its logits."""
    tokens = torch.arange(LENGTH, device=subject.device)[None] % subject.sizes.num_tokens
    swapped, (i, j) = tokens.clone(), SWAPS[side]
    swapped[:, [i, j]] = tokens[:, [j, i]]
    return difference(model(swapped)[:, MIDDLE], model(tokens)[:, MIDDLE]) > APART


def grows_rightward(model: TransformerWrapper, subject: Subject) -> bool:
    """Whether the first token hears the last one far better than the next one: the farther right, the more it counts."""
    length = min(FAR, subject.scheme("decoder").limit or FAR)
    return _heard(model, subject, length, length - 1) > LOUDER * _heard(model, subject, length, 1)


def _heard(model: TransformerWrapper, subject: Subject, length: int, at: int) -> float:
    scheme, tokens, positions = subject.scheme("decoder"), subject.tokens(length, batch=8), None
    if scheme.capabilities().uses_positions:
        positions = subject.positions(length) * max(1, min(scheme.limit or REACH, REACH) // length)
    other = tokens.clone()
    other[:, at] = (tokens[:, at] + 1) % subject.sizes.num_tokens
    first, changed = (forced(model, t, positions)[:, 0] for t in (tokens, other))
    return (changed - first).square().mean().sqrt().item()
