"""Scalings that change every pair by one rule: default, linear, NTK-aware, NTK-alpha, proportional.

F pairs. Notation: `RopeScaling`.
"""

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from x_positional.schemes.rotary.frequencies import inverse_frequencies
from x_positional.schemes.rotary.scaling.base import StaticScaling, needs_two_pairs, rescaled_theta


class DefaultRope(StaticScaling):
    """f_i, unscaled (Su et al. 2021, eq. 15)."""

    rope_type: Literal["default"] = "default"
    paper: ClassVar[str] = "Su et al. 2021, arXiv:2104.09864"

    def _inv_freq(self, width: int, theta: float, device: torch.device) -> Tensor:
        return inverse_frequencies(width, theta, device)


class Linear(StaticScaling):
    """f_i / s: position interpolation (Chen et al. 2023, eq. 4). The same as dividing positions by s."""

    rope_type: Literal["linear"] = "linear"
    factor: float = Field(ge=1)
    """s."""
    paper: ClassVar[str] = "Chen et al. 2023, arXiv:2306.15595"

    def _inv_freq(self, width: int, theta: float, device: torch.device) -> Tensor:
        return inverse_frequencies(width, theta, device) / self.factor


class Ntk(StaticScaling):
    """theta becomes theta s^(width/(width-2)): the slowest pair rotates s times slower, the fastest is unchanged (bloc97
    2023; Peng et al. 2023, definition 1). In practice s must exceed the wanted ratio of lengths."""

    rope_type: Literal["ntk"] = "ntk"
    factor: float = Field(ge=1)
    """s."""
    paper: ClassVar[str] = "bloc97 2023; Peng et al. 2023, arXiv:2309.00071"

    def _inv_freq(self, width: int, theta: float, device: torch.device) -> Tensor:
        return inverse_frequencies(width, rescaled_theta(width, theta, self.factor), device)

    def problems(self, width: int, theta: float) -> list[str]:
        return [self._problem(p) for p in needs_two_pairs(width)]


class NtkAlpha(StaticScaling):
    """The formula of `Ntk` with a tuned alpha in place of a ratio of lengths; it may be below 1 (HunYuan)."""

    rope_type: Literal["ntk_alpha"] = "ntk_alpha"
    alpha: float = Field(gt=0)
    """Takes the place of s."""
    paper: ClassVar[str] = "Sun et al. 2024 (Hunyuan-Large), arXiv:2411.02265"

    def _inv_freq(self, width: int, theta: float, device: torch.device) -> Tensor:
        return inverse_frequencies(width, rescaled_theta(width, theta, self.alpha), device)

    def problems(self, width: int, theta: float) -> list[str]:
        return [self._problem(p) for p in needs_two_pairs(width)]


class Proportional(StaticScaling):
    """p-RoPE: the int(fraction * width / 2) fastest pairs rotate by f_i / s, the others not at all (Barbero et al. 2024,
    appendix D). Unlike partial rotation, the exponent is over the whole width, and the unrotated pairs are the slow ones."""

    rope_type: Literal["proportional"] = "proportional"
    fraction: float = Field(default=1.0, ge=0, le=1)
    """The share of pairs that rotate."""
    factor: float = Field(default=1.0, ge=1)
    """s."""
    paper: ClassVar[str] = "Barbero et al. 2024, arXiv:2410.06205"

    def _inv_freq(self, width: int, theta: float, device: torch.device) -> Tensor:
        rotated = int(self.fraction * width // 2)
        inv_freq = inverse_frequencies(width, theta, device) / self.factor
        pair = torch.arange(len(inv_freq), device=device)
        return torch.where(pair < rotated, inv_freq, 0.0)
