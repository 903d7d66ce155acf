"""Scalings that treat fast and slow pairs differently: NTK-by-parts, Llama 3, YaRN by its paper and by its code.

F pairs. Notation: `RopeScaling`.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from x_positional.schemes.rotary.frequencies import inverse_frequencies
from x_positional.schemes.rotary.scaling.base import CPU, StaticScaling, mixed

FLOAT32_EPS = torch.finfo(torch.float32).eps


def temperature(factor: float, mscale: float = 1.0) -> float:
    """0.1 mscale ln s + 1, and 1 for s <= 1 (Peng et al. 2023, section 3.4): the square root of 1/t."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


class Parts(StaticScaling):
    """Base of scalings that interpolate between f_i and f_i / s, pair by pair. Override `_keep`."""

    abstract: ClassVar[bool] = True
    factor: float = Field(ge=1)
    """s."""
    original_max_position_embeddings: int = Field(gt=0)
    """L, the trained length."""

    def _inv_freq(self, width: int, theta: float, device: torch.device) -> Tensor:
        inv_freq = inverse_frequencies(width, theta, device)
        return mixed(inv_freq, self.factor, self._keep(inv_freq, width, theta))

    def reach(self) -> float | None:
        return self.factor * self.original_max_position_embeddings

    def trained_length(self) -> int | None:
        return self.original_max_position_embeddings

    def _keep(self, inv_freq: Tensor, width: int, theta: float) -> Tensor:
        """[F]: 1 leaves the frequency of a pair unchanged, 0 divides it by s."""
        raise TypeError(f"{type(self).__name__} defines no _keep")

    def _ramp_over_rotations(self, inv_freq: Tensor, low: float, high: float) -> Tensor:
        """(r_i - low) / (high - low), clamped to 0 .. 1."""
        return ((self._rotations(inv_freq) - low) / (high - low)).clamp(0, 1)

    def _rotations(self, inv_freq: Tensor) -> Tensor:
        """[F]: r_i."""
        return self.original_max_position_embeddings * inv_freq / (2 * math.pi)

    def _in_order(self, names: tuple[str, str], low: float, high: float, equal: bool = False) -> list[str]:
        """Problems of the ends of a ramp. equal: whether they may be equal, which makes the ramp a step."""
        if low < high or (equal and low == high):
            return []
        bound = "at most" if equal else "below"
        return [self._problem(f"{names[0]}={low:g} must be {bound} {names[1]}={high:g}; they are the ends of a ramp.")]


class NtkByParts(Parts):
    """g f_i + (1 - g) f_i / s with g = clamp((r_i - alpha) / (beta - alpha), 0, 1): pairs with more than beta rotations
    in L are unchanged, those with fewer than alpha are interpolated (bloc97 2023; Peng et al. 2023, eq. 17-20, definition 2).
    """

    rope_type: Literal["ntk_by_parts"] = "ntk_by_parts"
    alpha: float = Field(default=1.0, gt=0)
    """Pairs with fewer rotations in L are divided by s."""
    beta: float = Field(default=32.0, gt=0)
    """Pairs with more rotations in L are unchanged."""
    paper: ClassVar[str] = "Peng et al. 2023, arXiv:2309.00071"

    def _keep(self, inv_freq: Tensor, width: int, theta: float) -> Tensor:
        return self._ramp_over_rotations(inv_freq, self.alpha, self.beta)

    def problems(self, width: int, theta: float) -> list[str]:
        return self._in_order(("alpha", "beta"), self.alpha, self.beta)


class YarnPaper(NtkByParts):
    """YaRN as in its paper: `NtkByParts`, with cosines and sines multiplied by 0.1 ln s + 1 (Peng et al. 2023, sections 3.2
    and 3.4). Published checkpoints use `Yarn`, which has a different ramp."""

    rope_type: Literal["yarn_paper"] = "yarn_paper"  # type: ignore[assignment]

    def _attention_factor(self) -> float:
        return temperature(self.factor)


