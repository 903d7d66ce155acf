"""Scalings that treat fast and slow pairs differently: NTK-by-parts, Llama 3, YaRN as published and as everyone runs it.

F pairs. Notation: `RopeScaling`.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from x_positional.schemes.rotary.frequencies import Frequencies, Number, inverse_frequencies
from x_positional.schemes.rotary.scaling.base import CPU, RopeScaling, mixed


def temperature(factor: float, mscale: float = 1.0) -> float:
    """0.1 mscale ln s + 1, and 1 for s <= 1 (Peng et al. 2023, section 3.4): the square root of 1/t."""
    return 1.0 if factor <= 1 else 0.1 * mscale * math.log(factor) + 1.0


class Parts(RopeScaling):
    """Base: s and L, and a mix of f_i and f_i / s for each pair."""

    factor: float = Field(ge=1)
    original_max_position_embeddings: int = Field(gt=0)

    def frequencies(
        self, width: int, theta: float, *, length: Number | None = None, device: torch.device = CPU
    ) -> Frequencies:
        inv_freq = inverse_frequencies(width, theta, device)
        return Frequencies(mixed(inv_freq, self.factor, self._keep(inv_freq, width, theta)), self._attention_factor())

    def reach(self) -> float | None:
        return self.factor * self.original_max_position_embeddings

    def trained_length(self) -> int | None:
        return self.original_max_position_embeddings

    def _keep(self, inv_freq: Tensor, width: int, theta: float) -> Tensor:
        """[F]: 1 leaves a pair alone, 0 divides it by s."""
        raise TypeError(f"{type(self).__name__} defines no _keep")

    def _attention_factor(self) -> float:
        return 1.0

    def _ramp_over_turns(self, inv_freq: Tensor, low: float, high: float) -> Tensor:
        """(r_i - low) / (high - low), cut to 0 .. 1."""
        turns = self.original_max_position_embeddings * inv_freq / (2 * math.pi)
        return ((turns - low) / (high - low)).clamp(0, 1)

    def _in_order(self, names: tuple[str, str], low: float, high: float) -> list[str]:
        if low < high:
            return []
        return [self._said(f"{names[0]}={low:g} must be below {names[1]}={high:g}: they bound a ramp.")]


class NtkByParts(Parts):
    """g f_i + (1 - g) f_i / s with g = clamp((r_i - alpha) / (beta - alpha), 0, 1): pairs that turn more than beta times in
    L stay, those below alpha turns are interpolated (bloc97 2023; Peng et al. 2023, eq. 17-20, definition 2)."""

    rope_type: Literal["ntk_by_parts"] = "ntk_by_parts"
    alpha: float = Field(default=1.0, gt=0)
    beta: float = Field(default=32.0, gt=0)
    paper: ClassVar[str] = "Peng et al. 2023, arXiv:2309.00071"

    def _keep(self, inv_freq: Tensor, width: int, theta: float) -> Tensor:
        return self._ramp_over_turns(inv_freq, self.alpha, self.beta)

    def problems(self, width: int, theta: float) -> list[str]:
        return self._in_order(("alpha", "beta"), self.alpha, self.beta)


class YarnPaper(NtkByParts):
    """YaRN as published: `NtkByParts`, and cosines and sines times 0.1 ln s + 1 (Peng et al. 2023, sections 3.2 and 3.4).
    Checkpoints were made with `Yarn`, whose ramp is another one."""

    rope_type: Literal["yarn_paper"] = "yarn_paper"  # type: ignore[assignment]

    def _attention_factor(self) -> float:
        return temperature(self.factor)


class Llama3(Parts):
    """`NtkByParts` with alpha = low_freq_factor and beta = high_freq_factor, in wavelengths: those above L/low are divided
    by s, those below L/high stay (Llama 3.1's published code; 3.2 uses factor 32)."""

    rope_type: Literal["llama3"] = "llama3"
    factor: float = Field(default=8.0, ge=1)
    low_freq_factor: float = Field(default=1.0, gt=0)
    high_freq_factor: float = Field(default=4.0, gt=0)
    original_max_position_embeddings: int = Field(default=8192, gt=0)
    paper: ClassVar[str] = "Grattafiori et al. 2024, arXiv:2407.21783"

    def _keep(self, inv_freq: Tensor, width: int, theta: float) -> Tensor:
        return self._ramp_over_turns(inv_freq, self.low_freq_factor, self.high_freq_factor)

    def problems(self, width: int, theta: float) -> list[str]:
        return self._in_order(("low_freq_factor", "high_freq_factor"), self.low_freq_factor, self.high_freq_factor)


class Yarn(Parts):
    """YaRN as its code and every checkpoint have it: the ramp is linear in the pair's number i, not in its turns.

    c(n) = width ln(L / (2 pi n)) / (2 ln theta) is where a pair makes n turns; lo = c(beta_fast), hi = c(beta_slow),
    rounded outwards if `truncate` (gpt-oss does not), kept inside 0 .. width-1; pairs up to lo stay, from hi on are divided
    by s (Peng et al. 2023, section 3.2, and its published code). Frequencies differ from `YarnPaper` by up to 2-3 times.
    Cosines and sines are multiplied by attention_factor; None is m(mscale) / m(mscale_all_dim) where both are given
    (DeepSeek), otherwise m(1), with m(k) = 0.1 k ln s + 1.
    """

    rope_type: Literal["yarn"] = "yarn"
    beta_fast: float = Field(default=32.0, gt=0)
    beta_slow: float = Field(default=1.0, gt=0)
    mscale: float | None = Field(default=None, gt=0)
    mscale_all_dim: float | None = Field(default=None, gt=0)
    attention_factor: float | None = Field(default=None, ge=0)
    truncate: bool = True
    paper: ClassVar[str] = "Peng et al. 2023, arXiv:2309.00071"

    def _bounds(self, width: int, theta: float) -> tuple[float, float]:
        def pair_with(turns: float) -> float:
            wavelengths = self.original_max_position_embeddings / (2 * math.pi * turns)
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
        found = self._in_order(("beta_slow", "beta_fast"), self.beta_slow, self.beta_fast)
        if (self.mscale is None) != (self.mscale_all_dim is None):
            found.append(self._said("mscale and mscale_all_dim count only together. Give both or none."))
        if theta <= 1:
            return [*found, self._said(f"theta={theta:g} must be above 1: the ramp divides by its logarithm.")]
        low, high = self._bounds(width, theta)
        if not found and low > high:
            found.append(
                self._said(
                    f"the ramp would end at pair {high:g}, before it starts at {low:g}: no pair of width {width} and "
                    f"theta={theta:g} turns between {self.beta_slow:g} and {self.beta_fast:g} times in "
                    f"{self.original_max_position_embeddings} positions. Check original_max_position_embeddings and theta."
                )
            )
        return found
