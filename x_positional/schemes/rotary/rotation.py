"""Rotates pairs of query and key channels by angles computed from positions and frequencies.

B batch, T tokens, H heads, D head dim, R rotated width, F = R/2 pairs, A position axes.
"""

from collections.abc import Callable, Hashable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from typing_extensions import Self

from x_positional.errors import ArgumentError
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
    whole = width == x.shape[-1]
    first = x if whole else x[..., :width]
    partner = (
        torch.unflatten(first, -1, (-1, 2)).flip(-1).flatten(-2) if interleaved else first.roll(width // 2, dims=-1)
    )
    rotated = torch.addcmul(first * cos, partner, sin)
    rotated = rotated if rotated.dtype == x.dtype else rotated.to(x.dtype)
    return rotated if whole else torch.cat([rotated, x[..., width:]], dim=-1)


class Rotation(NamedTuple):
    """The cosine and signed sine of every rotated channel at each token: [B|1 1 T R] float32, or [B|1 H T R] if the
    rotation differs between heads."""

    q_cos: Tensor
    """Cosines for queries."""
    q_sin: Tensor
    """Signed sines for queries."""
    k_cos: Tensor
    """Cosines for keys."""
    k_sin: Tensor
    """Signed sines for keys."""


class RotationScheme(PositionScheme):
    """Base of rotary schemes: (x, y) -> (x cos a - y sin a, x sin a + y cos a) for each pair, with angles from `tables`.

    Args:
        width: R; the first R channels of a head are rotated, the rest are unchanged (partial rotation, GPT-J).
        interleaved: pairs are channels (2i, 2i + 1), otherwise (i, i + R/2).
        heads: rotate only the last `heads` heads; None is all.

    Raises:
        ArgumentError: the width is odd.
    """

    def __init__(self, width: int, *, interleaved: bool = False, heads: int | None = None):
        super().__init__()
        if width % 2:
            raise ArgumentError(f"width={width} must be even; RoPE rotates pairs of channels.")
        self.width, self.interleaved, self.heads = width, interleaved, heads

    @property
    def table_dtype(self) -> torch.dtype:
        """float32, or float64 if learned frequencies are float64, so that their gradients are as precise."""
        return torch.float32

    def channels(self, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        """[... T F] per pair -> [... T R] per channel, in `table_dtype`: the cosine and the signed sine."""
        cos, sin = cos.to(self.table_dtype), sin.to(self.table_dtype)
        if self.interleaved:
            return torch.stack([cos, cos], -1).flatten(-2), torch.stack([-sin, sin], -1).flatten(-2)
        return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)

    def token_tables(self, tables: Rotation, i: int) -> Rotation:
        q = tables.q_cos.narrow(-2, i, 1), tables.q_sin.narrow(-2, i, 1)
        alike = tables.k_cos is tables.q_cos
        return Rotation(*q, *(q if alike else (tables.k_cos.narrow(-2, i, 1), tables.k_sin.narrow(-2, i, 1))))

    def rotate_q(self, q: Tensor, tables: Rotation) -> Tensor:
        return self._some_heads(q, tables.q_cos, tables.q_sin)

    def rotate_k(self, k: Tensor, tables: Rotation) -> Tensor:
        return self._some_heads(k, tables.k_cos, tables.k_sin)

    def _some_heads(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        if self.heads is None or self.heads == x.shape[1]:
            return rotate_pairs(x, cos, sin, interleaved=self.interleaved)
        rotated = rotate_pairs(x[:, -self.heads :], cos, sin, interleaved=self.interleaved)
        return torch.cat([x[:, : -self.heads], rotated], dim=1)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """`.to(...)` and the like move learned frequencies between devices but keep them in float32 or float64: in bfloat16
        a frequency of 0.7 is off by 1e-3, which is a whole radian at position 1000."""
        learned = [t for p in self.parameters(recurse=False) for t in (p, p.grad) if t is not None]

        def wide(x: Tensor) -> Tensor:
            new = fn(x)
            narrow = new.dtype not in (torch.float32, torch.float64)
            return x.to(new.device) if narrow and any(x is t for t in learned) else new

        super()._apply(wide, recurse)
        return self


class RopeEmbedding(RotationScheme):
    """a = t * theta^(-2i/R) for pair i at position t (Su et al. 2021, arXiv:2104.09864, eq. 34).

    A position that is the same on every axis, or that has no axes, gives exactly the rotation without sections.

    Learned frequencies are f_i e^(s_i) with s_i trained from 0. The gradient of an angle t f by f is t, which grows with
    the sequence; by s it is the angle t f itself, so a step changes every frequency in proportion, and none can cross zero
    and reverse the rotation.

    Args:
        width: R, the rotated channels of a head.
        theta: the base of the frequencies.
        interleaved: pairs are channels (2i, 2i + 1), otherwise (i, i + R/2).
        heads: rotate only the last `heads` heads; None is all.
        interpolation_factor: divides positions (Chen et al. 2023, arXiv:2306.15595).
        base_rescale_factor: s multiplies theta by s^(R/(R-2)) (NTK-aware, bloc97 2023).
        scaling: how the frequencies are scaled, with the factor of cosines and sines.
        sections: the number of pairs that each axis of a position [B T A] rotates; None for positions without axes.
        section_order: how the pairs are assigned to axes (`axes.places_of`).
        learned: train the frequencies.
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
        self.usual_length = self.scaling.usual_length  # read once: a compiled forward cannot read it from the config
        if self.scaling.follows_length:  # as a sequence grows, its earlier keys change
            self.kv_cacheable = self.prefix_consistent = False
            self.absolute = True
        self.takes_final_length = self.scaling.takes_final_length
        self.places: Places = ()
        if sections is not None:
            self.max_axes, self.places = len(sections), places_of(sections, section_order)
        self.log_stretch = nn.Parameter(torch.zeros(width // 2)) if learned else None

    @property
    def table_dtype(self) -> torch.dtype:
        return torch.float32 if self.log_stretch is None else self.log_stretch.dtype

    def frequencies(self, device: torch.device, lengths: Tensor | None = None) -> Frequencies:
        """[F] radians per position and the attention factor; [B|1 T|1 F] if they depend on the lengths [B|1 T|1]."""
        found = self.initial_frequencies(device, lengths)
        if self.log_stretch is None:
            return found
        return found._replace(inv_freq=found.inv_freq * self.log_stretch.to(found.inv_freq.dtype).exp())

    def initial_frequencies(self, device: torch.device, lengths: Tensor | None = None) -> Frequencies:
        """The same before training."""
        length = self.usual_length if lengths is None else lengths
        found = self.scaling.frequencies(self.width, self.theta, length=length, device=device)
        return found._replace(inv_freq=found.inv_freq / self.interpolation_factor)

    def inv_freq(self, device: torch.device) -> Tensor:
        """[F] radians per position."""
        return self.frequencies(device).inv_freq

    def cache_key(self, length: int) -> Hashable:
        return self.scaling.cache_key(length)

    def decay(self, positions: Tensor) -> Tensor | None:
        """[B|1 T] -> [B|1 T F]: the factor of queries and the divisor of keys; None is 1."""
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