class Llama3(Parts):
    """`NtkByParts` with alpha = low_freq_factor and beta = high_freq_factor, in wavelengths: those above L/low are divided
    by s, those below L/high are unchanged (Llama 3.1's published code; 3.2 uses factor 32). Equal factors make a step
    (Llama 4 Scout)."""

    rope_type: Literal["llama3"] = "llama3"
    factor: float = Field(default=8.0, ge=1)
    """s."""
    low_freq_factor: float = Field(default=1.0, gt=0)
    """Wavelengths above L / low_freq_factor are divided by s."""
    high_freq_factor: float = Field(default=4.0, gt=0)
    """Wavelengths below L / high_freq_factor are unchanged."""
    original_max_position_embeddings: int = Field(default=8192, gt=0)
    """L, the trained length."""
    paper: ClassVar[str] = "Grattafiori et al. 2024, arXiv:2407.21783"

    def _keep(self, inv_freq: Tensor, width: int, theta: float) -> Tensor:
        low, high = self.low_freq_factor, self.high_freq_factor
        if low == high:
            return (self._rotations(inv_freq) > low).to(inv_freq.dtype)
        return self._ramp_over_rotations(inv_freq, low, high)

    def problems(self, width: int, theta: float) -> list[str]:
        low, high = self.low_freq_factor, self.high_freq_factor
        found = self._in_order(("low_freq_factor", "high_freq_factor"), low, high, equal=True)
        if low != high or found:
            return found
        rotations = self._rotations(inverse_frequencies(width, theta, CPU))
        on_the_step = ((rotations - low).abs() <= low * FLOAT32_EPS).nonzero().flatten().tolist()
        return [
            self._problem(
                f"pair {pair} makes low_freq_factor=high_freq_factor={low:g} rotations in "
                f"{self.original_max_position_embeddings} positions, where the step is undefined. Change the factors slightly."
            )
            for pair in on_the_step
        ]


class Yarn(Parts):
    """YaRN as in its code and in every checkpoint: the ramp is linear in the pair's index i, not in its rotations.

    c(n) = width ln(L / (2 pi n)) / (2 ln theta) is the index of the pair that makes n rotations in L; lo = c(beta_fast) and
    hi = c(beta_slow), rounded outwards if `truncate`, clamped to 0 .. width-1. Pairs up to lo are unchanged, from hi on
    they are divided by s (Peng et al. 2023, section 3.2, and its published code). Equal ends make a step. Frequencies differ
    from `YarnPaper` by a factor of up to 2 or 3. Cosines and sines are multiplied by `attention_factor`.
    """

    rope_type: Literal["yarn"] = "yarn"
    beta_fast: float = Field(default=32.0, gt=0)
    """Rotations in L of the last pair that is unchanged."""
    beta_slow: float = Field(default=1.0, gt=0)
    """Rotations in L of the first pair that is divided by s."""
    mscale: float | None = Field(default=None, gt=0)
    """DeepSeek's; the default attention factor is then m(mscale) / m(mscale_all_dim), m(k) = 0.1 k ln s + 1."""
    mscale_all_dim: float | None = Field(default=None, gt=0)
    """Required with `mscale`."""
    attention_factor: float | None = Field(default=None, ge=0)
    """The factor of cosines and sines; None is 0.1 ln s + 1, unless `mscale` is set."""
    truncate: bool = True
    """Round the ends of the ramp outwards to whole pairs; gpt-oss does not."""
    paper: ClassVar[str] = "Peng et al. 2023, arXiv:2309.00071"

    def _bounds(self, width: int, theta: float) -> tuple[float, float]:
        def pair_with(rotations: float) -> float:
            wavelengths = self.original_max_position_embeddings / (2 * math.pi * rotations)
            return width * math.log(wavelengths) / (2 * math.log(theta))

        low, high = pair_with(self.beta_fast), pair_with(self.beta_slow)
        if self.truncate:
            low, high = math.floor(low), math.ceil(high)
        return max(low, 0), min(high, width - 1)

    def _keep(self, inv_freq: Tensor, width: int, theta: float) -> Tensor:
        low, high = self._bounds(width, theta)
        pair = torch.arange(len(inv_freq), device=inv_freq.device, dtype=inv_freq.dtype)
        return 1 - ((pair - low) / (high - low or 0.001)).clamp(0, 1)

    def _attention_factor(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        if self.mscale and self.mscale_all_dim:
            return temperature(self.factor, self.mscale) / temperature(self.factor, self.mscale_all_dim)
        return temperature(self.factor)

    def problems(self, width: int, theta: float) -> list[str]:
        found = self._in_order(("beta_slow", "beta_fast"), self.beta_slow, self.beta_fast, equal=True)
        if (self.mscale is None) != (self.mscale_all_dim is None):
            found.append(self._problem("mscale and mscale_all_dim must be set together. Set both or neither."))
        if theta <= 1:
            return [*found, self._problem(f"theta={theta:g} must be above 1; the ramp divides by its logarithm.")]
        low, high = self._bounds(width, theta)
        if not found and low > high:
            found.append(
                self._problem(
                    f"the ramp would end at pair {high:g}, before its start at {low:g}: no pair of width {width} and "
                    f"theta={theta:g} makes between {self.beta_slow:g} and {self.beta_fast:g} rotations in "
                    f"{self.original_max_position_embeddings} positions. Check original_max_position_embeddings and theta."
                )
            )
        return found
