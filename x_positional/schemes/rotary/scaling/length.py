"""Scalings that depend on the sequence length: dynamic NTK and LongRoPE.

B batch, T tokens, F pairs. Notation: `RopeScaling`.
"""

import math
from typing import ClassVar, Literal

import torch
from pydantic import Field, PrivateAttr
from torch import Tensor
from typing_extensions import Self

from x_positional.errors import ArgumentError
from x_positional.schemes.precision import exact_dtype
from x_positional.schemes.rotary.frequencies import Frequencies, Number, inverse_frequencies
from x_positional.schemes.rotary.scaling.base import CPU, RopeScaling, needs_two_pairs, rescaled_theta
from x_positional.schemes.values import MAX_HEAD_DIM


class LengthScaling(RopeScaling):
    """Base of scalings whose frequencies depend on a sequence length, chosen by `length_policy`.

    "fixed": the final length, chosen once, so cached keys stay valid and all tokens of a sequence have the same
    frequencies. It is `length` if set; in generation, the length of each row's prompt plus the tokens requested; in any
    other pass, the model's max_seq_len.

    "recompute": the current length of each row (of each document, if rows are packed). Earlier tokens change as a sequence
    grows past the trained length L: the logits of a prefix differ from those of the whole sequence, and generation
    recomputes the prefix at each change.
    """

    abstract: ClassVar[bool] = True
    original_max_position_embeddings: int = Field(gt=0)
    """L, the trained length."""
    length_policy: Literal["fixed", "recompute"] = "fixed"
    """Which length the frequencies depend on."""
    length: int | None = Field(default=None, gt=0)
    """The final length of every sequence, for length_policy="fixed"."""
    _longest: int | None = PrivateAttr(default=None)

    @property
    def takes_final_length(self) -> bool:
        return not self.follows_length and self.length is None

    @property
    def follows_length(self) -> bool:
        return self.length_policy == "recompute"

    @property
    def usual_length(self) -> int | None:
        return self.length or self._longest

    def bound(self, max_seq_len: int | None) -> Self:
        if not self.takes_final_length:
            return self
        copy = self.model_copy()
        copy._longest = max_seq_len
        return copy

    def problems(self, width: int, theta: float) -> list[str]:
        if self.follows_length and self.length is not None:
            return [
                self._problem(
                    f"length={self.length} needs length_policy='fixed'; 'recompute' uses the length of each row. Set one of them."
                )
            ]
        if self.takes_final_length and self._longest is None:
            return [
                self._problem(
                    "length_policy='fixed' needs to know the final length. Set length=, use a wrapper with max_seq_len, or "
                    "set length_policy='recompute'."
                )
            ]
        return []

    def trained_length(self) -> int | None:
        return self.original_max_position_embeddings

    def _length(self, given: Number | None) -> Number:
        length = self.length or (self.usual_length if given is None else given)
        if length is None:
            raise ArgumentError(self._problem("frequencies need a length. Set length=, or call bound(max_seq_len)."))
        return length


class DynamicNtk(LengthScaling):
    """`Ntk` with the factor s l/L - (s - 1) for a sequence of length l > L, and f_i up to L (emozilla 2023; Peng et al.
    2023, section 3.3, where s = 1 and the factor is l/L)."""

    rope_type: Literal["dynamic"] = "dynamic"
    factor: float = Field(default=1.0, ge=1)
    """s."""
    paper: ClassVar[str] = "emozilla 2023; Peng et al. 2023, arXiv:2309.00071"

    def frequencies(
        self, width: int, theta: float, *, length: Number | None = None, device: torch.device = CPU
    ) -> Frequencies:
        now, trained = self._length(length), self.original_max_position_embeddings
        if isinstance(now, Tensor):
            now = now.to(device, exact_dtype(device)).clamp(min=trained)
        else:
            now = max(now, trained)
        grown = self.factor * now / trained - (self.factor - 1)
        return Frequencies(inverse_frequencies(width, rescaled_theta(width, theta, grown), device))

    def cache_key(self, length: int) -> int | None:
        return length if self.follows_length and length > self.original_max_position_embeddings else None

    def problems(self, width: int, theta: float) -> list[str]:
        return [*super().problems(width, theta), *(self._problem(p) for p in needs_two_pairs(width))]


