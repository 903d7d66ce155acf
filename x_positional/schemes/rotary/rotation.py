"""Queries and keys turn, pair by pair of channels, by angles that follow from positions and frequencies.

B batch, T tokens, H heads, D head dim, R rotated width, F = R/2 pairs, A position axes.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import Self

from x_positional.schemes.base import PositionScheme
from x_positional.schemes.rotary.axes import Places, SectionOrder, check_axes, places_of, spread
from x_positional.schemes.rotary.frequencies import Frequencies, angles
from x_positional.schemes.rotary.scaling import DefaultRope, RopeScaling


def rotate_pairs(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Rotate the channel pairs of the first R channels of x [... D]; the other channels are unchanged.

    Args:
        x: [... D].
        cos: [... R], broadcasts with x.
        sin: [... R], with the sign of each channel: -sin for the first of a pair, sin for the second.
        interleaved: pairs are channels (2i, 2i + 1), otherwise (i, i + R/2).

    Returns:
        A tensor with the shape and dtype of x.
    """
    width = cos.shape[-1]
    first = x[..., :width]
    partner = first.unflatten(-1, (-1, 2)).flip(-1).flatten(-2) if interleaved else first.roll(width // 2, dims=-1)
    rotated = (first * cos + partner * sin).to(x.dtype)
    return rotated if width == x.shape[-1] else torch.cat([rotated, x[..., width:]], dim=-1)


@dataclass(frozen=True)
class Rotation:
    """Per token: the cosine and signed sine of every rotated channel, [B|1 1 T R] float32, for q and for k; [B|1 H T R]
    where heads turn differently."""

    q_cos: Tensor
    q_sin: Tensor
    k_cos: Tensor
    k_sin: Tensor


class Turning(PositionScheme):
    """Base: (x, y) -> (x cos a - y sin a, x sin a + y cos a) for each pair, with angles from `tables`.

    width: R, the first R channels turn and the rest pass (partial rotation, GPT-J). interleaved: pairs are (2i, 2i+1),
    otherwise (i, i + R/2). heads: only the last `heads` heads turn.
    """

    def __init__(self, width: int, *, interleaved: bool = False, heads: int | None = None):
        super().__init__()
        self.width, self.interleaved, self.heads = width, interleaved, heads

    @property
    def table_dtype(self) -> torch.dtype:
        """float32, or float64 where learned frequencies are, so that their gradients are as exact as they."""
        return torch.float32

    def channels(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """[... T F] of each pair -> [... T R] in `table_dtype`: the cosine and the signed sine of each channel."""
        cos, sin = cos.to(self.table_dtype), sin.to(self.table_dtype)
        if self.interleaved:
            return torch.stack([cos, cos], -1).flatten(-2), torch.stack([-sin, sin], -1).flatten(-2)
        return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)

    def rotate_q(self, q: Tensor, tables: Rotation) -> Tensor:
        return self._some_heads(q, tables.q_cos, tables.q_sin)

    def rotate_k(self, k: Tensor, tables: Rotation) -> Tensor:
        return self._some_heads(k, tables.k_cos, tables.k_sin)

    def _some_heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.heads is None or self.heads == x.shape[1]:
            return self._turn(x, cos, sin)
        return torch.cat([x[:, : -self.heads], self._turn(x[:, -self.heads :], cos, sin)], dim=1)

    def _turn(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        turned = x[..., : self.width]
        turned = (turned * cos + self._partner(turned) * sin).to(x.dtype)
        return turned if self.width == x.shape[-1] else torch.cat([turned, x[..., self.width :]], dim=-1)

    def _partner(self, x: Tensor) -> Tensor:
        """[... R] -> [... R]: each channel's other half."""
        if self.interleaved:
            return x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        return x.roll(self.width // 2, dims=-1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`.to(...)` and its kin: learned frequencies change device, and never become narrower than float32. Rounded to
        bfloat16, a frequency of 0.7 is off by 1e-3, which is a whole radian at position 1000."""
        learned = [t for p in self.parameters(recurse=False) for t in (p, p.grad) if t is not None]

        def wide(x: Tensor) -> Tensor:
            new = fn(x)
            narrow = new.dtype not in (torch.float32, torch.float64)
            return x.to(new.device) if narrow and any(x is t for t in learned) else new

        super()._apply(wide, recurse)
        return self


class RopeEmbedding(Turning):
    """a = t * theta^(-2i/R) for pair i at position t (Su et al. 2021, arXiv:2104.09864, eq. 34).

    scaling: how the frequencies are changed, and the attention factor that cosines and sines of q and k are multiplied by.
    interpolation_factor divides positions (Chen et al. 2023, arXiv:2306.15595). base_rescale_factor s multiplies theta by
    s^(R/(R-2)) (NTK-aware, bloc97 2023).

    sections: positions have an axis for each, [B T A], and axis a turns sections[a] of the pairs, laid out by
    `section_order` (`axes.places_of`). A position that is the same on every axis, or given without axes, turns as
    without sections, exactly.

    learned: each frequency is multiplied by e^s with an s of its own, trained from 0. The gradient of an angle t f by f is
    t, which grows with the text; by s it is the angle t f itself, so a step changes every frequency in proportion, slow
    ones by little, and none can pass through zero and turn the other way.
    """

    def __init__(
        self,
        width: int,
        *,
        theta: float = 10_000.0,
        interleaved: bool = False,
        heads: int | None = None,
        interpolation_factor: float = 1.0,
        base_rescale_factor: float = 1.0,
        scaling: RopeScaling | None = None,
        sections: Sequence[int] | None = None,
        section_order: SectionOrder = "contiguous",
        learned: bool = False,
    ):
        super().__init__(width, interleaved=interleaved, heads=heads)
        rescale = 1.0 if base_rescale_factor == 1.0 else base_rescale_factor ** (width / (width - 2))
        self.theta, self.interpolation_factor = theta * rescale, interpolation_factor
        self.scaling = scaling or DefaultRope()
        self.usual_length = self.scaling.usual_length  # asked once: a compiled pass cannot look it up
        if self.scaling.follows_length:  # a longer text turns its old keys otherwise
            self.kv_cacheable = self.prefix_consistent = False  # type: ignore[misc]
            self.absolute = True  # type: ignore[misc]
        self.takes_final_length = self.scaling.takes_final_length  # type: ignore[misc]
        self.places: Places = ()
        if sections is not None:
            self.max_axes, self.places = len(sections), places_of(sections, section_order)  # type: ignore[misc]
        self.log_stretch = nn.Parameter(torch.zeros(width // 2)) if learned else None

    @property
    def table_dtype(self) -> torch.dtype:
        return torch.float32 if self.log_stretch is None else self.log_stretch.dtype

    def frequencies(self, device: torch.device, lengths: Tensor | None = None) -> Frequencies:
        """[F] radians per position and the attention factor; [B|1 T|1 F] where the lengths of texts [B|1 T|1] count."""
        found = self.initial_frequencies(device, lengths)
        if self.log_stretch is None:
            return found
        return found._replace(inv_freq=found.inv_freq * self.log_stretch.to(found.inv_freq.dtype).exp())

    def initial_frequencies(self, device: torch.device, lengths: Tensor | None = None) -> Frequencies:
        """The same before anything was learned."""
        length = self.usual_length if lengths is None else lengths
        found = self.scaling.frequencies(self.width, self.theta, length=length, device=device)
        return found._replace(inv_freq=found.inv_freq / self.interpolation_factor)

    def inv_freq(self, device: torch.device) -> Tensor:
        """[F] radians per position."""
        return self.frequencies(device).inv_freq

    def cache_key(self, length: int) -> Hashable:
        return self.scaling.cache_key(length)

    def decay(self, positions: Tensor) -> Tensor | None:
        """[B|1 T] -> [B|1 T F]: what queries are multiplied by and keys divided by; None for one."""
        return None

    def tables(self, positions: Tensor) -> Rotation:
        if not self.scaling.follows_length:
            return self._tables(positions, self.frequencies(positions.device))
        last = positions if positions.ndim == 2 else positions.amax(dim=-1)
        return self.length_tables(positions, last.amax(dim=1, keepdim=True) + 1)

    def length_tables(self, positions: Tensor, lengths: Tensor) -> Rotation:
        return self._tables(positions, self.frequencies(positions.device, lengths))

    def _tables(self, positions: Tensor, frequencies: Frequencies) -> Rotation:
        angle, scale = self._angles(positions, frequencies.inv_freq), frequencies.attention_factor
        cos, sin, decay = (angle.cos() * scale).unsqueeze(1), (angle.sin() * scale).unsqueeze(1), self.decay(positions)
        if decay is None:
            both = self.channels(cos, sin)
            return Rotation(*both, *both)
        decay = decay.unsqueeze(1)
        return Rotation(*self.channels(cos * decay, sin * decay), *self.channels(cos / decay, sin / decay))

    def _angles(self, positions: Tensor, inv_freq: Tensor) -> Tensor:
        if positions.ndim == 2:
            return angles(positions, inv_freq)
        check_axes(positions, self.max_axes)
        return spread(positions, self.places, self.width // 2).to(inv_freq.dtype) * inv_freq
