"""How a scheme turns queries, asked from its hooks: which channels turn together, how fast, and where they stand.

T positions, H heads, D head dim, E width of turned queries, P pairs. A pair is a plane of two output channels; moving one
input channel by 1 and looking at what moves in the output finds it, whatever the layout and also where lengths are no
linear function of the input (polar).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from x_positional.plotting.part import Subject
from x_positional.schemes.base import PositionScheme

STEP = 2.0**-6
"""Between two positions, where fractions are allowed: no pair turns more than half way."""


@dataclass(frozen=True)
class Pairs:
    """Of one head. inputs: for each pair its one or two input channels. own, partner: the output channels of the first
    input at position 0 and a quarter turn later. still: input channels that do not turn."""

    head: int
    inputs: tuple[tuple[int, ...], ...]
    own: tuple[int, ...]
    partner: tuple[int, ...]
    still: tuple[int, ...]


def rotates(scheme: PositionScheme) -> bool:
    """Whether it changes queries or keys."""
    return scheme.overrides("rotate_q") or scheme.overrides("rotate_k")


def tables_at(subject: Subject, positions: Tensor, lengths: Tensor) -> Any:
    """The scheme's tables at positions [T] in texts of these lengths [1 T|1], which count for some schemes alone."""
    scheme, placed = subject.scheme, subject.place(positions)
    return scheme.tables(placed) if scheme.capabilities().prefix_consistent else scheme.length_tables(placed, lengths)


@torch.no_grad()
def turned(subject: Subject, channels: Tensor, positions: Tensor, length: int) -> Tensor:
    """[C D] 0 or 1, [T] -> [C H T E] float64: how the turned query moves when these input channels move from 0 to 1."""
    scheme, tables = subject.scheme, tables_at(subject, positions, torch.tensor([[length]]))
    shape = (len(channels), subject.dims.heads, len(positions), subject.dims.head_dim)
    moved = channels.double()[:, None, None, :].expand(shape)
    still = torch.zeros(1, *shape[1:], dtype=torch.float64)
    return (scheme.rotate_q(moved, tables) - scheme.rotate_q(still, tables)).double()


def find_pairs(subject: Subject, length: int) -> Pairs | None:
    """The pairs of the last head that turns; None where nothing turns, or not in planes of two channels."""
    start_and_next = torch.tensor([0.0, _step(subject)], dtype=torch.float64)
    responses = turned(subject, torch.eye(subject.dims.head_dim), _whole(start_and_next), length)
    moves = (responses[:, :, 0] != responses[:, :, 1]).any(-1).any(0)  # [H]
    if not moves.any():
        return None
    head = int(moves.nonzero()[-1])
    touched = (responses[:, head] != 0).any(1)  # [D E]
    planes: dict[tuple[int, ...], list[int]] = {}
    still = []
    for channel, row in enumerate(touched):
        plane = tuple(row.nonzero()[:, 0].tolist())
        if len(plane) > 2:
            return None
        if len(plane) == 2:
            planes.setdefault(plane, []).append(channel)
        else:
            still.append(channel)
    own = tuple(channels[0] if channels[0] in plane else plane[0] for plane, channels in planes.items())
    partner = tuple(sum(plane) - first for plane, first in zip(planes, own, strict=True))
    return Pairs(head, tuple(map(tuple, planes.values())), own, partner, tuple(still))


def path(subject: Subject, pairs: Pairs, positions: Tensor, length: int) -> Tensor:
    """[T P] complex: where the first channel of each pair stands at positions [T], 1 at position 0."""
    firsts = torch.zeros(1, subject.dims.head_dim)
    firsts[0, [channels[0] for channels in pairs.inputs]] = 1
    both = turned(subject, firsts, torch.cat([positions.new_zeros(1), positions]), length)[0, pairs.head]
    stands = torch.complex(both[:, list(pairs.own)], both[:, list(pairs.partner)])
    return stands[1:] / stands[:1]


def speeds(subject: Subject, pairs: Pairs, length: int) -> Tensor:
    """[P] radians per position, without sign, in a text of `length`."""
    step = _step(subject)
    after = path(subject, pairs, _whole(torch.tensor([step], dtype=torch.float64)), length)[0]
    return after.angle().abs() / step


def cos_sin(subject: Subject, pairs: Pairs, positions: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Two of [T D]: what stays of each channel at positions [T], and what its partner gets, 1 and 0 at position 0."""
    width = subject.dims.head_dim
    cos, sin = torch.ones(len(positions), width), torch.zeros(len(positions), width)
    for place in (0, 1):
        rows = [row for row, channels in enumerate(pairs.inputs) if len(channels) > place]
        if not rows:
            continue
        inputs = [pairs.inputs[row][place] for row in rows]
        chosen = torch.zeros(1, width)
        chosen[0, inputs] = 1
        both = turned(subject, chosen, torch.cat([positions.new_zeros(1), positions]), length)[0, pairs.head]
        ends = [(pairs.own[row], pairs.partner[row]) for row in rows]
        ends = [(b, a) if place else (a, b) for a, b in ends]
        own, partner = both[:, [a for a, _ in ends]], both[:, [b for _, b in ends]]
        cos[:, inputs], sin[:, inputs] = (own / own[:1])[1:].float(), (partner / own[:1])[1:].float()
    return cos, sin


def _step(subject: Subject) -> float:
    return STEP if subject.scheme.capabilities().continuous else 1.0


def _whole(positions: Tensor) -> Tensor:
    """As integers where they are."""
    return positions.long() if bool((positions == positions.round()).all()) else positions