class LongRope(LengthScaling):
    """f_i / short_factor_i up to L, f_i / long_factor_i at every position of a longer sequence (Ding et al. 2024, eq. 3,
    without its unscaled first tokens; Phi-3's published code). Cosines and sines are multiplied by `attention_factor`."""

    rope_type: Literal["longrope"] = "longrope"
    short_factor: tuple[float, ...] = Field(max_length=MAX_HEAD_DIM)
    """Divisors of the frequencies up to L, one per pair."""
    long_factor: tuple[float, ...] = Field(max_length=MAX_HEAD_DIM)
    """Divisors of the frequencies beyond L, one per pair."""
    factor: float | None = Field(default=None, gt=0)
    """s, the ratio of the extended length to L."""
    attention_factor: float | None = Field(default=None, ge=0)
    """The factor of cosines and sines; None is sqrt(1 + ln s / ln L)."""
    short_mscale: float | None = Field(default=None, gt=0)
    """Replaces `attention_factor` up to L (Phi-3.5-MoE)."""
    long_mscale: float | None = Field(default=None, gt=0)
    """Replaces `attention_factor` beyond L (Phi-3.5-MoE)."""
    paper: ClassVar[str] = "Ding et al. 2024, arXiv:2402.13753"

    def frequencies(
        self, width: int, theta: float, *, length: Number | None = None, device: torch.device = CPU
    ) -> Frequencies:
        plain = inverse_frequencies(width, theta, device)
        tables = plain / plain.new_tensor([self.short_factor, self.long_factor])
        scales = self._attention_factors()
        is_long = self._length(length) > self.original_max_position_embeddings
        if not isinstance(is_long, Tensor):
            return Frequencies(tables[int(is_long)], scales[int(is_long)])
        is_long = is_long.to(device)[..., None]
        same = scales[0] == scales[1]
        return Frequencies(
            torch.where(is_long, tables[1], tables[0]),
            scales[0] if same else torch.where(is_long, plain.new_tensor(scales[1]), plain.new_tensor(scales[0])),
        )

    def _attention_factors(self) -> tuple[float, float]:
        if self.short_mscale is not None and self.long_mscale is not None:
            return self.short_mscale, self.long_mscale
        both = self.attention_factor
        if both is None:
            factor, trained = self.factor or 1.0, self.original_max_position_embeddings
            both = 1.0 if factor <= 1 else math.sqrt(1 + math.log(factor) / math.log(trained))
        return both, both

    def cache_key(self, length: int) -> int | None:
        return int(length > self.original_max_position_embeddings) if self.follows_length else None

    def reach(self) -> float | None:
        return None if self.factor is None else self.factor * self.original_max_position_embeddings

    def problems(self, width: int, theta: float) -> list[str]:
        found, pairs = super().problems(width, theta), (width + 1) // 2
        for name, factors in (("short_factor", self.short_factor), ("long_factor", self.long_factor)):
            if len(factors) != pairs:
                found.append(
                    self._problem(
                        f"{name} has {len(factors)} numbers; width {width} has {pairs} pairs. Give one number per pair."
                    )
                )
            if any(value <= 0 for value in factors):
                found.append(self._problem(f"{name} contains {min(factors):g}; every number must be above 0."))
        if (self.short_mscale is None) != (self.long_mscale is None):
            found.append(self._problem("short_mscale and long_mscale must be set together. Set both or neither."))
        scales = (self.factor, self.attention_factor, self.short_mscale)
        if all(value is None for value in scales):
            found.append(
                self._problem(
                    "the attention factor is derived from factor, the ratio of the extended length to the trained one. Set "
                    "factor=, or attention_factor=1.0 for none."
                )
            )
        if self.factor is not None and self.factor > 1 and self.original_max_position_embeddings < 2:
            found.append(
                self._problem("original_max_position_embeddings=1 would divide by log(1) = 0. Set it to 2 or more.")
            )
        return found
