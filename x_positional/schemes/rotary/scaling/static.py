"""Scalings that change every pair by one rule: default, linear, NTK-aware, NTK-alpha, proportional.

F pairs. Notation: `RopeScaling`.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field

from x_positional.schemes.rotary.frequencies import Frequencies, Number, inverse_frequencies
from x_positional.schemes.rotary.scaling.base import CPU, RopeScaling, needs_two_pairs, rescaled_theta


class DefaultRope(RopeScaling):
    """f_i, as trained (Su et al. 2021, eq. 15)."""

    rope_type: Literal["default"] = "default"
    paper: ClassVar[str] = "Su et al. 2021, arXiv:2104.09864"

    def frequencies(
        self, width: int, theta: float, *, length: Number | None = None, device: torch.device = CPU
    ) -> Frequencies:
        return Frequencies(inverse_frequencies(width, theta, device))


class Linear(RopeScaling):
    """f_i / s: position interpolation (Chen et al. 2023, eq. 4). Equal to dividing positions by s."""

    rope_type: Literal["linear"] = "linear"
    factor: float = Field(ge=1)
    paper: ClassVar[str] = "Chen et al. 2023, arXiv:2306.15595"

    def frequencies(
        self, width: int, theta: float, *, length: Number | None = None, device: torch.device = CPU
    ) -> Frequencies:
        return Frequencies(inverse_frequencies(width, theta, device) / self.factor)


class Ntk(RopeScaling):
    """theta becomes theta s^(width/(width-2)): the slowest pair turns s times slower, the fastest as before (bloc97 2023;
    Peng et al. 2023, definition 1). In use s must exceed the wanted ratio of lengths."""

    rope_type: Literal["ntk"] = "ntk"
    factor: float = Field(ge=1)
    paper: ClassVar[str] = "bloc97 2023; Peng et al. 2023, arXiv:2309.00071"

    def frequencies(
        self, width: int, theta: float, *, length: Number | None = None, device: torch.device = CPU
    ) -> Frequencies:
        return Frequencies(inverse_frequencies(width, rescaled_theta(width, theta, self.factor), device))

    def problems(self, width: int, theta: float) -> list[str]:
        return [self._said(p) for p in needs_two_pairs(width)]


class NtkAlpha(RopeScaling):
    """The formula of `Ntk` with a tuned alpha in place of a ratio of lengths, below 1 too (HunYuan)."""

    rope_type: Literal["ntk_alpha"] = "ntk_alpha"
    alpha: float = Field(gt=0)
    paper: ClassVar[str] = "Sun et al. 2024 (Hunyuan-Large), arXiv:2411.02265"

    def frequencies(
        self, width: int, theta: float, *, length: Number | None = None, device: torch.device = CPU
    ) -> Frequencies:
        return Frequencies(inverse_frequencies(width, rescaled_theta(width, theta, self.alpha), device))

    def problems(self, width: int, theta: float) -> list[str]:
        return [self._said(p) for p in needs_two_pairs(width)]


class Proportional(RopeScaling):
    """p-RoPE: the int(fraction * width / 2) fastest pairs turn by f_i / s, the others not at all (Barbero et al. 2024,
    appendix D). Not partial rotation: the exponent is over the whole width, and the pairs at rest are the slow ones."""

    rope_type: Literal["proportional"] = "proportional"
    fraction: float = Field(default=1.0, ge=0, le=1)
    factor: float = Field(default=1.0, ge=1)
    paper: ClassVar[str] = "Barbero et al. 2024, arXiv:2410.06205"

    def frequencies(
        self, width: int, theta: float, *, length: Number | None = None, device: torch.device = CPU
    ) -> Frequencies:
        turning = int(self.fraction * width // 2)
        inv_freq = inverse_frequencies(width, theta, device) / self.factor
        pair = torch.arange(len(inv_freq), device=device)
        return Frequencies(torch.where(pair < turning, inv_freq, 0.0))
