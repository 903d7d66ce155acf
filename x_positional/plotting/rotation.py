"""How a scheme rotates queries, measured by calling its hooks: the pairs of channels, and their frequencies and phases.

T positions, H heads, D head dim, E width of rotated queries, P pairs. A pair is a plane of two output channels. It is
found by changing one input channel by 1 and observing the output, which works for every channel layout, and also where
the output is not linear in the input (polar).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from x_positional.plotting.schemes import Probe
from x_positional.schemes.base import PositionScheme

STEP = 2.0**-6
"""Step between positions where fractions are allowed: no pair rotates by half a turn or more in one step."""


@dataclass(frozen=True)
class Pairs:
    """The rotated pairs of one head."""

    head: int
    inputs: tuple[tuple[int, ...], ...]
    """The one or two input channels of each pair."""
    own: tuple[int, ...]
    """The output channel of the first input channel at position 0."""
    partner: tuple[int, ...]
    """The other output channel: that of the first input channel a quarter turn later."""
    unrotated: tuple[int, ...]
    """Input channels that are not rotated."""


def rotates(scheme: PositionScheme) -> bool:
    """Whether the scheme changes queries or keys."""
    return scheme.overrides("rotate_q") or scheme.overrides("rotate_k")


def tables_at(probe: Probe, positions: Tensor, lengths: Tensor) -> Any:
    """The scheme's tables at positions [T], for sequences of these lengths [1 T|1] if it depends on the length."""
    scheme, placed = probe.scheme, probe.on_axes(positions)
    return scheme.tables(placed) if scheme.capabilities().prefix_consistent else scheme.length_tables(placed, lengths)


@torch.no_grad()
def rotated(probe: Probe, channels: Tensor, positions: Tensor, length: int) -> Tensor:
    """[C D] of 0 and 1, [T] -> [C H T E] float64: the change of the rotated query as these channels go from 0 to 1."""
    scheme, tables = probe.scheme, tables_at(probe, positions, torch.tensor([[length]]))
    shape = (len(channels), probe.dims.heads, len(positions), probe.dims.head_dim)
    ones = channels.double()[:, None, None, :].expand(shape)
    zeros = torch.zeros(1, *shape[1:], dtype=torch.float64)
    return (scheme.rotate_q(ones, tables) - scheme.rotate_q(zeros, tables)).double()


def find_pairs(probe: Probe, length: int) -> Pairs | None:
    """The pairs of the last head that is rotated; None if none is, or if rotations are not in planes of two channels."""
    start_and_next = torch.tensor([0.0, _step(probe)], dtype=torch.float64)
    responses = rotated(probe, torch.eye(probe.dims.head_dim), _as_integers(start_and_next), length)
    changes = (responses[:, :, 0] != responses[:, :, 1]).any(-1).any(0)  # [H]
    if not changes.any():
        return None
    head = int(changes.nonzero()[-1])
    touched = (responses[:, head] != 0).any(1)  # [D E]
    planes: dict[tuple[int, ...], list[int]] = {}
    unrotated = []
    for channel, row in enumerate(touched):
        plane = tuple(row.nonzero()[:, 0].tolist())
        if len(plane) > 2:
            return None
        if len(plane) == 2:
            planes.setdefault(plane, []).append(channel)
        else:
            unrotated.append(channel)
    if not planes:
        return None  # every channel is only scaled
    own = tuple(channels[0] if channels[0] in plane else plane[0] for plane, channels in planes.items())
    partner = tuple(sum(plane) - first for plane, first in zip(planes, own, strict=True))
    return Pairs(head, tuple(map(tuple, planes.values())), own, partner, tuple(unrotated))


def phasors(probe: Probe, pairs: Pairs, positions: Tensor, length: int) -> Tensor:
    """[T P] complex: phase and magnitude of each pair at positions [T], relative to position 0."""
    firsts = torch.zeros(1, probe.dims.head_dim)
    firsts[0, [channels[0] for channels in pairs.inputs]] = 1
    both = rotated(probe, firsts, torch.cat([positions.new_zeros(1), positions]), length)[0, pairs.head]
    pair_values = torch.complex(both[:, list(pairs.own)], both[:, list(pairs.partner)])
    return pair_values[1:] / pair_values[:1]


def frequencies(probe: Probe, pairs: Pairs, length: int) -> Tensor:
    """[P] absolute radians per position, in a sequence of `length`."""
    step = _step(probe)
    after = phasors(probe, pairs, _as_integers(torch.tensor([step], dtype=torch.float64)), length)[0]
    return after.angle().abs() / step


def cos_sin(probe: Probe, pairs: Pairs, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """[T D] each: the part of a channel that stays and the part that moves to its partner, relative to position 0."""
    width = probe.dims.head_dim
    cos, sin = torch.ones(len(positions), width), torch.zeros(len(positions), width)
    for second in (0, 1):
        rows = [row for row, channels in enumerate(pairs.inputs) if len(channels) > second]
        if not rows:
            continue
        inputs = [pairs.inputs[row][second] for row in rows]
        chosen = torch.zeros(1, width)
        chosen[0, inputs] = 1
        both = rotated(probe, chosen, torch.cat([positions.new_zeros(1), positions]), length)[0, pairs.head]
        ends = [(pairs.own[row], pairs.partner[row]) for row in rows]
        ends = [(b, a) if second else (a, b) for a, b in ends]
        own, partner = both[:, [a for a, _ in ends]], both[:, [b for _, b in ends]]
        cos[:, inputs], sin[:, inputs] = (own / own[:1])[1:].float(), (partner / own[:1])[1:].float()
    return cos, sin


def _step(probe: Probe) -> float:
    return STEP if probe.scheme.capabilities().continuous else 1.0


def _as_integers(positions: Tensor) -> Tensor:
    """As integers, if all are integers."""
    return positions.long() if bool((positions == positions.round()).all()) else positions
