"""Whether a scheme distinguishes the order of tokens by itself, without a causal mask.

B batch, T tokens, V vocabulary.
"""

import torch

from x_positional.models.language import TransformerWrapper
from x_positional.testing.expect import APART, Expect, NotApplicable, difference
from x_positional.testing.subject import Subject, both_sides, forced

LENGTH, MIDDLE = 9, 4
LONG, FARTHEST, MODELS, GREATER = 256, 2**15, 4, 3
"""Over 4 random models the last token has 0.8 to 1.2 times the effect of the first's neighbour where order is ignored, less where
distance counts, and 8 times or more where keys gain weight to the right: 3 lies between, in the middle of the logarithms."""
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
    models = [both_sides(subject.fresh("decoder", depth=1, seed=seed)) for seed in range(MODELS)]
    undefined = not all(sees_order(models[0], subject, side) for side in SWAPS) or grows_rightward(models, subject)
    expect.that(undefined, "causal_only=True is declared, but the scheme works without a causal mask.")


def sees_order(model: TransformerWrapper, subject: Subject, side: str) -> bool:
    """Whether swapping two tokens on one side of the middle token changes the logits of the middle token."""
    tokens = torch.arange(LENGTH, device=subject.device)[None] % subject.sizes.num_tokens
    swapped, (i, j) = tokens.clone(), SWAPS[side]
    swapped[:, [i, j]] = tokens[:, [j, i]]
    return difference(model(swapped)[:, MIDDLE], model(tokens)[:, MIDDLE]) > APART


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
