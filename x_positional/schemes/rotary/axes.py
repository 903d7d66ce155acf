"""Which axis of a position rotates which pair of channels: text, images and videos in one rotation.

B batch, T tokens, A position axes, F pairs. A section is the number of pairs that one axis rotates.
"""

from collections.abc import Sequence
from typing import Literal, TypeAlias

from torch import Tensor

from x_positional.errors import PositionError

SectionOrder = Literal["contiguous", "interleaved", "video"]

Places: TypeAlias = tuple[tuple[int, slice], ...]
"""(axis, the pairs it rotates), in the order of assignment: a later entry overwrites pairs of an earlier one."""


def places_of(sections: Sequence[int], order: SectionOrder) -> Places:
    """The pairs of each axis; pair 0 has the highest frequency.

    "contiguous": axis 0 has the fastest pairs, the last axis the slowest (Wang et al. 2024, arXiv:2409.12191).
    "interleaved": axis 1 has pairs 1, 1 + A, ..., axis 2 has pairs 2, 2 + A, ..., until each has its section; axis 0 has
    the rest (Qwen3-VL).
    "video": axes 1, 2, ... alternate over the fastest pairs, and axis 0, time, has the slowest (Wei et al. 2025,
    arXiv:2502.05173).
    """
    axes, pairs = len(sections), sum(sections)
    if order == "interleaved":
        return (0, slice(0, pairs)), *((a, slice(a, axes * sections[a], axes)) for a in range(1, axes))
    if order == "video":
        space = pairs - sections[0]
        return *((a, slice(a - 1, space, axes - 1)) for a in range(1, axes)), (0, slice(space, pairs))
    ends = [sum(sections[: a + 1]) for a in range(axes)]
    return tuple((a, slice(end - sections[a], end)) for a, end in enumerate(ends))


def spread(positions: Tensor, places: Places, pairs: int) -> Tensor:
    """[B|1 T A] -> [B|1 T F]: for each pair, the position on its axis."""
    out = positions.new_empty(*positions.shape[:-1], pairs)
    for axis, where in places:
        out[..., where] = positions[..., axis, None]
    return out


def check_axes(positions: Tensor, axes: int) -> None:
    """Raises PositionError unless positions are [B|1 T], which means the same on every axis, or [B|1 T A] with A = axes."""
    if positions.ndim == 3 and positions.shape[-1] != axes:
        raise PositionError(
            f"positions have {positions.shape[-1]} axes, and {axes} are needed. Pass [batch, tokens, {axes}], or "
            "[batch, tokens] for a position that is the same on every axis."
        )


def section_problems(sections: Sequence[int], order: SectionOrder, pairs: int) -> list[str]:
    """Why these sections cannot split `pairs` pairs, each with the way out; [] if they can."""
    axes, found = len(sections), []
    if axes < 2 or min(sections) < 1:
        return [f"sections={tuple(sections)} must be two or more numbers above 0, one per axis."]
    if sum(sections) != pairs:
        found.append(
            f"sections={tuple(sections)} sum to {sum(sections)}, and there are {pairs} pairs. Make them sum to {pairs}, "
            "half of the rotated width."
        )
    reach = max(axes * (sections[a] - 1) + a + 1 for a in range(1, axes))
    if order == "interleaved" and reach > sum(sections) and not found:
        found.append(
            f"sections={tuple(sections)} interleaved: every axis after the first takes one pair in {axes}, which needs "
            f"{reach} pairs. Give axis 0 a larger section, or use section_order='contiguous'."
        )
    if order == "video" and len(set(sections[1:])) > 1:
        found.append(
            f"sections={tuple(sections)} in video order: height and width alternate, so their sections must be equal. "
            f"Use {(sections[0], *[sum(sections[1:]) // (axes - 1)] * (axes - 1))}."
        )
    return found


def width_problems(width: int, axes: int, head_dim: int) -> list[str]:
    """Why `width` channels of a head cannot be divided evenly over the axes, with the way out; [] if they can."""
    step = 2 * axes
    if 0 < width <= head_dim and width % step == 0:
        return []
    fits = head_dim // step * step
    way_out = f"Set dim={fits}, which leaves the rest of the head unrotated" if fits else "Use fewer axes"
    return [
        f"rotary width is {width} (head_dim={head_dim}); {axes} axes of channel pairs need a multiple of {step} up to "
        f"head_dim. {way_out}, or make head_dim a multiple of {step}."
    ]
